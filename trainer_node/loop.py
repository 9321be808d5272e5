"""The training loop: one for all methods.

A step, on every rank: take this rank's share of the global batch; agree on global counts, control word and saves with one integer
all-reduce; act on what was agreed (save, leave); scale every term by the global counts and run it backward; update; report. All ranks
run the same number of micro-batches; a rank that has too few runs empty ones. Random numbers depend on (seed, phase, step, number of
the micro-batch) alone, so there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import DataError, MethodError, NonFinite
from luthier.methods.api import Loss, Objective, emitting
from luthier.spec.models import EvaluationSpec, FaultSpec
from luthier.trainer_node.checkpoint import Checkpoints
from luthier.trainer_node.context import SAVE, SAVE_AND_LEAVE, STOP, LeaveRequested, RankContext
from luthier.trainer_node.control import Agreed, Control
from luthier.trainer_node.data.api import BatchPlan, MicroBatch, TokenisedRows
from luthier.trainer_node.data.collate import collate
from luthier.trainer_node.engine.api import Engine
from luthier.trainer_node.fragments import FragmentReader
from luthier.trainer_node.lineage import read_manifest
from luthier.trainer_node.logprobs import PhaseModels, PlacedBatch, place
from luthier.trainer_node.schedule import Schedule

__all__ = ["LoopState", "Training", "seed_everything", "share_of", "train"]

_MAX_SKIPPED_RUNNING = 20
"""Steps skipped one after another before the loop says that skipping does not help."""
_SAME_REQUEST_STEPS = 2
"""A second request to save within so many steps is the same one, which another rank saw a step later."""


@dataclass
class LoopState:
    """What a checkpoint stores of the loop. The only data state is the step: it is the index of the next global batch."""

    step: int = 0
    learned_tokens: int = 0
    skipped: list[int] = field(default_factory=list)
    """Global batches left out because of a gradient that was not finite."""
    best_eval_loss: float | None = None
    evaluations_without_gain: int = 0
    eval_loss: float | None = None
    eval_step: int = -1
    """Step of the newest evaluation."""


@dataclass
class Training:
    """Everything that one Train phase needs."""

    context: RankContext
    control: Control
    engine: Engine
    models: PhaseModels
    objective: Objective
    rows: TokenisedRows
    batches: BatchPlan
    schedule: Schedule
    checkpoints: Checkpoints
    evaluate: Callable[[], float | None] | None
    """Held-out loss, None when it was broken off because a rank is asked to leave; None: nothing is held out."""
    phase_index: int
    total_steps: int
    max_tokens: int | None
    """Learned tokens after which the phase ends; None: steps decide."""
    plan_step_before: int
    """Optimiser steps of earlier Train phases."""
    seed: int
    pad_token: int
    max_length: int
    packed: bool
    flops_per_token: float = 0.0
    peak_flops: float | None = None
    """Of this rank's device; None where it is not known, and then no MFU is reported."""
    state: LoopState = field(default_factory=LoopState)
    save_wanted: bool = False
    """A save was agreed on and waits for the one in flight; equal on every rank."""

    @property
    def faults(self) -> FaultSpec:
        return self.context.spec.faults

    @property
    def evaluation(self) -> EvaluationSpec:
        return self.context.spec.evaluation


def train(job: Training) -> LoopState:
    """Run the phase to its end. Raises `LeaveRequested`, `DataError` for nothing to learn, `NonFinite` by policy."""
    group, engine, state = job.context.group, job.engine, job.state
    report = _Report(job)
    start_step, running_skips = state.step, 0
    while not _finished(job):
        step = state.step
        job.context.channel.beat("step", step)
        micros = _my_micros(job, step)
        agreed = _agree(job, micros)
        _act(job, agreed, start_step)
        _check_counts(agreed, step)

        if step in state.skipped:  # after a rewind: this batch broke the run before
            state.step += 1
            continue
        loss = torch.zeros((), device=job.context.device)
        for micro in micros:
            seed_everything(job.seed, job.phase_index, step, micro.index)
            loss += _backward(job, micro.batch, agreed.counts, report)
        result = engine.step(job.schedule.rate(step))

        if result.applied:
            running_skips = 0
            state.step += 1
            state.learned_tokens += _learned(agreed)
        else:
            running_skips += 1
            step_before = state.step
            _not_finite(job, running_skips)
            if state.step < step_before:  # rewound
                report.restart()
                continue
        report.step(loss, result.grad_norm, result.applied, agreed)
        if _evaluation_due(job):
            _evaluate(job, report)
    if not job.checkpoints.finish():
        job.checkpoints.report_failure(state.step, training_on=False)
    group.barrier()
    return state


def _finished(job: Training) -> bool:
    state, stop = job.state, job.evaluation.early_stop
    if job.max_tokens is not None and state.learned_tokens >= job.max_tokens:
        return True
    if stop is not None and state.evaluations_without_gain >= stop.patience:
        return True
    return job.max_tokens is None and state.step >= job.total_steps


# --- one step -------------------------------------------------------------------------------------------------------


def share_of(micros: Sequence[MicroBatch], rank: int, world_size: int) -> list[MicroBatch]:
    """This rank's micro-batches, as many as every other rank's; missing ones are empty."""
    rounds = -(-len(micros) // world_size)
    wanted = range(rank, rounds * world_size, world_size)
    return [micros[index] if index < len(micros) else MicroBatch(index) for index in wanted]


def seed_everything(seed: int, phase: int, step: int, micro: int) -> None:
    """Seed every generator from what the coming micro-batch is, whatever was drawn before."""
    digest = hashlib.blake2b(f"{seed}/{phase}/{step}/{micro}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 1
    # Not torch.manual_seed: without an accelerator it queues a call with a stack trace for every kind of device, which costs
    # milliseconds and memory each time.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    np.random.seed(number % 2**32)
    random.seed(number)


@dataclass(frozen=True)
class _Micro:
    """One forward pass: its number in the global batch, its tensors, and its counts, taken before it went to the device."""

    index: int
    batch: PlacedBatch
    counts: Mapping[str, int]


def _my_micros(job: Training, step: int) -> list[_Micro]:
    group = job.context.group
    micros = []
    for micro in share_of(job.batches.micro_batches(step), group.rank, group.world_size):
        batch = collate(micro, job.rows, pad_token=job.pad_token, max_length=job.max_length, packed=job.packed, device=job.context.device)
        counts = job.objective.counts(batch)
        micros.append(_Micro(micro.index, place(batch, job.context.device), counts))
    return micros


def _agree(job: Training, micros: Sequence[_Micro]) -> Agreed:
    counts: dict[str, int] = {"micro_batches": 0}
    flags = {"real": 0, "positions": 0, "learned": 0}
    for micro in micros:
        for name, count in micro.counts.items():
            counts[name] = counts.get(name, 0) + int(count)
        counts["micro_batches"] += int(micro.batch.num_learned > 0)
        flags["learned"] += micro.batch.num_learned
        flags["real"] += micro.batch.num_tokens
        flags["positions"] += micro.batch.input_ids.numel()
    written, failed = job.checkpoints.votes()
    due = job.context.group.rank == 0 and job.checkpoints.seconds_since_begin() >= job.faults.checkpoint.every
    return job.control.agree(counts, {**flags, "due": int(due), "written": written, "failed": failed})


def _act(job: Training, agreed: Agreed, start_step: int) -> None:
    """Commit what is written; save or leave. The state is the one after `step` completed steps, on every rank."""
    checkpoints, state = job.checkpoints, job.state
    if checkpoints.advance(agreed.flags["written"], agreed.flags["failed"]) is False:
        checkpoints.report_failure(state.step, training_on=False)
    if agreed.word == STOP:
        raise LeaveRequested(saved=False)
    if agreed.word == SAVE_AND_LEAVE:
        _save_and_leave(job, start_step)
    every = job.faults.checkpoint.every_steps
    by_step = every > 0 and state.step % every == 0
    job.save_wanted |= agreed.word == SAVE or by_step or agreed.flags["due"] > 0
    if job.save_wanted and not checkpoints.in_flight:
        # Nothing to save before the first step; a request that reached another rank a step later is answered already.
        if state.step > max(start_step, checkpoints.begun_step + (_SAME_REQUEST_STEPS if agreed.word == SAVE else 0)):
            _begin_save(job)
        job.save_wanted = False


def _begin_save(job: Training) -> None:
    state = job.state
    eval_loss = state.eval_loss if state.eval_step == state.step else None
    job.checkpoints.begin(job.engine, state.step, vars(state), eval_loss)


def _save_and_leave(job: Training, start_step: int) -> None:
    """Every rank saves, waits for the commit and agrees: leave, unless the save failed and nobody has to."""
    checkpoints, state = job.checkpoints, job.state
    if checkpoints.in_flight and not checkpoints.finish():
        checkpoints.report_failure(state.step, training_on=False)
    must_leave = job.control.must_leave()
    grace = job.context.channel.grace()
    short = grace is not None and grace < 1.5 * checkpoints.last_save_seconds
    if job.context.group.max_ints([int(short)])[0]:
        raise LeaveRequested(saved=False)  # the last commit has to do
    saved = state.step in (start_step, checkpoints.committed_step)  # nothing was learned since
    if not saved:
        _begin_save(job)
        saved = checkpoints.finish()
    if saved or must_leave:
        if not saved:
            checkpoints.report_failure(state.step, training_on=False)
        raise LeaveRequested(saved=saved)
    checkpoints.report_failure(state.step, training_on=True)


def _check_counts(agreed: Agreed, step: int) -> None:
    if _learned(agreed) == 0 and not any(count for name, count in agreed.counts.items() if name != "micro_batches"):
        raise DataError(
            f"the global batch of step {step} has nothing to learn: every token of its rows is masked", where="data",
            fix="check that rows have answers within training.max_length, or raise training.batch_size",
        )  # fmt: skip


def _learned(agreed: Agreed) -> int:
    return agreed.flags["learned"]


def _backward(job: Training, batch: PlacedBatch, counts: Mapping[str, int], report: _Report) -> Tensor:
    """Forward and backward of one micro-batch; returns its detached part of the global loss."""
    with emitting(batch) as emitted:
        loss = job.objective(job.models, batch)
        terms = {**loss.terms, **emitted.take()}
        total = None
        for name, term in terms.items():
            part = term.sum * (term.coefficient / _count_of(counts, term.count, name))
            total = part if total is None else total + part
            report.add(f"loss_{name}" if len(terms) > 1 else "", part)
        _add_metrics(loss, counts, report)
        if total is None:
            raise MethodError("the objective returned no loss term", where=type(job.objective).__name__)
        job.engine.backward(total)
    return total.detach()


def _add_metrics(loss: Loss, counts: Mapping[str, int], report: _Report) -> None:
    for name, term in loss.metrics.items():
        report.add(name, term.sum * (term.coefficient / _count_of(counts, term.count, name)))


def _count_of(counts: Mapping[str, int], name: str, term: str) -> int:
    if name not in counts:
        raise MethodError(
            f"term {term!r} is divided by count {name!r}, which the objective does not give (it gives {', '.join(sorted(counts))})",
            where="objective", fix="return the count from counts(batch)",
        )  # fmt: skip
    return max(counts[name], 1)  # a term without any sample sums to zero


# --- what may happen after a step -----------------------------------------------------------------------------------


def _not_finite(job: Training, running: int) -> None:
    """The engine has left the weights alone. Skip the batch, go back to the last checkpoint, or end, as the job says."""
    step, policy = job.state.step, job.faults.non_finite
    job.context.channel.gauges({"luthier_train_nonfinite_steps_total": 1.0} if job.context.group.rank == 0 else {})
    print(f"step {step}: loss or gradient is not finite ({policy})")
    if policy == "stop":
        raise NonFinite(
            f"loss or gradient of step {step} is not finite", where=f"step {step}",
            fix="lower training.optimizer.learning_rate, look at the rows of that batch, or set faults.non_finite: skip",
        )  # fmt: skip
    if running > _MAX_SKIPPED_RUNNING:
        raise NonFinite(
            f"{running} steps one after another were not finite; leaving batches out does not help", where=f"step {step}",
            fix="lower training.optimizer.learning_rate, or train in fp32",
        )  # fmt: skip
    if policy == "rewind":
        _rewind(job)
    else:
        job.state.skipped.append(step)
        job.state.step += 1


def _rewind(job: Training) -> None:
    """Load the last committed checkpoint of this phase into the engine; the batch that broke the run is left out from now on."""
    checkpoints, group, broken = job.checkpoints, job.context.group, job.state.step
    if not checkpoints.finish():
        checkpoints.report_failure(broken, training_on=False)
    newest = checkpoints.kept[-1].ref if checkpoints.kept and checkpoints.kept[-1].ref.phase_index == job.phase_index else None
    place_of = group.broadcast_json([newest.path, newest.digest] if newest else None)
    if place_of is None:
        raise NonFinite(
            f"loss or gradient of step {broken} is not finite, and there is no checkpoint to go back to", where=f"step {broken}",
            fix="set faults.checkpoint.every_steps, or faults.non_finite: skip",
        )  # fmt: skip
    manifest = read_manifest(job.context.launch.node.prefix / place_of[0], place_of[1])
    job.engine.load(FragmentReader(manifest.directory, int(manifest.content["optimizer_steps"])))
    skipped = sorted({*job.state.skipped, broken})
    vars(job.state).update(vars(LoopState(**manifest.content["loop"])))
    job.state.skipped = skipped


def _evaluation_due(job: Training) -> bool:
    every, step = job.evaluation.every_steps, job.state.step
    return job.evaluate is not None and every > 0 and step % every == 0 and step != job.state.eval_step


def _evaluate(job: Training, report: _Report) -> None:
    assert job.evaluate is not None
    state = job.state
    loss = job.evaluate()
    if loss is None:
        return  # the next step's agreement lets everybody leave
    state.eval_loss, state.eval_step = loss, state.step
    gain = job.evaluation.early_stop.min_delta if job.evaluation.early_stop else 0.0
    if state.best_eval_loss is None or loss < state.best_eval_loss - gain:
        state.best_eval_loss, state.evaluations_without_gain = loss, 0
    else:
        state.evaluations_without_gain += 1
    report.evaluation(loss)


# --- numbers --------------------------------------------------------------------------------------------------------


class _Report:
    """Collects numbers on the device and sends them every `log_every_steps`; only then is the device waited for."""

    def __init__(self, job: Training) -> None:
        self._job = job
        self._sums: dict[str, Tensor] = {}
        self._every = job.context.spec.training.log_every_steps
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        self._sums.clear()
        self._steps = self._real = self._positions = self._learned = 0
        self._loss = torch.zeros((), device=self._job.context.device)
        self._since = time.monotonic()

    def add(self, name: str, value: Tensor) -> None:
        """Add this rank's part of a global mean."""
        if name:
            detached = value.detach()
            self._sums[name] = self._sums[name] + detached if name in self._sums else detached

    def step(self, loss: Tensor, grad_norm: float, applied: bool, agreed: Agreed) -> None:
        """One step is done. Collective at the logging interval."""
        self._steps += 1
        self._real += agreed.flags["real"]
        self._positions += agreed.flags["positions"]
        self._learned += agreed.flags["learned"]
        self._loss = self._loss + loss
        job = self._job
        if job.state.step % self._every and not _finished(job):
            return
        names = sorted(self._sums)
        means = [float(self._loss), *(float(self._sums[name]) for name in names)]
        values = [value / self._steps for value in job.context.group.sum_floats(means)]
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        rate = job.schedule.rate(max(job.state.step - 1, 0))
        row = {
            "loss": values[0], "learning_rate": rate, "grad_norm": grad_norm, "tokens_per_second": self._real / seconds,
            "step_seconds": seconds / self._steps, "padding_ratio": 1 - self._real / max(self._positions, 1),
            "learned_ratio": self._learned / max(self._real, 1), "progress": self._progress(),
            **dict(zip(names, values[1:], strict=True)),
        }  # fmt: skip
        self._send({name: value for name, value in row.items() if math.isfinite(value)})
        self._gauges(row, seconds)
        self.restart()

    def evaluation(self, loss: float) -> None:
        """A held-out loss was measured; its time is no step's time."""
        self._send({"eval_loss": loss})
        if self._job.context.group.rank == 0:
            self._job.context.channel.gauges({"luthier_train_eval_loss": loss})
        self._since = time.monotonic()

    def _progress(self) -> float:
        job = self._job
        done = job.state.learned_tokens / job.max_tokens if job.max_tokens else job.state.step / max(job.total_steps, 1)
        return min(done, 1.0)

    def _send(self, values: Mapping[str, float]) -> None:
        job = self._job
        if job.context.group.rank == 0:
            row: dict[str, Any] = {"step": job.state.step, "phase_index": job.phase_index, "values": dict(values)}
            row |= {"total_steps": job.total_steps, "plan_step": job.plan_step_before + job.state.step}
            job.context.channel.samples([row])

    def _gauges(self, row: Mapping[str, float], seconds: float) -> None:
        """Every rank counts its share of the tokens; what is global comes from rank 0."""
        job = self._job
        values = {"luthier_train_tokens_total": self._real / job.context.group.world_size}
        values |= {f'luthier_train_gpu_memory_bytes{{kind="{kind}"}}': float(size) for kind, size in job.engine.memory().items()}
        if job.context.group.rank == 0:
            values |= {
                f"luthier_train_{name}": row[name]
                for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second")
                if math.isfinite(row[name])
            }
            if job.peak_flops:
                ranks = job.context.group.world_size
                values["luthier_train_mfu_ratio"] = self._real / seconds * job.flops_per_token / (job.peak_flops * ranks)
            values |= {"luthier_train_steps_total": float(self._steps), "luthier_train_step_duration_seconds": seconds / self._steps}
        job.context.channel.gauges(values)
