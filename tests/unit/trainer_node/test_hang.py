"""The hang watch: learned time-outs, two confirmations."""

from __future__ import annotations

from luthier.trainer_node.hang import HangWatch


def watch(hang_timeout: float = 10.0) -> HangWatch:
    """A watch of one rank that has made four steps of one second, until second 5."""
    hang = HangWatch(hang_timeout, confirm_seconds=5.0)
    hang.start(0, 0.0)
    for second in range(1, 6):
        hang.beat(0, "step", float(second))
    return hang


def test_a_rank_that_beats_is_fine() -> None:
    """Silence up to the time-out is no reason to look twice."""
    hang = watch()

    assert "fine" == hang.check(0, 15.0)
    assert 10.0 == hang.silence(0, 15.0)


def test_silence_is_confirmed_twice() -> None:
    """Suspicion first, a verdict only when it lasts."""
    hang = watch()

    assert ["suspect", "suspect", "hung"] == [hang.check(0, second) for second in (15.1, 18.0, 20.2)]


def test_a_beat_clears_the_suspicion() -> None:
    """An agent that was itself stopped reads the waiting beats before it kills."""
    hang = watch()
    assert "suspect" == hang.check(0, 100.0)
    hang.beat(0, "step", 100.1)

    assert "fine" == hang.check(0, 106.0)


def test_the_time_out_is_learned_from_the_run() -> None:
    """A section that once took long may take several times as long; it never falls below the job's hang_timeout."""
    hang = watch()
    hang.beat(0, "checkpoint", 6.0)
    hang.beat(0, "step", 46.0)

    assert 10.0 == hang.timeout("step")
    assert 8 * 40.0 == hang.timeout("checkpoint")


def test_the_first_steps_may_take_longer() -> None:
    """Until a section was seen a few times its floor is larger; set-up has a large one anyway."""
    hang = HangWatch(10.0)
    hang.start(0, 0.0)

    assert (50.0, 20.0, 600.0) == (hang.timeout("setup"), hang.timeout("step"), hang.timeout("waiting"))


def test_a_rank_that_ended_is_not_watched() -> None:
    """No verdict about the dead."""
    hang = watch()
    hang.end(0)

    assert "fine" == hang.check(0, 1e9)
