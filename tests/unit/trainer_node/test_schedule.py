"""Learning-rate schedules at the steps that matter."""

from __future__ import annotations

import math

import pytest

from luthier.trainer_node.schedule import Schedule


def test_warm_up_is_linear_and_the_first_step_learns() -> None:
    """The rate rises in equal parts and reaches the peak at the first step after the warm-up."""
    schedule = Schedule.make("cosine", 1.0, 100, 4, 0.1)

    assert [0.2, 0.4, 0.6, 0.8, 1.0] == pytest.approx([schedule.rate(s) for s in range(5)])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_ends_at_the_final_ratio(name: str) -> None:
    """The last step, and any later one, has the final rate."""
    schedule = Schedule.make(name, 2e-4, 50, 5, 0.1)  # type: ignore[arg-type]

    assert 2e-5 == pytest.approx(schedule.rate(49))
    assert 2e-5 == pytest.approx(schedule.rate(500))


def test_midpoints() -> None:
    """Half way through the decay cosine and linear both stand at the mean of peak and final rate; constant stays."""
    rates = {n: Schedule.make(n, 1.0, 101, 0, 0.0).rate(50) for n in ("cosine", "linear", "constant")}

    assert {"cosine": pytest.approx(0.5), "linear": pytest.approx(0.5), "constant": 1.0} == rates
    assert pytest.approx(0.5 * (1 + math.cos(math.pi / 4))) == Schedule.make("cosine", 1.0, 101, 0, 0.0).rate(25)


@pytest.mark.parametrize(("total", "given", "expected"), [(100, None, 3), (10, None, 1), (1, None, 0), (5, 50, 4), (200, 7, 7)])
def test_warm_up_length(total: int, given: int | None, expected: int) -> None:
    """No warm-up length means 3 % of the steps; one longer than the run is cut."""
    assert expected == Schedule.make("linear", 1.0, total, given, 0.1).warmup_steps


def test_one_step_run_uses_the_peak() -> None:
    """A run of one step learns at the peak."""
    assert 1.0 == Schedule.make("cosine", 1.0, 1, None, 0.1).rate(0)
