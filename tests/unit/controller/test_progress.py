"""Progress, pace and what time is charged to."""

from __future__ import annotations

import pytest
from tests.unit.controller.builders import generation, job

from luthier.controller.progress import Pace, SampleRow, after_phase_done, after_phase_started, after_samples, phase_cause, reached_before


def row(step: int, time: float, *, total: int = 100, phase: int = 1, **values: float) -> SampleRow:
    """A row of node 0."""
    return SampleRow(phase, step, step, total, time, values)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("train", "PRODUCTIVE"), ("scan", "PRODUCTIVE"), ("build", "PRODUCTIVE"), ("evaluate", "EVALUATING"), ("generate", "GENERATING")],
)
def test_phases_are_charged_by_kind(kind: str, cause: str) -> None:
    """Scan and Build are productive."""
    assert phase_cause(kind) == cause


def test_the_time_left_follows_from_the_last_steps() -> None:
    """Half a second a step over the remembered rows; the rest of the phase takes that long."""
    progress = after_samples(job(), [row(10, 1.0, loss=3.0), row(12, 2.0, loss=2.5, tokens_per_second=64.0)], Pace())

    assert (progress["step"], progress["total_steps"], progress["fraction"]) == (12, 100, 0.12)
    assert (progress["loss"], progress["tokens_per_second"], progress["eta"]) == (2.5, 64.0, "44.000s")


def test_a_new_phase_starts_a_new_pace() -> None:
    """Steps of an earlier phase, or of an earlier run of the same one, say nothing about this one."""
    pace = Pace()
    after_samples(job(), [row(1, 0.0), row(2, 9.0)], pace)

    assert pace.seconds_per_step() == 9.0
    after_samples(job(), [row(1, 10.0, phase=2)], pace)
    assert pace.seconds_per_step() is None
    after_samples(job(), [row(5, 11.0, phase=2), row(2, 12.0, phase=2), row(4, 13.0, phase=2)], pace)
    assert pace.seconds_per_step() == 0.5


def test_numbers_that_are_none_are_left_out() -> None:
    """A loss that is not finite does not reach the record, which is JSON."""
    progress = after_samples(job(progress={"loss": 1.0}), [row(3, 1.0, loss=float("nan"))], Pace())

    assert progress["loss"] == 1.0


def test_phases_move_progress() -> None:
    """A phase starts at its step without an old ETA, and ends complete with its held-out loss."""
    before = job(progress={"eta": "3s", "fraction": 0.7})
    started = after_phase_started(before, index=3, kind="train", title="train", total_steps=10, start_step=4, device="cpu/gloo")
    done = after_phase_done(job(progress=started), metrics={"eval_loss": 1.5, "steps": 10.0})

    assert started == {"fraction": 0.4, "phase": "train", "phase_index": 3, "step": 4, "total_steps": 10, "device": "cpu/gloo"}
    assert (done["step"], done["fraction"], done["eval_loss"]) == (10, 1.0, 1.5)


def test_steps_that_are_done_again_are_known() -> None:
    """A generation that starts before the place its job had reached recomputes up to there; one that does not, does not."""
    resume = {"phase_index": 1, "step": 10}
    first = generation(1, phase_index=1, last_step=17)

    assert reached_before([first]) is None
    assert reached_before([first, generation(2, resume_from=resume, start_step=10)]) == (1, 17)
    assert reached_before([generation(1, phase_index=1, last_step=10), generation(2, resume_from=resume)]) is None


def test_an_early_stop_ends_where_it_stopped() -> None:
    """The steps that a Train phase tells are all that there will be."""
    started = after_phase_started(job(), index=1, kind="train", title="", total_steps=100, start_step=0, device="")
    done = after_phase_done(job(progress=started), metrics={"steps": 40.0})

    assert (done["step"], done["total_steps"], done["fraction"]) == (40, 40, 1.0)


def test_what_comes_after_training_leaves_its_steps_to_be_seen() -> None:
    """An evaluation has no steps, and samples of the training that are written late do not bring the old phase back."""
    trained = job(progress={"phase": "train", "phase_index": 1, "step": 40, "total_steps": 40, "fraction": 1.0})
    evaluating = after_phase_started(trained, index=2, kind="evaluate", title="", total_steps=0, start_step=0, device="")
    late = after_samples(job(progress=evaluating), [row(39, 1.0, loss=0.5)], Pace())

    assert (evaluating["phase"], evaluating["step"], evaluating["total_steps"]) == ("evaluate", 40, 40)
    assert late == {**evaluating, "loss": 0.5}
