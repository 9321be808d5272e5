"""Writes: jobs, transitions, wall time, events, and what belongs to a job."""

from __future__ import annotations

import random
from typing import Any

import pytest

from luthier.controller.store import rows, states
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
from luthier.controller.store.sqlite import SqlStore
from luthier.errors import Conflict, IllegalState, JobNotFound, NotFound

pytestmark = pytest.mark.asyncio
S = JobState


async def test_a_job_comes_back_as_it_was_written(store: SqlStore, job: Any, clock: Any) -> None:
    """Every field of a record survives the database."""
    full = job(
        display_name="Ünïcode ✓",
        labels={"team": "a b", "empty": ""},
        spec_wire=b"\x00\x01",
        priority=-5,
        waiting_reason="CAPACITY",
        waiting_message="1 of 2 slots",
        retry_at=clock.now + 0.123456,
        failure={"cause": "END_CAUSE_DATA", "log_lines": ["x"]},
        result={"metrics": {"loss": 0.25}},
        progress={"step": 3},
        wanted_nodes=2,
        budget_used={"infra": 1},
        last_end={"step": 4, "rank": 1, "cause": "KILLED"},
        excluded_hosts=("h1", "h2"),
        dependencies=({"job": "base", "uid": "u0", "artifact": "", "digest": "", "path": ""},),
        cause_seconds={"QUEUED": 1.5},
        plan_finished=True,
    )
    written = await store.transact(lambda tx: tx.insert_job(full))
    read = await store.read(lambda reader: reader.job("u-one"))

    assert written == read
    assert full.labels == read.labels and full.dependencies == read.dependencies and full.excluded_hosts == read.excluded_hosts
    assert read == await store.read(lambda reader: reader.job_named("t", "one"))
    assert None is await store.read(lambda reader: reader.job_named("other", "one"))


async def test_every_record_field_has_a_column() -> None:
    """A field that is added to a record must be stored, or tests like the one above would lose it silently."""
    import dataclasses

    for codec in (rows.JOB, rows.ATTEMPT, rows.GENERATION, rows.NODE, rows.RANK_END, rows.EVENT, rows.CHECKPOINT, rows.ARTIFACT):
        names = {field.name for field in dataclasses.fields(codec.record)} - {"cause_seconds"}
        assert names <= {column.name for column in codec.columns}, codec.record


async def test_names_are_unique_per_tenant(store: SqlStore, job: Any) -> None:
    """A taken name is refused with the fix; another tenant may use it."""
    await store.transact(lambda tx: tx.insert_job(job()))
    with pytest.raises(Conflict) as caught:
        await store.transact(lambda tx: tx.insert_job(job(uid="u2")))
    await store.transact(lambda tx: tx.insert_job(job(uid="u3", tenant="t2")))

    assert "JOB_ID_TAKEN" == caught.value.reason
    assert "luthier delete one" in caught.value.fix


async def test_a_transition_writes_state_event_and_times_together(store: SqlStore, job: Any, clock: Any) -> None:
    """State, event, version, start time and charged time change in one transaction."""
    await store.transact(lambda tx: tx.insert_job(job(waiting_reason="CAPACITY")))
    clock.now += 2.5
    await store.transact(lambda tx: tx.transition("u-one", S.STARTING, message="admitted", attempt=1, num_nodes=2))
    clock.now += 1.25
    after = await store.transact(lambda tx: tx.transition("u-one", S.RUNNING, message="first phase"))
    events = await store.read(lambda reader: reader.events("u-one"))

    assert (S.RUNNING, 3, 1, 2, "") == (after.state, after.version, after.attempt, after.num_nodes, after.waiting_reason)
    assert {"QUEUED": 2.5, "STARTING": 1.25} == after.cause_seconds
    assert clock.now - 1.25 == after.start_time
    assert [(1, "CREATED", "QUEUED"), (2, "STATE_CHANGED", "STARTING"), (3, "STATE_CHANGED", "RUNNING")] == [
        (e.sequence, e.type, e.state) for e in events
    ]
    assert [1, 1] == [e.attempt for e in events[1:]]


async def test_an_illegal_transition_writes_nothing(store: SqlStore, job: Any) -> None:
    """The job and its events stay as they were."""
    await store.transact(lambda tx: tx.insert_job(job()))
    with pytest.raises(IllegalState):
        await store.transact(lambda tx: tx.transition("u-one", S.SUCCEEDED, message="no"))
    record, events = await store.read(lambda reader: (reader.job("u-one"), reader.events("u-one")))

    assert record is not None
    assert (S.QUEUED, 1) == (record.state, record.version)
    assert 1 == len(events)


async def test_state_changes_by_transition_only(store: SqlStore, job: Any) -> None:
    """`update_job` refuses `state`, and fields that no record has."""
    await store.transact(lambda tx: tx.insert_job(job()))
    for changes in ({"state": S.FAILED}, {"colour": "red"}):
        with pytest.raises(TypeError):
            await store.transact(lambda tx, changes=changes: tx.update_job("u-one", **changes))


async def test_progress_does_not_change_the_etag(store: SqlStore, job: Any) -> None:
    """Only progress leaves `version`; anything else counts it up."""
    await store.transact(lambda tx: tx.insert_job(job()))
    progressed = await store.transact(lambda tx: tx.update_job("u-one", progress={"step": 1}))
    labelled = await store.transact(lambda tx: tx.update_job("u-one", labels={"a": "b"}))

    assert [1, 2] == [progressed.version, labelled.version]
    assert {"step": 1} == labelled.progress


@pytest.mark.parametrize("seed", range(3))
async def test_causes_sum_to_wall_time_exactly(store: SqlStore, job: Any, clock: Any, seed: int) -> None:
    """Through random walks over the state table, with clocks that also jump back, charged microseconds are the wall time."""
    rng = random.Random(seed)
    print("seed", seed)
    current = await store.transact(lambda tx: tx.insert_job(job()))
    for _ in range(40):
        clock.now += rng.choice([0.0, 1e-6, 0.1, 1 / 3, 7.7, -0.5, 1234.567891])
        if rng.random() < 0.4 and current.state not in ("SUCCEEDED",):
            cause = rng.choice(states.CAUSES)
            current = await store.transact(lambda tx, cause=cause: tx.charge("u-one", cause))
        elif targets := sorted(states.targets(current.state) - {S.SUCCEEDED}):
            to = rng.choice(targets)
            current = await store.transact(lambda tx, to=to: tx.transition("u-one", to, message="x"))
    charged = sum(rows.to_micros(seconds) for seconds in current.cause_seconds.values())

    assert rows.to_micros(current.cause_since) - rows.to_micros(current.create_time) == charged
    assert all(seconds >= 0 for seconds in current.cause_seconds.values())
    if current.end_time is not None:
        assert current.end_time == current.cause_since


async def test_a_finished_job_is_charged_no_more(store: SqlStore, job: Any, clock: Any) -> None:
    """Its sum stays end minus creation; a retry charges the rest in between, so that the sum is wall time again."""
    await store.transact(lambda tx: tx.insert_job(job()))
    clock.now += 10
    ended = await store.transact(lambda tx: tx.transition("u-one", S.CANCELLED, message="x"))
    clock.now += 5
    charged = await store.transact(lambda tx: tx.charge("u-one", "PRODUCTIVE"))
    retried = await store.transact(lambda tx: tx.transition("u-one", S.QUEUED, message="retry"))

    assert {"QUEUED": 10.0} == ended.cause_seconds == charged.cause_seconds
    assert {"QUEUED": 10.0, "PAUSED": 5.0} == retried.cause_seconds
    assert None is retried.end_time


async def test_time_paused_is_kept_apart(store: SqlStore, job: Any, clock: Any) -> None:
    """Leaving PAUSED adds the time to `paused_seconds`, which deadlines do not count."""
    await store.transact(lambda tx: tx.insert_job(job()))
    await store.transact(lambda tx: tx.transition("u-one", S.PAUSED, message="x"))
    clock.now += 30
    resumed = await store.transact(lambda tx: tx.transition("u-one", S.QUEUED, message="x"))

    assert 30.0 == resumed.paused_seconds


async def test_a_cause_may_be_named(store: SqlStore, job: Any) -> None:
    """A transition charges what follows to the cause it is given."""
    await store.transact(lambda tx: tx.insert_job(job()))
    changed = await store.transact(lambda tx: tx.transition("u-one", S.STARTING, message="x", cause="RESTARTING"))

    assert "RESTARTING" == changed.cause
    with pytest.raises(TypeError, match="no cause"):
        await store.transact(lambda tx: tx.charge("u-one", "LUNCH"))


async def test_deleting_leaves_one_event(store: SqlStore, job: Any) -> None:
    """Everything of the job goes but a DELETED event with the next sequence number; a new job may take the name."""

    def fill(tx: Any) -> None:
        tx.insert_job(job(labels={"a": "b"}, dependencies=({"job": "x", "uid": "u-x"},)))
        tx.insert_attempt(AttemptRecord(job_uid="u-one", number=1, num_nodes=1, executor="local", create_time=1.0))
        tx.insert_generation(GenerationRecord(job_uid="u-one", attempt=1, number=1, create_time=1.0))
        tx.put_node(NodeRecord(job_uid="u-one", attempt=1, index=0))
        tx.insert_rank_end(RankEndRecord(job_uid="u-one", attempt=1, generation=1, node=0, rank=0, code=-9))
        tx.put_checkpoint(CheckpointRecord(job_uid="u-one", attempt=1, generation=1, phase_index=0, step=5, digest="d", path="p"))
        tx.put_artifact(ArtifactRecord(job_uid="u-one", name="result", kind="model", digest="d", path="p"))
        tx.add_samples("u-one", [(1, 2.0, {"loss": 1.0})])

    await store.transact(fill)
    await store.transact(lambda tx: tx.delete_job("u-one"))
    events = await store.read(lambda reader: reader.events_after(0))
    empty = await store.read(
        lambda r: [
            r.attempts("u-one"),
            r.all_generations("u-one"),
            r.nodes("u-one", 1),
            r.rank_ends("u-one", 1, 1),
            r.checkpoints("u-one"),
            r.artifacts("u-one"),
            r.dependants("u-x"),
            r.unfinished_jobs(),
        ]
    )

    assert [(2, "DELETED", "one")] == [(e.sequence, e.type, e.job_name) for e in events]
    assert not any(empty)
    assert {} == await store.read(lambda reader: reader.series("u-one"))
    await store.transact(lambda tx: tx.insert_job(job(uid="u-new")))


async def test_attempts_generations_and_nodes_are_updated_by_key(store: SqlStore, job: Any) -> None:
    """Inserted, replaced and changed records read back; an unknown key is NOT_FOUND."""
    await store.transact(lambda tx: tx.insert_job(job()))
    attempt = AttemptRecord(job_uid="u-one", number=1, num_nodes=2, executor="local", create_time=1.0, launch={"nodes": [1]})
    generation = GenerationRecord(
        job_uid="u-one", attempt=1, number=1, create_time=2.0, resume_from={"step": 5}, fallbacks=({"step": 3},), phase_started=True
    )
    node = NodeRecord(job_uid="u-one", attempt=1, index=1, superseded=("a",), ready={"address": "h:1"}, left=True)
    await store.transact(lambda tx: (tx.insert_attempt(attempt), tx.insert_generation(generation), tx.put_node(node)))
    await store.transact(lambda tx: tx.put_node(node))
    changed = await store.transact(lambda tx: tx.update_node("u-one", 1, 1, exit_code=-9, state="gone"))
    ended = await store.transact(lambda tx: tx.update_attempt("u-one", 1, end_cause="KILLED", close_time=9.0))
    moved = await store.transact(lambda tx: tx.update_generation("u-one", 1, 1, last_step=7))

    assert [changed] == await store.read(lambda reader: reader.nodes("u-one", 1))
    assert (-9, ("a",), True) == (changed.exit_code, changed.superseded, changed.left)
    assert ended == await store.read(lambda reader: reader.attempt("u-one", 1))
    assert [moved] == await store.read(lambda reader: reader.generations("u-one", 1))
    assert ({"step": 5}, ({"step": 3},), True) == (moved.resume_from, moved.fallbacks, moved.phase_started)
    with pytest.raises(NotFound):
        await store.transact(lambda tx: tx.update_attempt("u-one", 2, message="x"))


async def test_a_rank_ends_once(store: SqlStore, job: Any) -> None:
    """The second report of one end is recognised."""
    end = RankEndRecord(job_uid="u-one", attempt=1, generation=1, node=0, rank=3, code=-9, log_lines=("a", "b"), hung=True)
    await store.transact(lambda tx: tx.insert_job(job()))

    assert [True, False] == [await store.transact(lambda tx: tx.insert_rank_end(end)) for _ in range(2)]
    assert [end] == await store.read(lambda reader: reader.rank_ends("u-one", 1, 1))


async def test_checkpoints_come_newest_first_and_remember_removal(store: SqlStore, job: Any) -> None:
    """Retention marks rows; the order is by attempt, generation, phase and step."""
    await store.transact(lambda tx: tx.insert_job(job()))
    for attempt, step in ((1, 10), (1, 20), (2, 5)):
        record = CheckpointRecord(
            job_uid="u-one", attempt=attempt, generation=1, phase_index=0, step=step, digest="d", path=f"c/{attempt}/{step}"
        )
        await store.transact(lambda tx, record=record: tx.put_checkpoint(record))
    await store.transact(lambda tx: tx.mark_checkpoints_removed("u-one", ["c/1/10"]))
    found = await store.read(lambda reader: reader.checkpoints("u-one"))

    assert [("c/2/5", False), ("c/1/20", False), ("c/1/10", True)] == [(c.path, c.removed) for c in found]


async def test_unfinished_jobs_are_active_or_have_open_attempts(store: SqlStore, job: Any) -> None:
    """Terminal jobs are looked at until their attempts are closed, and changes are seen although records are cached."""
    for name in ("a", "b", "c"):
        await store.transact(lambda tx, name=name: tx.insert_job(job(name)))
    attempt = AttemptRecord(job_uid="u-b", number=1, num_nodes=1, executor="local", create_time=1.0)
    await store.transact(lambda tx: (tx.insert_attempt(attempt), tx.transition("u-b", S.FAILED, message="x")))
    await store.transact(lambda tx: tx.transition("u-c", S.CANCELLED, message="x"))
    before = await store.read(lambda reader: reader.unfinished_jobs())
    await store.transact(lambda tx: tx.update_attempt("u-b", 1, close_time=2.0))
    await store.transact(lambda tx: tx.update_job("u-a", progress={"step": 9}))
    after = await store.read(lambda reader: reader.unfinished_jobs())

    assert [("a", {}), ("b", {})] == [(j.name, j.progress) for j in before]
    assert [("a", {"step": 9})] == [(j.name, j.progress) for j in after]


async def test_dependants_are_found_by_uid(store: SqlStore, job: Any) -> None:
    """Jobs that name another one, also after their dependencies were pinned anew."""
    await store.transact(lambda tx: tx.insert_job(job("base")))
    needs = ({"job": "base", "uid": "u-base", "artifact": ""},)
    await store.transact(lambda tx: tx.insert_job(job("tune", dependencies=needs)))
    found: list[JobRecord] = await store.read(lambda reader: reader.dependants("u-base"))
    await store.transact(lambda tx: tx.update_job("u-tune", dependencies=({**needs[0], "uid": "u-other"},)))

    assert ["tune"] == [j.name for j in found]
    assert [] == await store.read(lambda reader: reader.dependants("u-base"))
    assert ["tune"] == [j.name for j in await store.read(lambda reader: reader.dependants("u-other"))]


async def test_what_is_not_there_is_said(store: SqlStore) -> None:
    """Writes to an unknown job raise JOB_NOT_FOUND."""
    for write in (
        lambda tx: tx.update_job("nobody", labels={}),
        lambda tx: tx.transition("nobody", S.STARTING, message="x"),
        lambda tx: tx.append_event("nobody", "X", "x"),
        lambda tx: tx.add_samples("nobody", []),
        lambda tx: tx.delete_job("nobody"),
    ):
        with pytest.raises(JobNotFound):
            await store.transact(write)
