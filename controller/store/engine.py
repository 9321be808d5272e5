"""SQLite as the store wants it: write-ahead log, full durability, explicit transactions, readers that cannot write."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

__all__ = ["BUSY_SECONDS", "reader_engine", "writer_engine"]

BUSY_SECONDS = 10.0
"""How long a statement waits for a lock of another process, for example a backup."""


def writer_engine(path: Path) -> Engine:
    """Every transaction takes the write lock at once, so that its reads cannot go stale before it writes."""
    return _engine(
        path,
        "rwc",
        "BEGIN IMMEDIATE",
        ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON", "PRAGMA journal_size_limit=67108864"],
    )


def reader_engine(path: Path) -> Engine:
    """Every transaction is one snapshot; writing is impossible twice over (open mode and pragma)."""
    return _engine(path, "ro", "BEGIN", ["PRAGMA query_only=ON", "PRAGMA cache_size=-4096"])


def _engine(path: Path, mode: str, begin: str, pragmas: list[str]) -> Engine:
    def connect() -> sqlite3.Connection:
        # isolation_level None: the module begins nothing by itself, `begin` below does.
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        for pragma in pragmas:
            connection.execute(pragma)
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    listen: Any = event.listen  # untyped in the library
    listen(engine, "begin", on_begin)
    return engine
