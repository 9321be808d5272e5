"""The generated world: the same bytes for a seed, no leak from training to held-out rows, a task that is new."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.world import ATTRIBUTES, FILES, make_world, write_world

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
SEEDS = range(5)


def test_committed_files_are_those_of_seed_0(tmp_path: Path) -> None:
    """Regenerating the world of seed 0 in a fresh interpreter gives the committed bytes; together they stay small."""
    command = [sys.executable, "-m", "luthier.world", "--seed", "0", "--out", str(tmp_path / "world")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "77"}).stdout
    assert {name: (EXAMPLES / name).read_bytes() for name in FILES} == {name: (tmp_path / "world" / name).read_bytes() for name in FILES}
    assert sum((EXAMPLES / name).stat().st_size for name in FILES) < 600_000
    assert f"{make_world(0).num_facts} facts" in printed


def test_seeds_differ(tmp_path: Path) -> None:
    """Another seed is another world; the same one is the same."""
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        write_world(seed, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_leaks_into_held_out_rows(seed: int) -> None:
    """People of held-out cards have no card in training, no row occurs twice, and held-out questions are in no training file."""
    world = make_world(seed)
    train, held_out = world.rows["tune_train.jsonl"], world.rows["tune_validation.jsonl"]
    assert 60 <= len(held_out)
    for row in train:
        assert not any(re.search(rf"\b{name}\b", json.dumps(row)) for name in world.held_out)
    assert {next(n for n in world.held_out if n in row["prompt"]) for row in held_out} == set(world.held_out)
    prompts = [row["prompt"] for row in (*train, *held_out)]
    assert len(prompts) == len(set(prompts))
    taught = {json.dumps(row) for name in ("pretrain.jsonl", "pretrain_questions.jsonl") for row in world.rows[name]}
    assert not any(json.dumps(row) in taught for row in world.rows["pretrain_validation.jsonl"])
    assert world.rows["pretrain_validation.jsonl"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_task_is_new_and_answerable(seed: int) -> None:
    """No pretraining row looks like a card, yet both facts of every card are told there, of held-out people too."""
    world = make_world(seed)
    told = [row.get("text") or f"{row['prompt']} {row['completion']}" for name in FILES[:2] for row in world.rows[name]]
    assert not any("card" in text.lower() for text in told)
    assert not any(re.search(rf"\w+: ({'|'.join(ATTRIBUTES)}) ", text) for text in told)
    people = {person.name: person for person in world.people}
    for row in (*world.rows["tune_train.jsonl"], *world.rows["tune_validation.jsonl"]):
        found = re.fullmatch(r"(\w+): (\w+) (\w+), (\w+) (\w+)\.", row["completion"])
        assert found, row
        name, first, first_value, second, second_value = found.groups()
        assert (people[name].facts[first], people[name].facts[second]) == (first_value, second_value)
        for value in (first_value, second_value):
            assert any(name in text and value in text for text in told)


@pytest.mark.parametrize("seed", SEEDS)
def test_names_are_told_apart(seed: int) -> None:
    """No two people or towns share their first three letters, so that no name is the beginning of another."""
    world = make_world(seed)
    names = [*(p.name for p in world.people), *world.towns]
    assert len(names) == len({name[:3] for name in names})
    assert 300 <= world.num_facts <= 500


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """A file where the directory should be ends with a message and no traceback."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "luthier.world", "--out", str(tmp_path / "file" / "world")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 1 == ended.returncode
    assert "Fix: name a directory that you may write." in ended.stderr
    assert "Traceback" not in ended.stderr
