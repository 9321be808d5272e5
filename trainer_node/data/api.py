"""The seam between data and loop: tokenised rows, and the order in which they are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BatchPlan", "MicroBatch", "TokenisedRows", "VerdictReport"]


@dataclass(frozen=True)
class VerdictReport:
    """Rows by verdict (ok, truncated, too_long, nothing_to_learn, template_error, malformed), and the first offenders by file:line."""

    counts: Mapping[str, int] = field(default_factory=dict)
    offenders: Sequence[str] = ()


class TokenisedRows(Protocol):
    """Rows as token ids, memory-mapped."""

    @property
    def digest(self) -> str:
        """Content key: sources, tokenizer, template, shape, length policy."""
        ...

    @property
    def verdicts(self) -> VerdictReport: ...

    @property
    def lengths(self) -> np.ndarray:
        """int32 [N], tokens per row."""
        ...

    @property
    def learned(self) -> np.ndarray:
        """int32 [N], learned tokens per row (those with a predecessor)."""
        ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids int32 [T], labels int32 [T] with -100 where nothing is learned)."""
        ...

    def prompt_and_answer(self, index: int) -> tuple[str, str]:
        """Prompt text up to the last learned span, and that span's text; for sampled evaluation."""
        ...

    def columns(self, index: int) -> Mapping[str, float]:
        """Per-sample columns beside the tokens."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """Row numbers by sequence: one row per sequence when padded, several when packed. Empty: nothing to learn (keeps ranks in step)."""

    index: int
    """Global micro-batch index within the step; seeds the random numbers."""
    sequences: tuple[tuple[int, ...], ...] = ()


class BatchPlan(Protocol):
    """A pure function of (seed, lengths, policy): global batches, independent of world size."""

    @property
    def steps_per_epoch(self) -> int: ...

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        """All micro-batches of global step `step` (from 0, over all epochs), in order; rank r takes r, r + W, …."""
        ...
