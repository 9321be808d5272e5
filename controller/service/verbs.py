"""Cancel, pause, resume, retry and delete, each as one function inside a transaction.

They only write state; what follows on the nodes is reconcile's. A verb whose goal is reached or under way returns the job, so that a
client may repeat it. Which edges exist is known to `store.states` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.controller.service.names import wrong_field
from luthier.controller.service.submit import addresses, pinned_dependencies
from luthier.controller.store.api import Transaction
from luthier.controller.store.records import TERMINAL, JobRecord, JobState
from luthier.errors import IllegalState, JobNotFound, StaleEtag
from luthier.spec.address import parse_address
from luthier.spec.models import JobSpec

__all__ = ["cancel", "check_etag", "delete", "find", "pause", "preview", "resume", "retry"]

S = JobState


def find(tx: Transaction, tenant: str, name: str) -> JobRecord:
    """The job. Raises `JobNotFound`, also for a job of another tenant."""
    job = tx.job_named(tenant, name)
    if job is None:
        raise JobNotFound(f"there is no job {name!r}", fix="list jobs with `luthier get`", metadata={"job": name})
    return job


def check_etag(job: JobRecord, etag: str) -> None:
    """Raise `StaleEtag` unless the etag is empty or current."""
    if etag and etag != str(job.version):
        raise StaleEtag(
            f"job {job.name!r} changed since it was read (etag {etag}, now {job.version})",
            fix="get the job again and repeat the change",
            metadata={"job": job.name, "etag": str(job.version)},
        )


def _illegal(job: JobRecord, verb: str, fix: str) -> IllegalState:
    return IllegalState(
        f"job {job.name!r} is {job.state} and cannot be {verb}", fix=fix, metadata={"job": job.name, "state": str(job.state)}
    )


def cancel(tx: Transaction, tenant: str, name: str, etag: str = "") -> JobRecord:
    """Towards CANCELLED; a job that is about to succeed stays as it is."""
    job = find(tx, tenant, name)
    check_etag(job, etag)
    if job.state in TERMINAL or job.state == S.CANCELLING or job.plan_finished:
        return job
    if job.state in (S.QUEUED, S.PAUSED):
        return tx.transition(job.uid, S.CANCELLED, message="cancelled by the user")
    return tx.transition(job.uid, S.CANCELLING, message="cancel asked for by the user; nodes are being stopped")


def pause(tx: Transaction, tenant: str, name: str) -> JobRecord:
    """Towards PAUSED; a pause during a preemption makes it a user's pause."""
    job = find(tx, tenant, name)
    if job.state == S.PAUSED:
        return job
    if job.state == S.PAUSING:
        if job.pause_cause == "user":
            return job
        tx.append_event(job.uid, "PAUSE_REQUESTED", "pause asked for by the user: the job stays paused once its nodes are gone")
        return tx.update_job(job.uid, pause_cause="user")
    if job.state in TERMINAL:
        raise _illegal(job, "paused", "it has ended already")
    if job.state == S.CANCELLING:
        raise _illegal(job, "paused", "it is being cancelled; a cancelled job can be started again with `luthier retry`")
    if job.plan_finished:
        return job
    if job.state == S.QUEUED:
        return tx.transition(job.uid, S.PAUSED, message="paused by the user")
    return tx.transition(job.uid, S.PAUSING, message="pause asked for by the user; nodes save and leave", pause_cause="user")


def resume(tx: Transaction, tenant: str, name: str, num_nodes: int | None = None) -> JobRecord:
    """Back to the queue, optionally with another number of nodes."""
    job = find(tx, tenant, name)
    if num_nodes is not None:
        nodes = JobSpec.model_validate(job.spec).resources.nodes
        if not nodes.min <= num_nodes <= nodes.max:
            fix = f"give {nodes.min} to {nodes.max}, or change spec.resources.nodes first"
            raise wrong_field("num_nodes", f"{num_nodes} is outside of {nodes.min} to {nodes.max}", fix)
    if job.state == S.PAUSED:
        changes: dict[str, Any] = {} if num_nodes is None else {"wanted_nodes": num_nodes}
        return tx.transition(job.uid, S.QUEUED, message="resumed by the user", **changes)
    if num_nodes is not None:
        raise _illegal(job, "resumed with another number of nodes", "pause it first and wait until it is PAUSED")
    if job.state in (S.QUEUED, S.STARTING, S.RUNNING):
        return job
    if job.state == S.PAUSING:
        raise _illegal(job, "resumed", "wait until it is PAUSED")
    raise _illegal(job, "resumed", "use `luthier retry` for a failed or cancelled job" if job.state != S.SUCCEEDED else "it has succeeded")


def retry(tx: Transaction, tenant: str, name: str) -> JobRecord:
    """Out of FAILED or CANCELLED: budgets, back-off and deadline start again, checkpoints stay."""
    job = find(tx, tenant, name)
    if job.state == S.QUEUED:
        return job
    if job.state not in (S.FAILED, S.CANCELLED):
        raise _illegal(job, "retried", "only a failed or cancelled job can be retried")
    return tx.transition(
        job.uid,
        S.QUEUED,
        message="retried by the user",
        budget_used={},
        last_end=None,
        excluded_hosts=(),
        micro_batch_size=0,
        plan_finished=False,
        result=None,
        retry_at=None,
        waiting_reason="",
        waiting_message="",
        pause_cause="",
        # The deadline counts wall time outside of pauses: all of it until now is taken out.
        paused_seconds=max(0.0, tx.now - job.create_time),
        dependencies=_renewed_dependencies(tx, job),
    )


def _renewed_dependencies(tx: Transaction, job: JobRecord) -> tuple[dict[str, str], ...]:
    """Dependencies that still exist stay pinned; one that was deleted is looked up by its name again."""
    kept = tuple(dict(d) for d in job.dependencies)
    if all(tx.job(d["uid"]) is not None for d in kept):
        return kept
    spec = JobSpec.model_validate(job.spec)
    renewed = pinned_dependencies(tx, job.tenant, [(field, parse_address(uri, field)) for field, uri in addresses(spec)])
    by_uid = {(d["uid"], d.get("artifact", "")): d for d in kept}
    return tuple(by_uid.get((d["uid"], d["artifact"]), d) for d in renewed)


def delete(tx: Transaction, tenant: str, name: str, etag: str = "") -> JobRecord:
    """Remove a terminal job whose nodes are gone; returns what it was."""
    job = find(tx, tenant, name)
    check_etag(job, etag)
    if job.state not in TERMINAL:
        raise IllegalState(
            f"job {job.name!r} is {job.state}",
            reason="JOB_ACTIVE",
            fix=f"cancel it first (`luthier cancel {job.name}`) and wait until it has ended",
            metadata={"job": job.name, "state": str(job.state)},
        )
    if tx.has_open_attempt(job.uid):
        raise IllegalState(
            f"job {job.name!r} has ended, but its nodes are still being stopped",
            reason="JOB_ACTIVE",
            fix="try again in a few seconds",
            metadata={"job": job.name, "state": str(job.state)},
        )
    tx.delete_job(job.uid)
    return job


def preview(job: JobRecord, changes: Mapping[str, Any]) -> JobRecord:
    """The job as a change would leave it."""
    return replace(job, **changes)
