"""Settings of all suites: which tests start processes, and what a folder's tests are marked with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.trainer_node.environment import environment_home, process_start_time
from luthier.trainer_node.forking import ensure_zygote

TESTS = Path(__file__).parent
PROCESSES = {"acceptance", "chaos", "conformance", "integration", "cluster", "gpu"}
"""Folders whose tests start real processes."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder, and keep those that start processes on one xdist worker so that they do not compete for the cores."""
    for item in items:
        try:
            folder = item.path.relative_to(TESTS).parts[0]
        except ValueError:
            continue
        if folder in ("acceptance", "chaos", "cluster", "gpu"):
            item.add_marker(folder)
        if folder in PROCESSES or item.get_closest_marker("zygote"):
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(scope="session")
def zygote_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a real zygote that is shared by all tests of the session (mark them `zygote`): ready, and ended with the session."""
    base = tmp_path_factory.mktemp("zygote")

    async def start() -> None:
        client = await ensure_zygote(base, deadline_seconds=110)
        client.close()

    asyncio.run(start())
    yield base
    _end_zygotes(base)


@pytest.fixture(scope="session")
def scripted_zygote_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `scripted_zygote` keeps its zygotes."""
    base = tmp_path_factory.mktemp("scripted")
    yield base
    _end_zygotes(base)


@pytest.fixture
def scripted_zygote(scripted_zygote_dir: Path) -> Path:
    """Folder of a zygote whose ranks do what the job's variable SCRIPT says, see `tests/unit/trainer_node/scripted_zygote.py`.

    One serves the whole session; a file of the package that is edited meanwhile makes another one necessary.
    """
    home = environment_home(scripted_zygote_dir, "cpu")
    if not (home / "zygote.json").exists():
        script = TESTS / "unit" / "trainer_node" / "scripted_zygote.py"
        process = subprocess.Popen([sys.executable, "-P", str(script), str(scripted_zygote_dir)], start_new_session=True)
        deadline = time.monotonic() + 60
        while not (home / "zygote.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, "the scripted zygote did not start"
            time.sleep(0.02)
        process.returncode = 0  # it ends with the session, by pid and start time
    return scripted_zygote_dir


def _end_zygotes(base: Path) -> None:
    """End the zygotes of a folder, and nothing else: by pid and start time."""
    for path in base.glob("*/zygote.json"):
        facts = json.loads(path.read_text())
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            pidfd = os.pidfd_open(facts["pid"])
            try:
                if process_start_time(facts["pid"]) == facts["start_time"]:
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            finally:
                os.close(pidfd)
