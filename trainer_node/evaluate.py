"""Held-out loss and greedy answers, shared out over all ranks.

Every rank runs the same number of shards, empty ones included, and looks at the control word between them. The loss is the mean over
all learned tokens of all ranks, whatever the micro-batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.methods.api import Objective
from luthier.trainer_node.context import RankContext
from luthier.trainer_node.control import Control
from luthier.trainer_node.data.collate import collate
from luthier.trainer_node.data.order import in_order
from luthier.trainer_node.data.rows import Rows
from luthier.trainer_node.generate import end_tokens, greedy
from luthier.trainer_node.logprobs import PhaseModels, place
from luthier.trainer_node.loop import share_of

__all__ = ["Answer", "answer_rows", "exact_match", "held_out_loss"]


@dataclass(frozen=True)
class Answer:
    """One held-out row and what the model says."""

    prompt: str
    expected: str
    answer: str

    @property
    def exact(self) -> bool:
        """Equal but for white space at the ends."""
        return self.answer.strip() == self.expected.strip()


def held_out_loss(
    context: RankContext,
    control: Control,
    policy: nn.Module,
    rows: Rows,
    *,
    objective: Objective | None,
    max_rows: int,
    micro_batch_size: int,
    pad_token: int,
    max_length: int,
    step: int,
) -> float | None:
    """Mean loss over the first `max_rows` rows (0: all); None when a rank is asked to leave. Collective.

    `objective` None: negative log-likelihood of the learned tokens.
    """
    group = context.group
    models = PhaseModels(policy)
    sums: dict[str, tuple[float, str]] = {}
    counts: dict[str, int] = {}
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            for micro in share_of(in_order(rows.lengths, micro_batch_size, max_rows=max_rows), group.rank, group.world_size):
                context.channel.beat("evaluate", step)
                if control.leave_asked():
                    return None
                batch = collate(micro, rows, pad_token=pad_token, max_length=max_length, device=context.device)
                found = objective.counts(batch) if objective is not None else {"tokens": int(batch.learned().sum())}
                for name, count in found.items():
                    counts[name] = counts.get(name, 0) + count
                placed = place(batch, context.device)
                if objective is None:
                    parts = {"nll": (-float(models.logprobs(placed).logprobs.sum()), "tokens")}
                else:
                    terms = objective(models, placed).terms
                    parts = {name: (float(term.sum) * term.coefficient, term.count) for name, term in terms.items()}
                for name, (value, count_name) in parts.items():
                    sums[name] = (sums.get(name, (0.0, ""))[0] + value, count_name)
    finally:
        policy.train(training)
    names, count_names = sorted(sums), sorted(counts)
    totals = group.sum_floats([sums[name][0] for name in names])
    all_counts = dict(zip(count_names, group.sum_ints([counts[name] for name in count_names]), strict=True))
    return sum(total / max(all_counts[sums[name][1]], 1) for name, total in zip(names, totals, strict=True))


def answer_rows(
    context: RankContext,
    control: Control,
    view: AbstractContextManager[nn.Module],
    rows: Rows,
    tokenizer: Any,
    *,
    num_rows: int,
    max_new_tokens: int,
    pad_token: int,
) -> list[Answer] | None:
    """Greedy answers to the first `num_rows` rows, in their order, on every rank; None when a rank is asked to leave. Collective."""
    group = context.group
    total = min(num_rows, len(rows))
    mine = list(range(group.rank, total, group.world_size))
    if control.leave_asked():
        return None
    with view as net:
        made = greedy(
            net, [np.asarray(rows.prompt_ids(index)) for index in mine], max_new_tokens=max_new_tokens, ends=end_tokens(net, tokenizer),
            pad_token=pad_token, device=context.device, beat=lambda: context.channel.beat("evaluate", 0),
        )  # fmt: skip
    answers: list[dict[str, Any]] = []
    for index, tokens in zip(mine, made, strict=True):
        prompt, expected = rows.prompt_and_answer(index)
        text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append({"index": index, "prompt": prompt, "expected": expected, "answer": text})
    every: Sequence[Mapping[str, Any]] = [answer for part in group.gather_json(answers) for answer in part]
    ordered = sorted(every, key=lambda answer: int(answer["index"]))
    return [Answer(str(a["prompt"]), str(a["expected"]), str(a["answer"])) for a in ordered]


def exact_match(answers: Sequence[Answer]) -> float:
    """Share of answers that are exactly right."""
    return sum(answer.exact for answer in answers) / max(len(answers), 1)


def samples_json(answers: Sequence[Answer]) -> str:
    """The file `samples.json` of a report: rows with prompt, expected, answer and exact."""
    rows = [{"prompt": a.prompt, "expected": a.expected, "answer": a.answer, "exact": a.exact} for a in answers]
    return json.dumps(rows, ensure_ascii=False, indent=1)
