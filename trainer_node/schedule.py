"""The learning rate of a step: linear warm-up, then cosine, linear or constant. Pure arithmetic, no state.

Step numbers count from 0; the rate of step s is used for the update that completes step s + 1. Warm-up reaches the peak at step
`warmup_steps`, and the first step already learns: rate(0) = peak / (warmup_steps + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over `total_steps` optimiser steps."""

    name: Literal["cosine", "linear", "constant"]
    peak: float
    """Largest rate, reached after the warm-up."""
    total_steps: int
    warmup_steps: int
    final_ratio: float
    """Rate of the last step as a fraction of the peak; constant schedules ignore it."""

    @classmethod
    def make(
        cls, name: Literal["cosine", "linear", "constant"], peak: float, total_steps: int, warmup_steps: int | None, final_ratio: float
    ) -> Schedule:
        """With `warmup_steps` None: 3 % of the steps. A warm-up longer than the run is cut to the run."""
        warmup = math.ceil(0.03 * total_steps) if warmup_steps is None else warmup_steps
        return cls(name, peak, max(total_steps, 1), min(warmup, max(total_steps - 1, 0)), final_ratio)

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0). Steps beyond the end keep the final rate."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        if self.name == "constant":
            return self.peak
        decay_steps = max(self.total_steps - 1 - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / decay_steps, 1.0)
        remaining = 0.5 * (1 + math.cos(math.pi * progress)) if self.name == "cosine" else 1 - progress
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * remaining)
