"""Schema versions: created, upgraded from every released dump, and refused when newer."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.controller.store import migrations
from luthier.controller.store.engine import writer_engine
from luthier.controller.store.sqlite import SqlStore
from luthier.errors import Unavailable

DUMPS = sorted((Path(__file__).parent / "schemas").glob("*.sql"))


def layout(path: Path) -> list[tuple[str, str, str]]:
    """Tables and indices as SQLite has them, but for Alembic's own table."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%' AND sql IS NOT NULL").fetchall()
    connection.close()
    return sorted((kind, name, " ".join(sql.split())) for kind, name, sql in rows)


def created(path: Path) -> Path:
    """A new database of this version."""
    engine = writer_engine(path)
    migrations.migrate(engine)
    engine.dispose()
    return path


def test_migrations_and_schema_agree(tmp_path: Path) -> None:
    """A database made by all migrations is the one that `schema` describes, counters included."""
    engine = writer_engine(tmp_path / "migrated")
    with engine.begin() as connection:
        migrations.upgrade(connection, None)
        counters = connection.exec_driver_sql("SELECT key, value FROM meta ORDER BY key").all()
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    engine.dispose()

    assert layout(created(tmp_path / "created")) == layout(tmp_path / "migrated")
    assert [("dropped", 0), ("epoch", 0), ("revision", 0)] == [tuple(row) for row in counters]
    assert migrations.HEAD == version


def test_the_head_is_the_newest_migration() -> None:
    """The constant that lets a start without Alembic decide names the newest file, and each version has its dump."""
    versions = sorted(path.stem[1:] for path in (Path(migrations.__file__).parent / "versions").glob("v*.py"))

    assert migrations.HEAD == versions[-1]
    assert versions == [path.stem for path in DUMPS]


@pytest.mark.asyncio
@pytest.mark.parametrize("dump", DUMPS, ids=[path.stem for path in DUMPS])
async def test_every_released_schema_upgrades(dump: Path, tmp_path: Path, job: Any) -> None:
    """A database of an older release opens with the present schema and works."""
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.executescript(dump.read_text())
    connection.close()
    store = SqlStore(path)
    await store.open()
    await store.transact(lambda tx: tx.insert_job(job()))
    await store.close()

    assert layout(created(tmp_path / "new.db")) == layout(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """Going back to an older Luthier says which one is needed, and changes nothing."""
    path = created(tmp_path / "db")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    engine = writer_engine(path)
    with pytest.raises(Unavailable, match="schema 9999, which is newer"):
        migrations.migrate(engine)
    engine.dispose()


def test_an_up_to_date_start_loads_no_migrations(tmp_path: Path) -> None:
    """Creating and opening a database imports neither Alembic nor anything of the training stack: an idle controller is small."""
    code = """
import asyncio, sys
from pathlib import Path
from luthier.controller.store.sqlite import SqlStore

async def main():
    for _ in range(2):
        store = SqlStore(Path(sys.argv[1]))
        await store.open()
        await store.close()

asyncio.run(main())
print(sorted({"alembic", "torch", "numpy", "grpc", "mako"} & set(sys.modules)))
"""
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "db")]

    assert "[]\n" == subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_another_database_is_refused(tmp_path: Path) -> None:
    """A file with foreign tables is not touched."""
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.commit()
    connection.close()
    engine = writer_engine(tmp_path / "db")
    with pytest.raises(Unavailable, match="not a Luthier database"):
        migrations.migrate(engine)
    engine.dispose()
