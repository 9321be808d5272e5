"""Tables of the store, dialect-neutral: SQLite now, PostgreSQL by another engine.

Times are UTC seconds with microsecond resolution; JSON is text (see `rows`). On SQLite every table is STRICT. Whoever changes a
table adds a migration; `tests/unit/controller/store/test_migrations.py` compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import REAL, BigInteger, Column, Double, ForeignKeyConstraint, Index, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

__all__ = [
    "artifacts",
    "attempts",
    "checkpoints",
    "dependencies",
    "events",
    "generations",
    "jobs",
    "labels",
    "meta",
    "metadata",
    "nodes",
    "points",
    "rank_ends",
    "requests",
    "series",
]

metadata = MetaData()

# STRICT tables know five type names only; other databases get the wide types.
_Big: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
_Float: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, nullable=False, **options)


def _int(name: str, **options: Any) -> Column[int]:
    options.setdefault("nullable", False)
    return Column(name, _Big, **options)


def _time(name: str, **options: Any) -> Column[float]:
    options.setdefault("nullable", False)
    return Column(name, _Float, **options)


def _table(name: str, *parts: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True)


def _of_job() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE")


# Counters: `epoch` (the controller that may write), `revision` (newest event), `dropped` (newest event that retention removed).
meta = _table("meta", _text("key", primary_key=True), _int("value"))

jobs = _table(
    "jobs",
    _text("uid", primary_key=True),
    _text("tenant"),
    _text("name"),
    _text("display_name"),
    _text("labels"),
    _text("spec"),
    Column("spec_wire", LargeBinary, nullable=False),
    _text("method"),
    _text("queue"),
    _int("priority"),
    _text("state"),
    _text("waiting_reason"),
    _text("waiting_message"),
    _time("retry_at", nullable=True),
    _text("pause_cause"),
    Column("failure", Text),
    Column("result", Text),
    _int("plan_finished"),
    _text("progress"),
    _int("attempt"),
    _int("generation"),
    _int("num_nodes"),
    _int("wanted_nodes", nullable=True),
    _int("micro_batch_size"),
    _text("budget_used"),
    Column("last_end", Text),
    _text("excluded_hosts"),
    _text("dependencies"),
    _text("cause"),
    _time("cause_since"),
    _text("cause_micros"),
    _int("version"),
    _time("create_time"),
    _time("update_time"),
    _time("start_time", nullable=True),
    _time("end_time", nullable=True),
    _time("paused_seconds"),
    # Not in the record: number of the newest event, and a count of writes that tells cached rows from changed ones.
    _int("event_sequence"),
    _int("stamp"),
    Index("jobs_by_name", "tenant", "name", unique=True),
    Index("jobs_by_time", "tenant", "create_time", "uid"),
    Index("jobs_by_state", "tenant", "state", "create_time", "uid"),
    Index("jobs_in_state", "state"),
)

labels = _table(
    "labels",
    _text("job_uid", primary_key=True),
    _text("key", primary_key=True),
    _text("value"),
    _of_job(),
    Index("labels_by_value", "key", "value", "job_uid"),
)

dependencies = _table(
    "dependencies",
    _text("job_uid", primary_key=True),
    _text("needed_uid", primary_key=True),
    _of_job(),
    Index("dependencies_by_needed", "needed_uid"),
)

# Kept after the job is deleted, so that a late retry of its CreateJob never makes a second one.
requests = _table(
    "requests",
    _text("tenant", primary_key=True),
    _text("request_id", primary_key=True),
    _text("body_hash"),
    _text("job_uid"),
    _time("create_time"),
    Index("requests_by_time", "create_time"),
)

attempts = _table(
    "attempts",
    _text("job_uid", primary_key=True),
    _int("number", primary_key=True),
    _int("num_nodes"),
    _text("executor"),
    _time("create_time"),
    _text("launch"),
    _time("launch_time", nullable=True),
    _int("generation"),
    _text("end_cause"),
    _text("message"),
    _time("end_time", nullable=True),
    _time("close_time", nullable=True),
    _text("versions"),
    _of_job(),
    Index("attempts_open", "close_time", "job_uid"),
)

generations = _table(
    "generations",
    _text("job_uid", primary_key=True),
    _int("attempt", primary_key=True),
    _int("number", primary_key=True),
    _time("create_time"),
    _int("world_size"),
    _text("address"),
    Column("resume_from", Text),
    _text("fallbacks"),
    Column("journal_head", Text),
    _text("parent"),
    _int("start_step"),
    _int("last_step"),
    _int("phase_index"),
    _int("phase_started"),
    _text("save_failed"),
    _time("end_time", nullable=True),
    _text("end_cause"),
    _text("message"),
    _of_job(),
)

nodes = _table(
    "nodes",
    _text("job_uid", primary_key=True),
    _int("attempt", primary_key=True),
    _int("index", primary_key=True),
    _text("incarnation"),
    _text("superseded"),
    _text("host"),
    _int("metrics_port"),
    _text("handle"),
    _text("versions"),
    _text("state"),
    _int("ready_after"),
    _text("ready"),
    _text("preflight"),
    _int("formed"),
    _int("left"),
    _int("acked"),
    _int("exit_code", nullable=True),
    _int("finished"),
    _of_job(),
)

rank_ends = _table(
    "rank_ends",
    _text("job_uid", primary_key=True),
    _int("attempt", primary_key=True),
    _int("generation", primary_key=True),
    _int("rank", primary_key=True),
    _int("node"),
    _int("code"),
    _text("message"),
    _text("section"),
    _int("step"),
    _int("phase_index"),
    _text("log_lines"),
    _int("hung"),
    _int("reaped"),
    _time("time"),
    _of_job(),
)

# Without a foreign key: the DELETED event outlives its job.
events = _table(
    "events",
    _int("revision", primary_key=True, autoincrement=False),
    _text("job_uid"),
    _int("sequence"),
    _text("tenant"),
    _text("job_name"),
    _time("time"),
    _text("type"),
    _text("message"),
    _text("severity"),
    _int("attempt"),
    _int("generation"),
    _int("node", nullable=True),
    _text("state"),
    _text("details"),
    Index("events_by_job", "job_uid", "sequence", unique=True),
    Index("events_by_tenant", "tenant", "revision"),
)

checkpoints = _table(
    "checkpoints",
    _text("job_uid", primary_key=True),
    _int("attempt", primary_key=True),
    _int("generation", primary_key=True),
    _int("phase_index", primary_key=True),
    _int("step", primary_key=True),
    _text("digest"),
    _text("path"),
    _int("size_bytes"),
    _time("time"),
    _time("eval_loss", nullable=True),
    _int("removed"),
    _of_job(),
)

artifacts = _table(
    "artifacts",
    _text("job_uid", primary_key=True),
    _text("name", primary_key=True),
    _text("kind"),
    _text("digest"),
    _text("path"),
    _int("size_bytes"),
    _time("time"),
    _int("attempt"),
    _int("generation"),
    _of_job(),
)

# One row per series: how many steps a stretch covers, how many stretches there are, and the newest step.
series = _table(
    "series",
    _text("job_uid", primary_key=True),
    _text("name", primary_key=True),
    _int("width"),
    _int("stretches"),
    _int("last_step"),
    _of_job(),
)

points = _table(
    "points",
    _text("job_uid", primary_key=True),
    _text("name", primary_key=True),
    _int("stretch", primary_key=True),
    _int("step"),
    _int("count"),
    _time("mean"),
    _time("min"),
    _time("max"),
    _time("time"),
    _of_job(),
)
