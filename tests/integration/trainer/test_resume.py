"""A job that loses a rank carries on from its checkpoint bit for bit, and from an older one when a checkpoint is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.trainer_node.lineage import scan_checkpoints

pytestmark = pytest.mark.zygote

LORA = {"name": "lora", "params": {"rank": 4, "dropout": 0.1}}
FULL = {"name": "full"}
EVERY_2 = {"checkpoint": {"every_steps": 2, "keep_last": 3}}


def losses(run: Any) -> dict[int, float]:
    return {row["step"]: row["values"]["loss"] for row in run.results[0]["rows"] if "loss" in row["values"]}


def facts(run: Any, name: str) -> list[dict[str, Any]]:
    return [body for kind, body in run.results[0]["facts"] if kind == name]


def trained(jobs: Any, store: str) -> bytes:
    """The trained state of a finished job."""
    [path] = jobs.prefix(store).glob("phases/*/*/trained.safetensors")
    return bytes(path.read_bytes())


COMBINATIONS = [
    pytest.param(stage, adapter, marks=[] if (stage, adapter["name"]) in ((2, "lora"), (3, "full")) else pytest.mark.slow)
    for stage in (0, 1, 2, 3)
    for adapter in (FULL, LORA)
]


@pytest.mark.parametrize(("stage", "adapter"), COMBINATIONS, ids=lambda value: value["name"] if isinstance(value, dict) else f"zero{value}")
def test_kill_minus_nine_and_resume_is_bit_exact(jobs: Any, stage: int, adapter: dict[str, Any]) -> None:
    """Rank 1 is killed after step 6 of 8; the next generation repeats from step 4 with identical losses and ends with identical weights."""
    spec = jobs.spec(zero_stage=stage, adapter=adapter, faults=EVERY_2)

    straight = jobs.run("straight", 2, spec).checked()
    broken = jobs.run("broken", 2, spec, die_at={"rank": 1, "step": 6})
    resumed = jobs.resume("broken", 2, spec).checked()

    assert -9 == broken.codes[1]
    assert 0 != broken.codes[0]
    assert [4] == [fact["checkpoint"]["step"] for fact in facts(resumed, "resumed_from")]
    assert {step: loss for step, loss in losses(straight).items() if step > 4} == losses(resumed)
    assert trained(jobs, "straight") == trained(jobs, "broken")
    assert [] == [fact for fact in facts(resumed, "note") if fact["type"] == "RESUMED_INEXACTLY"]


def test_one_rank_resumes_bit_exactly(jobs: Any) -> None:
    """The plain engine too."""
    spec = jobs.spec(adapter=LORA, faults=EVERY_2)

    straight = jobs.run("straight", 1, spec).checked()
    jobs.run("broken", 1, spec, die_at={"rank": 0, "step": 6})
    resumed = jobs.resume("broken", 1, spec).checked()

    assert {step: loss for step, loss in losses(straight).items() if step > 4} == losses(resumed)
    assert trained(jobs, "straight") == trained(jobs, "broken")


def test_another_world_size_carries_on_and_says_so(jobs: Any) -> None:
    """Two ranks' checkpoint under ZeRO-3 resumes on one rank: equal within rounding, with a note that it is not bit for bit."""
    spec = jobs.spec(zero_stage=3, faults=EVERY_2)
    alone = jobs.spec(zero_stage=0, faults=EVERY_2)

    straight = jobs.run("straight", 2, spec).checked()
    jobs.run("broken", 2, spec, die_at={"rank": 0, "step": 6})
    resumed = jobs.resume("broken", 1, alone).checked()

    expected = {step: loss for step, loss in losses(straight).items() if step > 4}
    assert expected == pytest.approx(losses(resumed), abs=1e-4)
    assert 1 == len([fact for fact in facts(resumed, "note") if fact["type"] == "RESUMED_INEXACTLY"])


def flip_a_bit(directory: Path) -> None:
    path = directory / "rank-1.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(directory: Path) -> None:
    path = directory / "rank-0.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def remove(directory: Path) -> None:
    (directory / "rank-1.safetensors").unlink()


def change_the_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 3'))


@pytest.mark.parametrize("damage", [flip_a_bit, cut, remove, change_the_manifest], ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_falls_back_to_the_older_one(jobs: Any, damage: Callable[[Path], None]) -> None:
    """All ranks reject the damaged checkpoint together, start from the one before it, and end with the same weights."""
    spec = jobs.spec(zero_stage=2, faults=EVERY_2)
    straight = jobs.run("straight", 2, spec).checked()
    jobs.run("broken", 2, spec, die_at={"rank": 1, "step": 6})
    named = [vars(ref) for ref in scan_checkpoints(jobs.prefix("broken"))][::-1]
    damage(jobs.prefix("broken") / named[0]["path"])

    resumed = jobs.resume("broken", 2, spec, resume_from=named[0], fallbacks=named[1:]).checked()

    [start] = facts(resumed, "resumed_from")
    assert 2 == start["checkpoint"]["step"]
    assert 1 == len(start["rejected"])
    assert named[0]["path"] in start["rejected"][0]
    assert trained(jobs, "straight") == trained(jobs, "broken")
    assert {step: loss for step, loss in losses(straight).items() if step > 2} == losses(resumed)


def test_a_torn_checkpoint_is_no_candidate(jobs: Any) -> None:
    """A checkpoint without its manifest, or with a file cut short, is not listed."""
    spec = jobs.spec(faults=EVERY_2)
    jobs.run("job", 1, spec).checked()
    steps = [ref.step for ref in scan_checkpoints(jobs.prefix("job"))]
    found = {ref.step: jobs.prefix("job") / ref.path for ref in scan_checkpoints(jobs.prefix("job"))}
    (found[steps[-1]] / "manifest.json").unlink()
    cut(found[steps[-2]])

    assert [2, 4, 6] == steps
    assert [2] == [ref.step for ref in scan_checkpoints(jobs.prefix("job"))]


@pytest.mark.parametrize("stage", [2, 3])
def test_background_writes_hold_the_state_of_their_step(jobs: Any, stage: int) -> None:
    """Checkpoints written while training goes on are those of their step: a resume from the newest ends with the same weights."""
    spec = jobs.spec(zero_stage=stage, adapter=LORA, steps=12, faults={"checkpoint": {"every_steps": 1, "keep_last": 2}})
    straight = jobs.run("straight", 2, spec, write_in_background=True).checked()
    left = jobs.run("left", 2, spec, write_in_background=True, say={"rank": 1, "step": 7, "word": 2}).checked()

    resumed = jobs.resume("left", 2, spec, write_in_background=True).checked()

    assert {"saved": True} == left.results[0]["left"]
    assert 7 == facts(resumed, "resumed_from")[0]["checkpoint"]["step"]
    assert losses(straight) == losses(left) | losses(resumed)
    assert trained(jobs, "straight") == trained(jobs, "left")
    assert all(fact["persist_seconds"] >= fact["stall_seconds"] for fact in facts(straight, "checkpoint_committed"))


def test_retention_keeps_the_newest_and_the_best(jobs: Any) -> None:
    """Of checkpoints at every step, two newest stay and the one with the lowest held-out loss; the facts name what went."""
    data = {"sources": [{"uri": "upload://rows/rows.jsonl"}], "validation_fraction": 0.2}
    spec = jobs.spec(
        steps=7, data=data, evaluation={"every_steps": 1}, faults={"checkpoint": {"every_steps": 1, "keep_last": 2}},
        optimizer={"learning_rate": 0.5}, schedule={"name": "constant", "warmup_steps": 0},
    )  # fmt: skip
    run = jobs.run("job", 1, spec).checked()

    committed = facts(run, "checkpoint_committed")
    best = min(committed, key=lambda fact: float(fact["eval_loss"]))["checkpoint"]["step"]
    left = [ref.step for ref in scan_checkpoints(jobs.prefix("job"))]
    assert [1, 2, 3, 4, 5, 6] == [fact["checkpoint"]["step"] for fact in committed]
    assert sorted({best, 5, 6}) == left
    assert 6 - len(left) == sum(len(fact["removed"]) for fact in committed)
