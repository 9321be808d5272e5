"""UpdateJob: which fields may change, and the change itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from luthier.controller.service.convert import job_to_proto, spec_bytes
from luthier.controller.service.names import job_of, wrong_field
from luthier.controller.service.submit import Premises, check_display_name, check_labels, check_place
from luthier.controller.service.verbs import check_etag, find
from luthier.controller.store.api import Transaction
from luthier.controller.store.records import JobRecord, JobState
from luthier.errors import FieldViolation, IllegalState, SpecError
from luthier.spec.convert import spec_from_proto
from luthier.spec.resolve import resolve
from luthier.v1 import job_pb2, job_service_pb2

__all__ = ["MUTABLE", "changed_fields", "update"]

MUTABLE = ("display_name", "labels", "spec.scheduling", "spec.faults", "spec.resources.nodes")
"""Fields that may change, with everything below them."""
_OUTPUT_ONLY = frozenset(field.name for field in job_pb2.Job.DESCRIPTOR.fields if field.name not in ("display_name", "labels", "spec"))


def update(tx: Transaction, tenant: str, request: job_service_pb2.UpdateJobRequest, premises: Premises) -> JobRecord:
    """Apply an update and return the job."""
    job = find(tx, tenant, job_of(request.job.name, "job.name"))
    changes, paths = changed_fields(job, request, premises, tx.now)
    if not changes:
        return job
    changed = tx.update_job(job.uid, **changes)
    tx.append_event(job.uid, "UPDATED", f"changed by the user: {', '.join(paths)}", details={"fields": list(paths)})
    return changed


def changed_fields(
    job: JobRecord, request: job_service_pb2.UpdateJobRequest, premises: Premises, now: float
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the request changes in the record, and the paths it names. Raises for stale, immutable, unknown and wrong fields."""
    check_etag(job, request.job.etag)
    current = job_to_proto(job, now=now)
    paths = _paths(job, request, current)
    if job.state not in (JobState.QUEUED, JobState.PAUSED):
        raise IllegalState(
            f"job {job.name!r} is {job.state} and cannot be changed",
            fix="only a queued or paused job can be changed; pause it first",
            metadata={"job": job.name, "state": str(job.state)},
        )
    wanted = job_pb2.Job()
    wanted.CopyFrom(current)
    FieldMask(paths=paths).MergeMessage(request.job, wanted, True, True)
    found = check_labels(dict(wanted.labels)) + check_display_name(wanted.display_name)
    spec = resolve(spec_from_proto(wanted.spec))
    found += check_place(spec, premises)
    if found:
        raise SpecError(f"{found[0].field}: {found[0].description}", violations=found, fix=found[0].fix)
    new = {
        "display_name": wanted.display_name,
        "labels": dict(wanted.labels),
        "spec": spec.model_dump(mode="json"),
        "spec_wire": spec_bytes(spec),
        "queue": spec.scheduling.queue,
        "priority": spec.scheduling.priority,
    }
    changes = {name: value for name, value in new.items() if value != getattr(job, name)}
    if job.wanted_nodes is not None and not spec.resources.nodes.min <= job.wanted_nodes <= spec.resources.nodes.max:
        changes["wanted_nodes"] = None
    return changes, tuple(paths)


def _paths(job: JobRecord, request: job_service_pb2.UpdateJobRequest, current: job_pb2.Job) -> list[str]:
    """The paths to copy. An unset mask means all populated fields that may change; the others must be as they are."""
    masked = list(request.update_mask.paths)
    if not masked:
        return _populated(job, request.job, current)
    if masked == ["*"]:
        _refuse(job, _differing(request.job, current, [p for p in _leaves(request.job) if not _mutable(p) and not _output_only(p)]))
        return list(MUTABLE)
    unknown = [path for path in masked if not _exists(path)]
    if unknown:
        fix = f"fields that may change: {', '.join(MUTABLE)}"
        raise wrong_field("update_mask", f"there is no field {unknown[0][:100]!r}", fix)
    _refuse(job, [path for path in masked if not _mutable(path)])
    return masked


def _populated(job: JobRecord, given: job_pb2.Job, current: job_pb2.Job) -> list[str]:
    leaves = [path for path in _leaves(given) if not _output_only(path)]
    _refuse(job, _differing(given, current, [path for path in leaves if not _mutable(path)]))
    return [path for path in leaves if _mutable(path)]


def _refuse(job: JobRecord, paths: Sequence[str]) -> None:
    if not paths:
        return
    found = [FieldViolation(f"job.{path}", "it cannot change any more", f"fields that may change: {', '.join(MUTABLE)}") for path in paths]
    raise ImmutableField(
        f"{', '.join(paths[:5])} of job {job.name!r} cannot change after creation",
        violations=found,
        fix=f"submit a new job; what may change: {', '.join(MUTABLE)}",
        metadata={"job": job.name, "field": paths[0]},
    )


class ImmutableField(SpecError):
    """A field that cannot change any more; carries the paths like any other wrong field."""

    code = "FAILED_PRECONDITION"
    reason = "IMMUTABLE_FIELD"


def _mutable(path: str) -> bool:
    return any(path == prefix or path.startswith(prefix + ".") for prefix in MUTABLE)


def _output_only(path: str) -> bool:
    return path.partition(".")[0] in _OUTPUT_ONLY


def _differing(given: job_pb2.Job, current: job_pb2.Job, paths: Sequence[str]) -> list[str]:
    """Paths whose given value is not the present one."""
    different = []
    for path in paths:
        probe = job_pb2.Job()
        probe.CopyFrom(current)
        FieldMask(paths=[path]).MergeMessage(given, probe, True, True)
        if probe != current:
            different.append(path)
    return different


def _leaves(message: Message, prefix: str = "") -> Iterator[str]:
    """Paths of populated fields, down to scalars, lists, maps, and messages of other packages."""
    for field, value in message.ListFields():
        path = prefix + field.name
        inner = field.message_type
        if inner is not None and not field.is_repeated and inner.full_name.startswith("luthier.v1."):
            yield from _leaves(value, path + ".")
        else:
            yield path


def _exists(path: str) -> bool:
    """Whether the path names a field of a job, without going through lists and maps."""
    descriptor: Any = job_pb2.Job.DESCRIPTOR
    for part in path.split("."):
        field = None if descriptor is None else descriptor.fields_by_name.get(part)
        if field is None:
            return False
        descriptor = None if field.is_repeated else field.message_type
    return True
