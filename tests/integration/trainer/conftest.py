"""Groups of real gloo ranks for the trainer's tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.trainer_node.lineage import scan_checkpoints, scan_journals

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


@dataclass
class Jobs:
    """Runs whole plans over one toy model and data set, one store per job, and restarts them as a controller would."""

    ranks: Ranks
    root: Path
    inputs: dict[str, str]

    def spec(self, **changes: Any) -> dict[str, Any]:
        """A small SFT job; keyword arguments replace fields of `training`, dotted ones (`faults__checkpoint`) others."""
        spec: dict[str, Any] = {
            "model": {"uri": "upload://base/"}, "method": {"name": "sft"}, "data": {"sources": [{"uri": "upload://rows/rows.jsonl"}]},
            "adapter": {"name": "full"},
            "training": {"batch_size": 8, "max_length": 48, "steps": 8, "optimizer": {"learning_rate": 1e-2}, "micro_batch_size": 2},
        }  # fmt: skip
        for name, value in changes.items():
            part, _, rest = name.partition("__")
            if rest:
                spec.setdefault(part, {})[rest] = value
            elif name in ("adapter", "output", "evaluation", "faults", "data", "method", "model"):
                spec[name] = value
            else:
                spec["training"][name] = value
        return spec

    def run(self, store: str, world_size: int, spec: dict[str, Any], **arguments: Any) -> Run:
        """One generation."""
        return self.ranks("run_plan", world_size, spec=spec, inputs=self.inputs, store=str(self.root / store), **arguments)

    def prefix(self, store: str) -> Path:
        """The job's prefix in the store."""
        return self.root / store / "t" / "job"

    def resume(self, store: str, world_size: int, spec: dict[str, Any], generation: int = 2, **arguments: Any) -> Run:
        """The next generation, from what lies in the store: newest checkpoint, older ones to fall back to, newest journal."""
        checkpoints = [asdict(ref) for ref in scan_checkpoints(self.prefix(store))][::-1]
        heads = [asdict(ref) for ref in scan_journals(self.prefix(store))]
        extra: dict[str, Any] = {"generation": generation, "fallbacks": checkpoints[1:]}
        extra |= {"resume_from": checkpoints[0]} if checkpoints else {}
        extra |= {"journal_head": heads[-1]} if heads else {}
        return self.run(store, world_size, spec, **{**extra, **arguments})


@pytest.fixture
def jobs(ranks: Ranks, tmp_path: Path) -> Jobs:
    """A toy model, 40 rows, and a way to run jobs on them."""
    model = tmp_path / "base"
    ranks("make_model", 1, directory=str(model)).checked()
    words = ["apple", "pear", "plum", "fig", "grape"]
    rows = [{"prompt": f"turn {words[i % 5]} {i}", "completion": words[i % 5][::-1] + "!" * (i % 7)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Jobs(ranks, tmp_path, {"upload://base/": str(model), "upload://rows/rows.jsonl": str(tmp_path / "rows.jsonl")})
