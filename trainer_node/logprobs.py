"""Log-probabilities of learned tokens without ever holding [tokens x vocabulary].

Only positions whose token is learned reach the LM head, and the head works in chunks of tokens; the backward pass computes a
chunk's probabilities again instead of keeping them (small problems keep them, which is faster). `Policy` is the root module that
engines wrap, so that sharded weights are fetched and released by the engine's own hooks: the head is a module of its own and does
the whole computation inside its forward.

Shapes: B rows, T tokens, L learned positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.errors import MethodError
from luthier.methods.api import Batch, TokenLogprobs

__all__ = ["LearnedPositions", "PhaseModels", "PlacedBatch", "Policy", "causal_lm", "learned_positions", "place"]

_CHUNK_ELEMENTS = 1 << 23
"""Logits of one chunk (32 MB in fp32): large enough for full matmul speed, small beside the activations of a real model."""
_KEEP_ELEMENTS = 1 << 21
"""Up to here (8 MB) probabilities are kept for the backward pass: recomputing them costs more than the memory is worth."""


# --- which positions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearnedPositions:
    """Where a batch learns, found on the host before the batch is moved, so that no step waits for the device."""

    rows: Tensor
    """int64 [L]: row of each learned token."""
    predictors: Tensor
    """int64 [L]: column of the token before it, whose hidden state predicts it."""
    segments: Tensor
    """int64 [L]: index of its sample in the micro-batch."""
    labels: Tensor
    """The label tensor this was derived from; another one (or a changed one) makes it stale."""
    version: int

    def fits(self, batch: Batch) -> bool:
        return self.labels is batch.labels and self.version == batch.labels._version


@dataclass
class PlacedBatch(Batch):
    """A batch on the device of the rank with its learned positions."""

    positions: LearnedPositions | None = None
    num_tokens: int = 0
    """Tokens that are not padding."""

    @property
    def num_learned(self) -> int:
        """Learned tokens, known on the host."""
        return 0 if self.positions is None else self.positions.rows.numel()


def learned_positions(batch: Batch) -> LearnedPositions:
    """Learned positions in row-major order."""
    rows, columns = batch.learned().nonzero(as_tuple=True)
    samples_per_row = batch.segment_ids.amax(dim=1).to(torch.int64)
    first_sample = torch.cumsum(samples_per_row, 0) - samples_per_row
    segments = first_sample[rows] + batch.segment_ids[rows, columns].to(torch.int64) - 1
    return LearnedPositions(rows, columns - 1, segments, batch.labels, batch.labels._version)


def place(batch: Batch, device: str) -> PlacedBatch:
    """The batch on `device`, with its learned positions."""
    positions = learned_positions(batch)
    num_tokens = int(torch.count_nonzero(batch.segment_ids))
    if device == "cpu":
        return PlacedBatch(
            batch.input_ids, batch.labels, batch.position_ids, batch.segment_ids, batch.sample, batch.packed, positions, num_tokens
        )

    def move(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    labels = move(batch.labels)
    moved = LearnedPositions(move(positions.rows), move(positions.predictors), move(positions.segments), labels, labels._version)
    sample = {name: move(column) for name, column in batch.sample.items()}
    return PlacedBatch(
        move(batch.input_ids), labels, move(batch.position_ids), move(batch.segment_ids), sample, batch.packed, moved, num_tokens
    )


# --- the head -------------------------------------------------------------------------------------------------------


class _TokenLogprobs(torch.autograd.Function):
    """(hidden [L, D], weight [V, D], bias [V] or None, targets [L]) -> (logprobs float32 [L], entropy float32 [L] or empty).

    d logprob_t / d logits = onehot(target) - softmax, computed chunk by chunk. The entropy has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, entropy: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total, vocabulary = hidden.shape[0], weight.shape[0]
        step = max(1, _CHUNK_ELEMENTS // vocabulary)
        keep = total * vocabulary <= _KEEP_ELEMENTS and (hidden.requires_grad or weight.requires_grad)
        wide = _wide(dtype)
        logprobs = torch.empty(total, dtype=wide, device=hidden.device)
        entropies = torch.empty(total if entropy else 0, dtype=wide, device=hidden.device)
        kept: list[Tensor] = []
        for begin in range(0, total, step):
            part = slice(begin, min(begin + step, total))
            log_p = torch.log_softmax(_logits(hidden[part], weight, bias, dtype), dim=-1)
            logprobs[part] = log_p.gather(1, targets[part, None])[:, 0]
            if entropy or keep:
                p = log_p.exp()
                if entropy:
                    entropies[part] = -(p * log_p).sum(-1)
                if keep:
                    kept.append(p)
        # The parameter itself is remembered, not a saved copy: under ZeRO-3 its data is released after this forward and fetched
        # again before the backward.
        ctx.weight, ctx.bias, ctx.dtype, ctx.kept = weight, bias, dtype, kept
        ctx.save_for_backward(hidden, targets)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0]
        hidden, targets = ctx.saved_tensors
        weight, bias, dtype = ctx.weight, ctx.bias, ctx.dtype
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        total, vocabulary = hidden.shape[0], weight.shape[0]
        step = max(1, _CHUNK_ELEMENTS // vocabulary)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Several chunks of bf16 gradients are summed in fp32.
        wide = _wide(dtype)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(vocabulary, dtype=wide, device=weight.device) if need_bias and bias is not None else None
        for index, begin in enumerate(range(0, total, step)):
            part = slice(begin, min(begin + step, total))
            p = ctx.kept[index] if ctx.kept else torch.softmax(_logits(hidden[part], weight, bias, dtype), dim=-1)
            grad_logits = p * -grad[part, None]
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None])
            low = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (low @ weight.to(dtype)).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += (low.t() @ hidden[part].to(dtype)).to(wide)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None and bias is not None else None,
            None,
            None,
            None,
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Format of probabilities and sums: fp32, or float64 for a network in float64 (reference computations)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = (hidden.to(dtype) @ weight.to(dtype).t()).to(_wide(dtype))
    return logits if bias is None else logits + bias


class LearnedHead(nn.Linear):
    """An LM head that can turn hidden states straight into log-probabilities of given targets."""

    def forward(self, input: Tensor, targets: Tensor | None = None, entropy: bool = False, dtype: torch.dtype | None = None) -> Any:
        """Logits [.., V] without targets; (logprobs [L], entropy [L] or empty) with them."""
        if targets is None:
            return super().forward(input)
        # Engines' hooks replace the module's outputs, so the parameters are read here, inside the forward.
        return _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, targets, entropy, dtype or input.dtype
        )


def causal_lm(net: nn.Module) -> Any:
    """The causal language model inside adapters' wrappers."""
    inner: Any = net
    while not hasattr(inner, "get_output_embeddings") or hasattr(inner, "get_base_model"):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "net") and isinstance(inner.net, nn.Module):
            inner = inner.net
        else:
            raise MethodError(
                f"{type(net).__name__} is not a causal language model",
                where="surgery",
                fix="return the network itself, a peft model, or a module that holds the network as `net`",
            )
    return inner


class Policy(nn.Module):
    """Root of a network under training or evaluation: hidden states of the backbone, then the head on chosen positions."""

    def __init__(self, net: nn.Module, autocast: torch.dtype | None = None) -> None:
        """`autocast`: number format of matmuls where the weights are kept in fp32."""
        super().__init__()
        self.net = net
        self.autocast = autocast
        lm = causal_lm(net)
        head = lm.get_output_embeddings()
        config = lm.config
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._lean = type(head) in (nn.Linear, LearnedHead) and self._scale == 1.0 and self._softcap is None
        if self._lean:
            head.__class__ = LearnedHead

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None, rows: Tensor, predictors: Tensor, targets: Tensor, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities float32 [L] of `targets` [L] at the given positions, and their entropies [L] (empty unless wanted)."""
        lm = causal_lm(self.net)
        with torch.autocast(input_ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            # Right-padded rows need no attention mask: a real token never sees what comes after it. Packed rows are told apart by
            # positions that start again, which the model's own mask code understands.
            output = lm.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
            hidden = output.last_hidden_state[rows, predictors]
            head = lm.get_output_embeddings()
            if self._lean:
                logprobs, entropies = head(hidden, targets, entropy, self.autocast or hidden.dtype)
                return logprobs, entropies
            return self._by_module(head, hidden, targets, entropy)

    def _by_module(self, head: nn.Module, hidden: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        """The same through the head as a module (it may be wrapped by an adapter, or be followed by scaling), chunk by chunk."""

        def part(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            logits = head(hidden)
            logits = logits.to(_wide(logits.dtype)) * self._scale
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            log_p = torch.log_softmax(logits, dim=-1)
            chosen = log_p.gather(1, targets[:, None])[:, 0]
            detached = log_p.detach()
            return chosen, -(detached.exp() * detached).sum(-1) if entropy else detached.new_empty(0)

        vocabulary = int(causal_lm(self.net).config.vocab_size)
        step = max(1, _CHUNK_ELEMENTS // vocabulary)
        # At least one part, so that a micro-batch with nothing to learn runs through the same modules on every rank.
        spans = [slice(b, b + step) for b in range(0, max(hidden.shape[0], 1), step)]
        if len(spans) == 1:
            return part(hidden, targets)
        parts = [checkpoint(part, hidden[s], targets[s], use_reentrant=False) for s in spans]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


# --- the service that objectives see --------------------------------------------------------------------------------


class PhaseModels:
    """`luthier.methods.api.Models`: the trained network as "policy", frozen extras by role."""

    def __init__(self, policy: nn.Module, frozen: Mapping[str, nn.Module] | None = None) -> None:
        self._policies: dict[str, nn.Module] = {"policy": policy, **(frozen or {})}

    def _find(self, role: str) -> nn.Module:
        if role not in self._policies:
            raise MethodError(
                f"the phase has no model for role {role!r} (it has {', '.join(sorted(self._policies))})",
                fix="bind the role in the phase's `models`",
            )
        return self._policies[role]

    def logprobs(self, batch: Batch, *, role: str = "policy", entropy: bool = False) -> TokenLogprobs:
        """Log-probabilities of learned tokens; positions with nothing to learn never reach the LM head."""
        placed = getattr(batch, "positions", None)
        positions = placed if placed is not None and placed.fits(batch) else learned_positions(batch)
        targets = batch.labels[positions.rows, positions.predictors + 1]
        arguments = (
            batch.input_ids, batch.position_ids if batch.packed else None, positions.rows, positions.predictors, targets, entropy
        )  # fmt: skip
        if role == "policy":
            logprobs, entropies = self._find(role)(*arguments)
        else:
            with torch.no_grad():
                logprobs, entropies = self._find(role)(*arguments)
        return TokenLogprobs(logprobs, positions.rows, positions.segments, entropies if entropy else None)

    def network(self, role: str = "policy") -> nn.Module:
        """The network itself, for what the services do not cover."""
        found = self._find(role)
        root = getattr(found, "module", found)
        return root.net if isinstance(root, Policy) else root
