"""Facts on disk: sequence numbers, ages, acknowledgements, a new incarnation."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from luthier.trainer_node.spool import Spool


def test_facts_are_numbered_and_sent_until_acknowledged(tmp_path: Path) -> None:
    """Sequence numbers begin at 1 and have no gap; acknowledged facts are not sent again."""
    spool = Spool(tmp_path / "facts.jsonl")
    for index in range(3):
        spool.add((1, 2), "phase_started", {"index": index, "kind": "train"})

    assert [1, 2, 3] == [fact.sequence for fact in spool.after(0)]
    assert {(1, 2)} == {(fact.fence.attempt, fact.fence.generation) for fact in spool.after(0)}
    spool.acknowledge(2)
    spool.acknowledge(1)
    assert [3] == [fact.sequence for fact in spool.after(0)]
    assert (2, 1) == (spool.acknowledged, len(spool))
    spool.close()


def test_ages_are_those_of_the_moment_of_sending(tmp_path: Path) -> None:
    """A fact that waits grows older."""
    spool = Spool(tmp_path / "facts.jsonl")
    spool.add((1, 1), "note", {"type": "HELLO", "message": "x"})
    first = spool.after(0)[0].age.ToNanoseconds()
    time.sleep(0.02)

    assert spool.after(0)[0].age.ToNanoseconds() - first >= 20_000_000
    spool.close()


def test_a_new_incarnation_sends_what_the_old_one_could_not(tmp_path: Path) -> None:
    """Unacknowledged facts survive with their fence and age, under new numbers; a torn last line is left out."""
    old = Spool(tmp_path / "facts.jsonl")
    old.add((1, 1), "phase_started", {"index": 0})
    old.acknowledge(1)
    old.add((1, 1), "plan_finished", {"result": {"kind": "adapter"}})
    old.add((1, 1), "rank_exited", {"rank": 0, "code": 0})
    time.sleep(0.02)
    old.close()
    with (tmp_path / "facts.jsonl").open("a") as file:
        file.write('{"fence": [1, 1], "ti')

    new = Spool(tmp_path / "facts.jsonl")
    facts = new.after(0)

    assert [(1, "plan_finished"), (2, "rank_exited")] == [(f.sequence, f.WhichOneof("fact")) for f in facts]
    assert "adapter" == facts[0].plan_finished.result["kind"]
    assert facts[0].age.ToNanoseconds() >= 20_000_000
    new.close()


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    """Acknowledged facts leave the disk."""
    spool = Spool(tmp_path / "facts.jsonl")
    for index in range(2000):
        spool.add((1, 1), "phase_started", {"index": index})
        spool.acknowledge(max(0, index - 3))

    assert len((tmp_path / "facts.jsonl").read_text().splitlines()) < 600
    spool.acknowledge(2000)
    assert "" == (tmp_path / "facts.jsonl").read_text()
    spool.close()


@pytest.mark.parametrize(("name", "body"), [("nonsense", {}), ("note", {"colour": "red"}), ("rank_exited", {"rank": "zero"})])
def test_what_is_no_fact_is_refused(tmp_path: Path, name: str, body: dict[str, str]) -> None:
    """Unknown facts and fields raise and leave nothing behind."""
    spool = Spool(tmp_path / "facts.jsonl")
    with pytest.raises(ValueError, match="fact"):
        spool.add((1, 1), name, body)

    assert [] == spool.after(0)
    assert "" == (tmp_path / "facts.jsonl").read_text()
    spool.close()


def test_numbers_beyond_32_bits_survive_the_file(tmp_path: Path) -> None:
    """Large steps come back from disk as they were."""
    spool = Spool(tmp_path / "facts.jsonl")
    spool.add((1, 1), "rank_exited", {"rank": 1, "code": -9, "step": 2**40, "log_lines": ["a"]})
    spool.close()
    again = Spool(tmp_path / "facts.jsonl")

    assert (1, -9, 2**40, ["a"]) == tuple(
        getattr(again.after(0)[0].rank_exited, n) if n != "log_lines" else list(again.after(0)[0].rank_exited.log_lines)
        for n in ("rank", "code", "step", "log_lines")
    )
    assert json.loads((tmp_path / "facts.jsonl").read_text())["fact"] == "rank_exited"
    again.close()
