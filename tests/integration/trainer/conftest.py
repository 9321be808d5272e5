"""Groups of real gloo ranks for the trainer's tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """What a group of ranks left behind."""

    codes: list[int]
    results: list[Any]
    """Return value per rank; None for one that did not return."""
    directory: Path

    def checked(self) -> Run:
        """Fail with the first log when a rank failed."""
        for rank, code in enumerate(self.codes):
            if code != 0:
                pytest.fail(f"rank {rank} ended with {code}:\n{self.log(rank)}")
        return self

    def log(self, rank: int) -> str:
        return (self.directory / f"rank-{rank}.log").read_text()[-6000:]


Ranks = Callable[..., Run]


@pytest.fixture(scope="session")
def rank_server() -> Iterator[subprocess.Popen[str]]:
    """One process that has the training stack imported."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "rank_server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield server
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.wait(30)
    server.stdout.close()


@pytest.fixture
def ranks(rank_server: subprocess.Popen[str], tmp_path: Path) -> Ranks:
    """`ranks(program, world_size, **arguments)` runs `programs/<program>.py` in that many ranks and waits for all."""
    count = 0

    def run(program: str, world_size: int, **arguments: Any) -> Run:
        nonlocal count
        directory = tmp_path / f"run-{count}"
        directory.mkdir()
        count += 1
        assert rank_server.stdin is not None and rank_server.stdout is not None
        request = {"program": str(HERE / "programs" / f"{program}.py"), "world_size": world_size, "directory": str(directory)}
        rank_server.stdin.write(json.dumps({**request, "arguments": arguments}) + "\n")
        rank_server.stdin.flush()
        line = rank_server.stdout.readline()
        assert line, "the rank server died"
        files = [directory / f"rank-{rank}.json" for rank in range(world_size)]
        return Run(json.loads(line)["codes"], [json.loads(f.read_text()) if f.exists() else None for f in files], directory)

    return run
