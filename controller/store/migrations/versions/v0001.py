"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    # STRICT tables of SQLite know five type names only.
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    real: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
    meta = sa.table("meta", sa.column("key", sa.Text), sa.column("value", sa.Integer))
    op.create_table(
        "events",
        sa.Column("revision", big, autoincrement=False, nullable=False),
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("sequence", big, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("job_name", sa.Text(), nullable=False),
        sa.Column("time", real, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("generation", big, nullable=False),
        sa.Column("node", big, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("revision"),
        sqlite_strict=True,
    )
    op.create_index("events_by_job", "events", ["job_uid", "sequence"], unique=True)
    op.create_index("events_by_tenant", "events", ["tenant", "revision"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("spec_wire", sa.LargeBinary(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", big, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("waiting_reason", sa.Text(), nullable=False),
        sa.Column("waiting_message", sa.Text(), nullable=False),
        sa.Column("retry_at", real, nullable=True),
        sa.Column("pause_cause", sa.Text(), nullable=False),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("plan_finished", big, nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("generation", big, nullable=False),
        sa.Column("num_nodes", big, nullable=False),
        sa.Column("wanted_nodes", big, nullable=True),
        sa.Column("micro_batch_size", big, nullable=False),
        sa.Column("budget_used", sa.Text(), nullable=False),
        sa.Column("last_end", sa.Text(), nullable=True),
        sa.Column("excluded_hosts", sa.Text(), nullable=False),
        sa.Column("dependencies", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("cause_since", real, nullable=False),
        sa.Column("cause_micros", sa.Text(), nullable=False),
        sa.Column("version", big, nullable=False),
        sa.Column("create_time", real, nullable=False),
        sa.Column("update_time", real, nullable=False),
        sa.Column("start_time", real, nullable=True),
        sa.Column("end_time", real, nullable=True),
        sa.Column("paused_seconds", real, nullable=False),
        sa.Column("event_sequence", big, nullable=False),
        sa.Column("stamp", big, nullable=False),
        sa.PrimaryKeyConstraint("uid"),
        sqlite_strict=True,
    )
    op.create_index("jobs_by_name", "jobs", ["tenant", "name"], unique=True)
    op.create_index("jobs_by_state", "jobs", ["tenant", "state", "create_time", "uid"], unique=False)
    op.create_index("jobs_by_time", "jobs", ["tenant", "create_time", "uid"], unique=False)
    op.create_index("jobs_in_state", "jobs", ["state"], unique=False)
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", big, nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_strict=True,
    )
    op.create_table(
        "requests",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("create_time", real, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "request_id"),
        sqlite_strict=True,
    )
    op.create_index("requests_by_time", "requests", ["create_time"], unique=False)
    op.create_table(
        "artifacts",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", big, nullable=False),
        sa.Column("time", real, nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("generation", big, nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "name"),
        sqlite_strict=True,
    )
    op.create_table(
        "attempts",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("number", big, nullable=False),
        sa.Column("num_nodes", big, nullable=False),
        sa.Column("executor", sa.Text(), nullable=False),
        sa.Column("create_time", real, nullable=False),
        sa.Column("launch", sa.Text(), nullable=False),
        sa.Column("launch_time", real, nullable=True),
        sa.Column("generation", big, nullable=False),
        sa.Column("end_cause", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("end_time", real, nullable=True),
        sa.Column("close_time", real, nullable=True),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "number"),
        sqlite_strict=True,
    )
    op.create_index("attempts_open", "attempts", ["close_time", "job_uid"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("generation", big, nullable=False),
        sa.Column("phase_index", big, nullable=False),
        sa.Column("step", big, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", big, nullable=False),
        sa.Column("time", real, nullable=False),
        sa.Column("eval_loss", real, nullable=True),
        sa.Column("removed", big, nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "attempt", "generation", "phase_index", "step"),
        sqlite_strict=True,
    )
    op.create_table(
        "dependencies",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("needed_uid", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "needed_uid"),
        sqlite_strict=True,
    )
    op.create_index("dependencies_by_needed", "dependencies", ["needed_uid"], unique=False)
    op.create_table(
        "generations",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("number", big, nullable=False),
        sa.Column("create_time", real, nullable=False),
        sa.Column("world_size", big, nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("resume_from", sa.Text(), nullable=True),
        sa.Column("fallbacks", sa.Text(), nullable=False),
        sa.Column("journal_head", sa.Text(), nullable=True),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("start_step", big, nullable=False),
        sa.Column("last_step", big, nullable=False),
        sa.Column("phase_index", big, nullable=False),
        sa.Column("phase_started", big, nullable=False),
        sa.Column("save_failed", sa.Text(), nullable=False),
        sa.Column("end_time", real, nullable=True),
        sa.Column("end_cause", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "attempt", "number"),
        sqlite_strict=True,
    )
    op.create_table(
        "labels",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "key"),
        sqlite_strict=True,
    )
    op.create_index("labels_by_value", "labels", ["key", "value", "job_uid"], unique=False)
    op.create_table(
        "nodes",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("index", big, nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("superseded", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("metrics_port", big, nullable=False),
        sa.Column("handle", sa.Text(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("ready_after", big, nullable=False),
        sa.Column("ready", sa.Text(), nullable=False),
        sa.Column("preflight", sa.Text(), nullable=False),
        sa.Column("formed", big, nullable=False),
        sa.Column("left", big, nullable=False),
        sa.Column("acked", big, nullable=False),
        sa.Column("exit_code", big, nullable=True),
        sa.Column("finished", big, nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "attempt", "index"),
        sqlite_strict=True,
    )
    op.create_table(
        "points",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stretch", big, nullable=False),
        sa.Column("step", big, nullable=False),
        sa.Column("count", big, nullable=False),
        sa.Column("mean", real, nullable=False),
        sa.Column("min", real, nullable=False),
        sa.Column("max", real, nullable=False),
        sa.Column("time", real, nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "name", "stretch"),
        sqlite_strict=True,
    )
    op.create_table(
        "rank_ends",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("attempt", big, nullable=False),
        sa.Column("generation", big, nullable=False),
        sa.Column("rank", big, nullable=False),
        sa.Column("node", big, nullable=False),
        sa.Column("code", big, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("section", sa.Text(), nullable=False),
        sa.Column("step", big, nullable=False),
        sa.Column("phase_index", big, nullable=False),
        sa.Column("log_lines", sa.Text(), nullable=False),
        sa.Column("hung", big, nullable=False),
        sa.Column("reaped", big, nullable=False),
        sa.Column("time", real, nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "attempt", "generation", "rank"),
        sqlite_strict=True,
    )
    op.create_table(
        "series",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("width", big, nullable=False),
        sa.Column("stretches", big, nullable=False),
        sa.Column("last_step", big, nullable=False),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_uid", "name"),
        sqlite_strict=True,
    )
    op.bulk_insert(meta, [{"key": key, "value": 0} for key in ("epoch", "revision", "dropped")])
