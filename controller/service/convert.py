"""Records to protos. Specifications are converted in `luthier.spec.convert` and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from luthier.controller.store.records import (
    TERMINAL,
    AttemptRecord,
    CheckpointRecord,
    EventRecord,
    GenerationRecord,
    JobRecord,
    JobState,
    NodeRecord,
    SamplePoint,
)
from luthier.controller.store.rows import to_micros
from luthier.spec.convert import from_plain, spec_to_proto
from luthier.spec.models import JobSpec
from luthier.v1 import job_pb2, job_service_pb2, spec_pb2

__all__ = [
    "attempt_to_proto",
    "checkpoint_id",
    "checkpoint_to_proto",
    "event_to_proto",
    "job_to_proto",
    "series_to_proto",
    "spec_bytes",
    "to_timestamp",
]


def to_timestamp(seconds: float) -> Timestamp:
    """The Timestamp of UTC seconds, to the microsecond."""
    whole, micros = divmod(to_micros(seconds), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1000)


def _duration(micros: int) -> Duration:
    whole, rest = divmod(micros, 1_000_000)
    return Duration(seconds=whole, nanos=rest * 1000)


def spec_bytes(spec: JobSpec) -> bytes:
    """The specification as it is stored beside its JSON, so that reads need no conversion."""
    return spec_to_proto(spec).SerializeToString(deterministic=True)


def _spec(job: JobRecord) -> spec_pb2.JobSpec:
    if job.spec_wire:
        return spec_pb2.JobSpec.FromString(job.spec_wire)
    return spec_to_proto(JobSpec.model_validate(job.spec))


def job_to_proto(job: JobRecord, *, now: float, waiting: job_pb2.Waiting | None = None) -> job_pb2.Job:
    """A job as the API shows it at `now`. `waiting`: what the scheduler knows beyond the record."""
    pb = job_pb2.Job(
        name=f"jobs/{job.name}",
        uid=job.uid,
        tenant=job.tenant,
        display_name=job.display_name,
        labels=dict(job.labels),
        spec=_spec(job),
        state=str(job.state),
        attempt=job.attempt,
        generation=job.generation,
        etag=str(job.version),
        create_time=to_timestamp(job.create_time),
        update_time=to_timestamp(job.update_time),
        cause_times=_cause_times(job, now),
        budget_used=dict(job.budget_used),
        num_nodes=job.num_nodes,
        dependencies=[
            job_pb2.Dependency(job=f"jobs/{d['job']}", uid=d.get("uid", ""), artifact=d.get("artifact", ""), digest=d.get("digest", ""))
            for d in job.dependencies
        ],
    )
    if job.state in (JobState.QUEUED, JobState.STARTING):
        if waiting is not None:
            pb.waiting.CopyFrom(waiting)
        elif job.waiting_reason:
            pb.waiting.CopyFrom(_waiting(job))
    if job.failure is not None and job.state == JobState.FAILED:
        pb.failure.CopyFrom(from_plain(job.failure, job_pb2.Failure))
    if job.progress:
        pb.progress.CopyFrom(from_plain(job.progress, job_pb2.Progress))
    if job.result is not None and job.state == JobState.SUCCEEDED:
        pb.result.CopyFrom(from_plain(job.result, job_pb2.Result))
    if job.start_time is not None:
        pb.start_time.CopyFrom(to_timestamp(job.start_time))
    if job.end_time is not None:
        pb.end_time.CopyFrom(to_timestamp(job.end_time))
    return pb


def _waiting(job: JobRecord) -> job_pb2.Waiting:
    pb = job_pb2.Waiting(reason=job.waiting_reason, message=job.waiting_message)
    if job.retry_at is not None:
        pb.retry_time.CopyFrom(to_timestamp(job.retry_at))
    return pb


def _cause_times(job: JobRecord, now: float) -> list[job_pb2.CauseTime]:
    """Charged times plus the stretch under way: they sum to the wall time since creation exactly, in microseconds."""
    micros = {cause: to_micros(seconds) for cause, seconds in job.cause_seconds.items()}
    if job.state not in TERMINAL:
        micros[job.cause] = micros.get(job.cause, 0) + max(0, to_micros(now) - to_micros(job.cause_since))
    return [job_pb2.CauseTime(cause=cause, duration=_duration(spent)) for cause, spent in sorted(micros.items()) if spent]


def event_to_proto(event: EventRecord) -> job_pb2.Event:
    """An event as the API shows it."""
    pb = job_pb2.Event(
        sequence=event.sequence,
        revision=event.revision,
        job=f"jobs/{event.job_name}",
        job_uid=event.job_uid,
        create_time=to_timestamp(event.time),
        type=event.type,
        message=event.message,
        severity=event.severity,
        attempt=event.attempt,
        generation=event.generation,
        state=event.state or None,
    )
    if event.node is not None:
        pb.node = event.node
    if event.details:
        pb.details.update(dict(event.details))
    return pb


def _end_cause(name: str) -> str:
    return f"END_CAUSE_{name or 'UNSPECIFIED'}"


def attempt_to_proto(
    job: JobRecord, attempt: AttemptRecord, generations: Sequence[GenerationRecord], nodes: Sequence[NodeRecord]
) -> job_pb2.Attempt:
    """An attempt with its generations and nodes."""
    pb = job_pb2.Attempt(
        name=f"jobs/{job.name}/attempts/{attempt.number}",
        number=attempt.number,
        end_cause=_end_cause(attempt.end_cause),
        message=attempt.message,
        create_time=to_timestamp(attempt.create_time),
        executor=attempt.executor,
        generations=[_generation(generation) for generation in generations],
        nodes=[_node(node) for node in nodes],
    )
    if attempt.end_time is not None:
        pb.end_time.CopyFrom(to_timestamp(attempt.end_time))
    if attempt.close_time is not None:
        pb.close_time.CopyFrom(to_timestamp(attempt.close_time))
    return pb


def _generation(generation: GenerationRecord) -> job_pb2.Generation:
    pb = job_pb2.Generation(
        number=generation.number,
        create_time=to_timestamp(generation.create_time),
        end_cause=_end_cause(generation.end_cause),
        resume_from=_place(generation.resume_from),
        start_step=generation.start_step,
        last_step=generation.last_step,
    )
    if generation.end_time is not None:
        pb.end_time.CopyFrom(to_timestamp(generation.end_time))
    return pb


def _place(candidate: Mapping[str, Any] | None) -> str:
    """`a<k>g<g>/<phase>/step-<n>` of a stored checkpoint candidate."""
    if not candidate:
        return ""
    fence = candidate.get("fence") or {}
    place = f"a{fence.get('attempt', 0)}g{fence.get('generation', 0)}"
    return f"{place}/{candidate.get('phase_index', 0)}/step-{candidate.get('step', 0)}"


def _node(node: NodeRecord) -> job_pb2.Node:
    pb = job_pb2.Node(
        index=node.index,
        incarnation=node.incarnation,
        host=node.host,
        metrics_port=node.metrics_port,
        state=node.state,
        handle=node.handle,
    )
    if node.exit_code is not None:
        pb.exit_code = node.exit_code
    return pb


def checkpoint_id(checkpoint: CheckpointRecord) -> str:
    """Last segment of a checkpoint's name."""
    return f"a{checkpoint.attempt}g{checkpoint.generation}-p{checkpoint.phase_index}-step-{checkpoint.step}"


def checkpoint_to_proto(job: JobRecord, checkpoint: CheckpointRecord) -> job_pb2.Checkpoint:
    """A checkpoint as the API shows it."""
    pb = job_pb2.Checkpoint(
        name=f"jobs/{job.name}/checkpoints/{checkpoint_id(checkpoint)}",
        attempt=checkpoint.attempt,
        generation=checkpoint.generation,
        phase_index=checkpoint.phase_index,
        step=checkpoint.step,
        size_bytes=checkpoint.size_bytes,
        digest=checkpoint.digest,
        create_time=to_timestamp(checkpoint.time),
        path=checkpoint.path,
        removed=checkpoint.removed,
    )
    if checkpoint.eval_loss is not None:
        pb.eval_loss = checkpoint.eval_loss
    return pb


def series_to_proto(name: str, points: Sequence[SamplePoint]) -> job_service_pb2.Series:
    """One series."""
    point = job_service_pb2.Series.Point
    return job_service_pb2.Series(
        name=name,
        points=[point(step=p.step, value=p.value, min=p.min, max=p.max, time=to_timestamp(p.time)) for p in points],
    )
