"""The sft method: its plan and what it reports."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import ConfigurationError
from luthier.methods.api import Artifact, DataRef, Evaluate, ModelRef, Result, Train
from luthier.methods.sft.method import Sft
from luthier.methods.sft.spec import SftParams

from .test_contract_on_paper import ADAPTER, PaperJob, replay


def test_plan_without_held_out_rows() -> None:
    """Nothing is evaluated when nothing is held out."""
    phases, _, result = replay(Sft(SftParams()), PaperJob(ADAPTER))
    assert [Train] == [type(p) for p in phases]
    assert {} == result.metrics


def test_report_pairs_before_and_after() -> None:
    """Metrics carry both evaluations, samples show the same prompts before and after, and the second evaluation sees what was trained."""
    job = PaperJob(ADAPTER, validation=DataRef("validation"), evaluation={"generate_rows": 4})
    plan = Sft(SftParams()).plan(job)

    def report(phase: Any, loss: float, answer: str) -> Artifact:
        assert isinstance(phase, Evaluate)
        assert (4, DataRef("validation")) == (phase.generate_rows, phase.data)
        rows = [{"prompt": "p", "expected": "e", "answer": answer}]
        return Artifact("r", "report", "d", "p", {"eval_loss": loss, "exact_match": loss / 4}, rows)

    before = plan.send(None)
    train = plan.send(report(before, 4.0, "old"))
    assert isinstance(train, Train)
    trained = ModelRef("job://base", state=Artifact("adapter", "adapter", "x", "y"))
    after = plan.send(trained)
    assert isinstance(after, Evaluate)
    assert trained == after.model
    with pytest.raises(StopIteration) as stop:
        plan.send(report(after, 1.0, "new"))
    result = stop.value.value
    assert isinstance(result, Result)
    expected = {"eval_loss_before": 4.0, "exact_match_before": 1.0, "eval_loss_after": 1.0, "exact_match_after": 0.25}
    assert expected == result.metrics
    assert [{"prompt": "p", "expected": "e", "before": "old", "after": "new"}] == list(result.samples)
    assert trained == result.model


def test_a_missing_model_is_a_configuration_error() -> None:
    """Without a model the plan says which field is missing."""
    with pytest.raises(ConfigurationError, match="set `model`"):
        next(Sft(SftParams()).plan(PaperJob(ADAPTER, model=None)))
