"""Greedy answers for a batch of prompts: left padding, key-value cache, longest prompts first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from luthier.trainer_node.logprobs import causal_lm

__all__ = ["end_tokens", "greedy"]

_ROWS_AT_ONCE = 32


def end_tokens(net: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and what the model's configuration says."""
    configured = getattr(causal_lm(net).config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return sorted(token for token in found if token is not None)


def greedy(
    net: nn.Module,
    prompts: Sequence[npt.NDArray[Any]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    pad_token: int,
    device: str,
    beat: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, without the end token, in the order of the prompts.

    `net` must be usable without collectives (`Engine.generation_view`) and in evaluation mode; ranks may do different amounts of work.
    Prompts that leave no room before the model's last position lose their beginning.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for begin in range(0, len(order), _ROWS_AT_ONCE):
        chosen = order[begin : begin + _ROWS_AT_ONCE]
        for index, answer in zip(
            chosen, _one_batch(net, [prompts[i] for i in chosen], max_new_tokens, ends, pad_token, device, beat), strict=True
        ):
            answers[index] = answer
    return answers


def _one_batch(
    net: nn.Module,
    prompts: Sequence[npt.NDArray[Any]],
    max_new_tokens: int,
    ends: Sequence[int],
    pad_token: int,
    device: str,
    beat: Callable[[], None],
) -> list[list[int]]:
    lm = causal_lm(net)
    limit = getattr(lm.config, "max_position_embeddings", None) or 1 << 30
    new_tokens = max(1, min(max_new_tokens, limit - 1))
    prompts = [prompt[-(limit - new_tokens) :] for prompt in prompts]
    rows, width = len(prompts), max(1, *(len(prompt) for prompt in prompts))
    ids = torch.full((rows, width), pad_token, dtype=torch.int64)
    mask = torch.zeros(rows, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        if len(prompt):
            ids[row, -len(prompt) :] = torch.from_numpy(prompt.astype("int64"))
            mask[row, -len(prompt) :] = 1
    mask[:, -1] = 1  # an empty prompt starts from the padding token
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    end_ids = torch.tensor(list(ends), device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    cache: Any = None
    with torch.no_grad():
        for _ in range(new_tokens):
            output = lm(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = output.logits[:, -1].argmax(-1)
            finished |= torch.isin(token, end_ids)
            chosen.append(torch.where(finished, -1, token))
            beat()
            if bool(finished.all()):
                break
            ids = torch.where(finished, pad_token, token)[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return [[t for t in row if t >= 0] for row in torch.stack(chosen, dim=1).tolist()]
