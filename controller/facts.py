"""What each fact of a node does to the store, in the transaction that acknowledges it.

NodeService writes observations only: no fact changes a job's state here. A fact of an older generation is recorded and changes
nothing; between the end of an attempt and its close all facts are records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import json_format

from luthier.controller.cause import EXIT_LEFT
from luthier.controller.lineage import start_place
from luthier.controller.progress import after_phase_done, after_phase_started, phase_cause, reached_before
from luthier.controller.store.api import Transaction
from luthier.controller.store.records import (
    ArtifactRecord,
    AttemptRecord,
    CheckpointRecord,
    GenerationRecord,
    JobRecord,
    JobState,
    NodeRecord,
    RankEndRecord,
)
from luthier.v1 import node_service_pb2 as pb

__all__ = ["apply_fact", "candidate_json", "head_json", "shift_time"]

_CHARGED = (JobState.STARTING, JobState.RUNNING)
"""States in which phase facts steer what wall time is charged to; in the others the state itself says it."""

_STACK_CHARACTERS = 16_384


def _fence_json(fence: pb.Fence) -> dict[str, int]:
    return {"attempt": fence.attempt, "generation": fence.generation}


def candidate_json(candidate: pb.CheckpointCandidate) -> dict[str, Any]:
    """A checkpoint candidate as it is stored: numbers are numbers, names as in the proto."""
    return {
        "fence": _fence_json(candidate.fence),
        "phase_index": candidate.phase_index,
        "step": candidate.step,
        "digest": candidate.digest,
        "path": candidate.path,
    }


def head_json(head: pb.JournalHead) -> dict[str, Any]:
    """A journal head as it is stored."""
    return {"fence": _fence_json(head.fence), "index": head.index, "digest": head.digest, "path": head.path}


@dataclass
class _Scene:
    """What a fact is about."""

    tx: Transaction
    job: JobRecord
    attempt: AttemptRecord
    generation: GenerationRecord | None
    """The one of the fact's fence."""
    newest: bool
    node: NodeRecord
    fence: pb.Fence
    time: float

    @property
    def current(self) -> bool:
        """Whether the fact may change what happens next: newest generation, and both it and the attempt open."""
        return self.newest and self.generation is not None and self.generation.end_time is None and self.attempt.end_time is None

    def event(self, type: str, message: str, *, severity: str = "info", details: Mapping[str, Any] | None = None) -> None:
        self.tx.append_event(
            self.job.uid,
            type,
            message,
            severity=severity,
            attempt=self.fence.attempt,
            generation=self.fence.generation,
            node=self.node.index,
            details=details,
        )

    def update_generation(self, **changes: Any) -> None:
        self.generation = self.tx.update_generation(self.job.uid, self.fence.attempt, self.fence.generation, **changes)


def apply_fact(tx: Transaction, job: JobRecord, attempt: AttemptRecord, node: NodeRecord, fact: pb.Fact) -> None:
    """Carry out one fact. `node.acked` is the caller's."""
    generations = tx.generations(job.uid, attempt.number)
    generation = next((g for g in generations if g.number == fact.fence.generation), None)
    newest = bool(generations) and generations[-1].number == fact.fence.generation
    time = min(tx.now, tx.now - fact.age.ToNanoseconds() / 1e9)
    scene = _Scene(tx, job, attempt, generation, newest, node, fact.fence, time)
    kind = fact.WhichOneof("fact")
    # Section times are numbers only: the caller counts them.
    if kind is not None and (handler := _HANDLERS.get(kind)) is not None:
        handler(scene, getattr(fact, kind))


def _rank_exited(scene: _Scene, fact: pb.RankExited) -> None:
    end = RankEndRecord(
        job_uid=scene.job.uid,
        attempt=scene.fence.attempt,
        generation=scene.fence.generation,
        node=scene.node.index,
        rank=fact.rank,
        code=fact.code,
        message=fact.message,
        section=fact.section,
        step=fact.step,
        phase_index=fact.phase_index,
        log_lines=tuple(fact.log_lines[-50:]),
        hung=fact.hung,
        reaped=fact.reaped,
        time=scene.time,
    )
    if scene.generation is None or not scene.tx.insert_rank_end(end):
        return
    if (fact.phase_index, fact.step) > (scene.generation.phase_index, scene.generation.last_step):
        scene.update_generation(phase_index=fact.phase_index, last_step=fact.step)
    if fact.code == EXIT_LEFT and scene.newest:
        scene.tx.update_node(scene.job.uid, scene.fence.attempt, scene.node.index, left=True)
    if fact.code not in (0, EXIT_LEFT) and not fact.reaped:
        message = fact.message or ("was silent for too long and was killed" if fact.hung else f"exit code {fact.code}")
        details = {"rank": fact.rank, "code": fact.code, "section": fact.section, "step": fact.step, "hung": fact.hung}
        scene.event("RANK_ENDED", f"rank {fact.rank} ended: {message}", severity="error", details=details)


def _phase_started(scene: _Scene, fact: pb.PhaseStarted) -> None:
    title = fact.title or fact.kind
    details = {"index": fact.index, "kind": fact.kind, "total_steps": fact.total_steps, "start_step": fact.start_step}
    scene.event("PHASE_STARTED", f"phase {fact.index} ({title}) started", details={**details, "device": fact.device})
    if not scene.current or scene.node.index != 0:
        return
    assert scene.generation is not None
    place = max((fact.index, fact.start_step), (scene.generation.phase_index, scene.generation.last_step))
    scene.update_generation(phase_started=True, phase_index=place[0], last_step=place[1])
    progress = after_phase_started(
        scene.job,
        index=fact.index,
        kind=fact.kind,
        title=title,
        total_steps=fact.total_steps,
        start_step=fact.start_step,
        device=fact.device,
    )
    scene.job = scene.tx.update_job(scene.job.uid, progress=progress)
    if scene.job.state in _CHARGED:
        cause = phase_cause(fact.kind)
        again = reached_before(scene.tx.all_generations(scene.job.uid))
        if cause == "PRODUCTIVE" and again is not None and (fact.index, fact.start_step) < again:
            cause = "RECOMPUTED"
        scene.job = scene.tx.charge(scene.job.uid, cause)


def _phase_done(scene: _Scene, fact: pb.PhaseDone) -> None:
    metrics = dict(fact.metrics)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
    details = {"index": fact.index, "kind": fact.kind, "metrics": metrics}
    scene.event("PHASE_DONE", f"phase {fact.index} ({fact.kind}) done" + (f": {shown}" if shown else ""), details=details)
    if scene.current and scene.node.index == 0:
        assert scene.generation is not None
        scene.update_generation(phase_index=max(scene.generation.phase_index, fact.index))
        scene.job = scene.tx.update_job(scene.job.uid, progress=after_phase_done(scene.job, metrics=metrics))


def _checkpoint_committed(scene: _Scene, fact: pb.CheckpointCommitted) -> None:
    made, uid = fact.checkpoint, scene.job.uid
    scene.tx.put_checkpoint(
        CheckpointRecord(
            job_uid=uid,
            attempt=made.fence.attempt,
            generation=made.fence.generation,
            phase_index=made.phase_index,
            step=made.step,
            digest=made.digest,
            path=made.path,
            size_bytes=fact.size_bytes,
            time=scene.time,
            eval_loss=fact.eval_loss if fact.HasField("eval_loss") else None,
        )
    )
    scene.tx.mark_checkpoints_removed(uid, list(fact.removed))
    details = {"step": made.step, "phase_index": made.phase_index, "size_bytes": fact.size_bytes, "path": made.path}
    details |= {"stall_seconds": fact.stall_seconds, "persist_seconds": fact.persist_seconds}
    scene.event("CHECKPOINT_COMMITTED", f"checkpoint at step {made.step} is durable", details=details)
    if not scene.current:
        return
    name = f"jobs/{scene.job.name}/checkpoints/a{made.fence.attempt}g{made.fence.generation}-p{made.phase_index}-step-{made.step}"
    scene.job = scene.tx.update_job(uid, progress={**scene.job.progress, "checkpoint": name, "checkpoint_step": made.step})
    if scene.job.state in _CHARGED and fact.stall_seconds > 0:
        scene.job = shift_time(scene.tx, scene.job, "CHECKPOINT_STALL", fact.stall_seconds)


def shift_time(tx: Transaction, job: JobRecord, cause: str, seconds: float) -> JobRecord:
    """Move seconds that were charged to the present cause to another one; the sum over all causes stays the wall time."""
    if job.cause == cause:
        return job
    job = tx.charge(job.uid, job.cause)
    spent = dict(job.cause_seconds)
    moved = round(min(seconds, spent.get(job.cause, 0.0)), 6)
    if moved <= 0:
        return job
    spent[job.cause] = round(spent[job.cause] - moved, 6)
    spent[cause] = round(spent.get(cause, 0.0) + moved, 6)
    return tx.update_job(job.uid, cause_seconds=spent)


def _save_failed(scene: _Scene, fact: pb.SaveFailed) -> None:
    scene.event("SAVE_FAILED", f"no checkpoint at step {fact.step}: {fact.message}", severity="warning", details={"step": fact.step})
    if scene.current and fact.training_on and scene.job.state == JobState.PAUSING:
        scene.update_generation(save_failed=fact.message or "the save failed")


def _resumed_from(scene: _Scene, fact: pb.ResumedFrom) -> None:
    for path in fact.rejected:
        scene.event("CHECKPOINT_REJECTED", f"checkpoint {path} is broken and was not used", severity="warning", details={"path": path})
    start = candidate_json(fact.checkpoint) if fact.HasField("checkpoint") else None
    message = f"carries on from step {start['step']}" if start else "starts from the beginning"
    scene.event("RESUMED_FROM", message, details={"path": start["path"]} if start else None)
    if scene.newest and scene.generation is not None:
        generation = replace(scene.generation, resume_from=start)
        phase, step = start_place(generation)
        scene.update_generation(resume_from=start, start_step=step, last_step=step, phase_index=phase)


def _artifact(scene: _Scene, fact: pb.ArtifactMade) -> None:
    _put_artifact(scene, name=fact.name, kind=fact.kind, digest=fact.digest, path=fact.path, size_bytes=fact.size_bytes)
    scene.event("ARTIFACT_MADE", f"artifact {fact.name} ({fact.kind}) is durable", details={"name": fact.name, "path": fact.path})


def _put_artifact(scene: _Scene, **columns: Any) -> None:
    record = ArtifactRecord(
        job_uid=scene.job.uid, time=scene.time, attempt=scene.fence.attempt, generation=scene.fence.generation, **columns
    )
    scene.tx.put_artifact(record)


def _verdicts(scene: _Scene, fact: pb.Verdicts) -> None:
    counts = dict(fact.counts)
    shown = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    severity = "info" if set(counts) <= {"ok"} else "warning"
    scene.event("DATA_VERDICTS", f"rows: {shown}", severity=severity, details={"counts": counts, "offenders": list(fact.offenders)})


def _preflight(scene: _Scene, fact: pb.PreflightResult) -> None:
    result = {"passed": fact.passed, "message": fact.message, "user_error": fact.user_error, "code": fact.code}
    scene.tx.update_node(scene.job.uid, scene.fence.attempt, scene.node.index, preflight=result)
    if fact.passed:
        scene.event("PREFLIGHT_PASSED", f"node {scene.node.index} is fit", details={"seconds": dict(fact.seconds)})
    else:
        scene.event("PREFLIGHT_FAILED", fact.message, severity="error", details={"user_error": fact.user_error})


def _plan_finished(scene: _Scene, fact: pb.PlanFinished) -> None:
    """R4. A repeated one, one of another node, and one that comes too late are acknowledged and change nothing."""
    uid = scene.job.uid
    if scene.newest:
        scene.tx.update_node(uid, scene.fence.attempt, scene.node.index, finished=True)
    accepted = (JobState.STARTING, JobState.RUNNING, JobState.PAUSING)
    if scene.node.index != 0 or scene.job.plan_finished or not scene.current or scene.job.state not in accepted:
        return
    result = json_format.MessageToDict(fact.result)
    known = {a.name: a for a in scene.tx.artifacts(uid)}
    if result.get("uri") and "result" not in known:
        columns = {"kind": str(result.get("kind") or "model"), "digest": str(result.get("digest") or ""), "path": str(result["uri"])}
        _put_artifact(scene, name="result", **columns)
    scene.update_generation(end_time=scene.tx.now, end_cause="FINISHED", message="the plan finished")
    progress = {**scene.job.progress, "fraction": 1.0}
    progress.pop("eta", None)
    scene.tx.update_job(uid, plan_finished=True, result=result, progress=progress)
    scene.event("PLAN_FINISHED", "the plan finished and its result was accepted")


def _obeyed(scene: _Scene, fact: pb.Obeyed) -> None:
    uid, number, index = scene.job.uid, scene.fence.attempt, scene.node.index
    if fact.what == "formed":
        if scene.fence.generation > scene.node.formed:
            changes: dict[str, Any] = {"formed": scene.fence.generation, "left": False}
            if scene.node.state != "gone":
                changes["state"] = "running"
            scene.tx.update_node(uid, number, index, **changes)
    elif fact.what == "dump_stacks":
        for rank, stack in sorted(fact.stacks.items()):
            scene.event("STACKS", f"stacks of rank {rank}", details={"rank": rank, "stack": stack[:_STACK_CHARACTERS]})
    else:
        scene.event("DIRECTIVE_OBEYED", f"node {index} obeyed {fact.what}")


def _note(scene: _Scene, fact: pb.Note) -> None:
    severity = fact.severity if fact.severity in ("info", "warning", "error") else "info"
    scene.event(fact.type or "NOTE", fact.message, severity=severity, details=json_format.MessageToDict(fact.details))


_HANDLERS: dict[str, Any] = {
    "rank_exited": _rank_exited,
    "phase_started": _phase_started,
    "phase_done": _phase_done,
    "checkpoint_committed": _checkpoint_committed,
    "save_failed": _save_failed,
    "resumed_from": _resumed_from,
    "artifact": _artifact,
    "verdicts": _verdicts,
    "preflight": _preflight,
    "plan_finished": _plan_finished,
    "obeyed": _obeyed,
    "note": _note,
}
