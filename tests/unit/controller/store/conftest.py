"""An open store on a file of its own, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from luthier.controller.store.records import JobRecord
from luthier.controller.store.sqlite import SqlStore


class Clock:
    """Seconds that pass only when told."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock at a fixed time."""
    return Clock()


@pytest.fixture
def job() -> Callable[..., JobRecord]:
    """Builds records of queued jobs."""

    def build(name: str = "one", **fields: Any) -> JobRecord:
        values: dict[str, Any] = {
            "uid": f"u-{name}",
            "tenant": "t",
            "spec": {"method": {"name": "sft"}},
            "method": "sft",
            "queue": "default",
            "priority": 0,
        }
        return JobRecord(name=name, **{**values, **fields})

    return build


@pytest_asyncio.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqlStore]:
    """An open store."""
    opened = SqlStore(tmp_path / "luthier.db", clock=clock)
    await opened.open()
    yield opened
    await opened.close()
