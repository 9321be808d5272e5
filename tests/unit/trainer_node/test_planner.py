"""What the planner decides, and the word that ranks agree on."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import ConfigurationError, DataError, MethodError
from luthier.spec.models import JobSpec
from luthier.trainer_node.context import NONE, SAVE, STOP, RankContext
from luthier.trainer_node.control import Agreed, Control
from luthier.trainer_node.data.api import MicroBatch
from luthier.trainer_node.launch import NodeLaunch, RankLaunch
from luthier.trainer_node.loop import _check_counts, share_of
from luthier.trainer_node.planner import plan_run


class Pair:
    """This rank's group of two whose other rank contributes the same, or what `other` says."""

    rank = 0
    backend = "gloo"

    def __init__(self, world_size: int = 2, other: list[int] | None = None) -> None:
        self.world_size = world_size
        self.other = other

    def sum_ints(self, values: Any) -> list[int]:
        other = self.other or [0] * len(values)
        return [a + b for a, b in zip(values, other, strict=True)]

    def max_ints(self, values: Any) -> list[int]:
        return list(values)


class Line:
    """A channel that says given words, one a time."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)

    def control(self) -> Any:
        return self.words.pop(0) if self.words else NONE

    def grace(self) -> float | None:
        return None


def context(world_size: int = 1, micro_batch_size: int = 0, **training: Any) -> RankContext:
    spec = JobSpec.model_validate({"method": {"name": "sft"}, "training": training})
    node = NodeLaunch("u", "n", "t", 1, 0, 1, 1, "", "", "/", {})
    launch = RankLaunch(node, 1, 0, 0, world_size, "", "", micro_batch_size=micro_batch_size)
    group: Any = Pair(world_size)
    channel: Any = Line()
    return RankContext(launch, spec, channel, group, "cpu")


@pytest.mark.parametrize(
    ("world_size", "training", "expected"),
    [
        (1, {}, ("plain", 0)),
        (2, {}, ("deepspeed", 2)),
        (1, {"zero_stage": 3}, ("deepspeed", 3)),
        (2, {"zero_stage": 0}, ("deepspeed", 0)),
        (1, {"engine": "deepspeed"}, ("deepspeed", 0)),
    ],
)
def test_engine_and_stage(world_size: int, training: dict[str, Any], expected: tuple[str, int]) -> None:
    """One rank runs plain, several run ZeRO-2, unless the job says otherwise."""
    plan = plan_run(context(world_size, **training))

    assert expected == (plan.engine, plan.options.stage)
    assert "fp32" == plan.options.precision


@pytest.mark.parametrize(("world_size", "training"), [(2, {"engine": "plain"}), (1, {"engine": "plain", "zero_stage": 2})])
def test_plain_engine_with_several_ranks_is_refused(world_size: int, training: dict[str, Any]) -> None:
    """The error says what to change."""
    with pytest.raises(ConfigurationError, match="Fix: leave training.engine out"):
        plan_run(context(world_size, **training))


@pytest.mark.parametrize(
    ("arguments", "resumed", "expected"),
    [
        ({"batch_size": 16, "max_length": 64}, 0, 8),
        ({"batch_size": 66, "max_length": 256}, 0, 17),
        ({"batch_size": 16, "micro_batch_size": 3}, 0, 3),
        ({"batch_size": 16}, 5, 5),
        ({"batch_size": 1, "max_length": 100_000}, 0, 1),
    ],
)
def test_micro_batches(arguments: dict[str, Any], resumed: int, expected: int) -> None:
    """The share of a rank in equal parts that fit; the job's own number; the checkpoint's when resuming."""
    assert expected == plan_run(context(2, **arguments), micro_batch_size=resumed).micro_batch_size


def test_micro_batch_after_a_memory_error_wins() -> None:
    """The controller's choice is above the job's and the checkpoint's."""
    assert 2 == plan_run(context(2, micro_batch_size=2, batch_size=16), micro_batch_size=8).micro_batch_size


def test_every_rank_runs_the_same_number_of_micro_batches() -> None:
    """Five micro-batches on three ranks: two each, the sixth is empty and keeps its number."""
    micros = [MicroBatch(i, ((i,),)) for i in range(5)]

    shares = [share_of(micros, rank, 3) for rank in range(3)]

    assert [[0, 3], [1, 4], [2, 5]] == [[m.index for m in share] for share in shares]
    assert () == shares[2][1].sequences


def test_the_largest_word_of_any_rank_holds() -> None:
    """SAVE here and STOP there is STOP for all; the counts are summed beside it."""
    channel: Any = Line(SAVE)
    mine = Control(channel, Pair(1)).agree({"tokens": 3}, {"real": 4})  # type: ignore[arg-type]
    there: Any = Pair(2)

    class Other(Pair):
        def sum_ints(self, values: Any) -> list[int]:
            return [2 * values[0], values[1], 0, 1, *(2 * v for v in values[4:])]

    there = Other(2)
    other: Any = Line(SAVE)
    together = Control(other, there).agree({"tokens": 3, "micro_batches": 1}, {"real": 4, "due": 1})

    assert SAVE == mine.word
    assert STOP == together.word
    assert {"tokens": 6, "micro_batches": 2} == together.counts
    assert {"real": 8, "due": 2} == together.flags


def test_counts_with_other_names_elsewhere_are_refused() -> None:
    """Sums of unlike counts would be nonsense."""
    channel: Any = Line()
    group: Any = Pair(2, other=[999, 0, 0, 0, 5])

    with pytest.raises(MethodError, match="names its counts differently"):
        Control(channel, group).agree({"tokens": 3}, {})


def test_a_word_waits_for_the_next_agreement() -> None:
    """A leave that was noticed between two shards is still there at the next step."""
    channel: Any = Line(STOP)
    control = Control(channel, Pair(1))  # type: ignore[arg-type]

    assert control.leave_asked()
    assert STOP == control.agree({}, {}).word
    assert NONE == control.agree({}, {}).word


def test_a_batch_with_nothing_to_learn_is_an_error() -> None:
    """Zero learned tokens in a global batch never becomes a loss of zero."""
    with pytest.raises(DataError, match="step 7 has nothing to learn"):
        _check_counts(Agreed(NONE, {"tokens": 0, "micro_batches": 0}, {"learned": 0}), 7)
    _check_counts(Agreed(NONE, {"tokens": 2, "micro_batches": 1}, {"learned": 2}), 7)
