"""Schema versions, forward only.

A new database is created from `schema` and stamped; an older one is brought up by Alembic, which is imported only then. A database
of a newer Luthier is refused.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from luthier.controller.store import schema
from luthier.errors import Unavailable

__all__ = ["HEAD", "migrate", "upgrade"]

HEAD = "0001"
"""Revision of the newest file in `versions/`; a test compares."""


def migrate(engine: Engine) -> None:
    """Create or upgrade the schema. Raises `Unavailable` for a database of a newer Luthier."""
    with engine.begin() as connection:
        found = _revision(connection)
        if found is None:
            _create(connection)
        elif found != HEAD:
            upgrade(connection, found)


def _revision(connection: Connection) -> str | None:
    names = inspect(connection).get_table_names()
    if not names:
        return None
    if "alembic_version" not in names:
        raise Unavailable(
            "the database has tables but no schema version: it is not a Luthier database",
            reason="STORE_BUSY",
            fix="choose another state directory",
        )
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _create(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    _stamp(connection)


def _stamp(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:head)"), {"head": HEAD})
    counters = [{"key": key, "value": 0} for key in ("epoch", "revision", "dropped")]
    connection.execute(schema.meta.insert(), counters)


def upgrade(connection: Connection, found: str | None) -> None:
    """Run the migrations after `found` (None: all) in the open transaction."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise Unavailable(
            f"the database has schema {found}, which is newer than this Luthier knows ({HEAD})",
            reason="STORE_BUSY",
            fix="install the newer Luthier again; schemas only move forward",
            metadata={"schema": found, "known": HEAD},
        )
    context = EnvironmentContext(config, scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision))
    context.configure(connection=connection, target_metadata=schema.metadata, transactional_ddl=True)
    context.run_migrations()
