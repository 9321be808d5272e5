"""How far a job is: `luthier.v1.Progress` as plain JSON, from phase facts and samples; and what a second of it is charged to. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.controller.lineage import Place, start_place
from luthier.controller.store.records import GenerationRecord, JobRecord

__all__ = ["Pace", "SampleRow", "after_phase_done", "after_phase_started", "after_samples", "phase_cause", "reached_before"]

_CAUSE_OF_KIND = {"train": "PRODUCTIVE", "scan": "PRODUCTIVE", "build": "PRODUCTIVE", "evaluate": "EVALUATING", "generate": "GENERATING"}


def phase_cause(kind: str) -> str:
    """What wall time in a phase of this kind is charged to."""
    return _CAUSE_OF_KIND.get(kind, "PRODUCTIVE")


def reached_before(chain: Sequence[GenerationRecord]) -> Place | None:
    """The farthest place that an earlier generation of the chain had completed and that the last one does again; None when it
    starts where the job had come to."""
    if len(chain) < 2:
        return None
    reached = max((g.phase_index, g.last_step) for g in chain[:-1])
    return reached if reached > start_place(chain[-1]) else None


@dataclass(frozen=True)
class SampleRow:
    """One row of `luthier.v1.Samples`, with its time in UTC seconds."""

    phase_index: int
    step: int
    plan_step: int
    total_steps: int
    time: float
    values: Mapping[str, float]


@dataclass
class Pace:
    """How fast the present phase goes: the last steps of one job, in memory only."""

    phase_index: int = -1
    points: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=32))
    """(step, time)."""

    def add(self, row: SampleRow) -> None:
        """Take a row of a step; an evaluation's row at the same step changes nothing."""
        if row.phase_index != self.phase_index or (self.points and row.step < self.points[-1][0]):
            self.phase_index = row.phase_index
            self.points.clear()
        if not self.points or row.step > self.points[-1][0]:
            self.points.append((row.step, row.time))

    def seconds_per_step(self) -> float | None:
        """Mean over the remembered steps; None before two of them."""
        if len(self.points) < 2:
            return None
        (first_step, first_time), (last_step, last_time) = self.points[0], self.points[-1]
        return max(0.0, last_time - first_time) / (last_step - first_step)


def after_phase_started(
    job: JobRecord, *, index: int, kind: str, title: str, total_steps: int, start_step: int, device: str
) -> dict[str, Any]:
    """Progress at the start of a phase. A phase without steps leaves the steps of the one before to be seen."""
    progress = {k: v for k, v in job.progress.items() if k != "eta"}
    progress |= {"phase": title or kind, "phase_index": index}
    if total_steps:
        progress |= {"step": start_step, "total_steps": total_steps}
    progress["fraction"] = start_step / total_steps if total_steps else float(progress.get("fraction") or 0.0) if kind != "train" else 0.0
    if device:
        progress["device"] = device
    return progress


def after_phase_done(job: JobRecord, *, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Progress at the end of a phase. A Train phase tells its steps, which an early stop makes fewer than planned."""
    progress = dict(job.progress)
    loss = metrics.get("eval_loss")
    if loss is not None and math.isfinite(loss):
        progress["eval_loss"] = loss
    if steps := int(metrics.get("steps") or 0):
        progress |= {"step": steps, "total_steps": steps, "fraction": 1.0}
    progress.pop("eta", None)
    return progress


def after_samples(job: JobRecord, rows: Sequence[SampleRow], pace: Pace) -> dict[str, Any]:
    """Progress after some rows of the current generation, in order."""
    progress = dict(job.progress)
    for row in rows:
        pace.add(row)
        for name, key in (("loss", "loss"), ("eval_loss", "eval_loss"), ("tokens_per_second", "tokens_per_second")):
            value = row.values.get(name)
            if value is not None and math.isfinite(value):
                progress[key] = value
    last = rows[-1]
    if last.phase_index < int(progress.get("phase_index") or 0):
        return progress  # samples may be written after the fact that began the next phase: that one is where the job stands
    progress |= {"phase_index": last.phase_index, "step": last.step}
    if last.total_steps:
        progress["total_steps"] = last.total_steps
        progress["fraction"] = min(1.0, last.step / last.total_steps)
        seconds = pace.seconds_per_step()
        if seconds is not None:
            progress["eta"] = f"{max(0.0, (last.total_steps - last.step) * seconds):.3f}s"
    return progress
