"""Supervised fine-tuning: evaluate, train once over the demonstrations, evaluate again."""

from __future__ import annotations

from luthier.errors import ConfigurationError
from luthier.methods.api import Artifact, Evaluate, Job, Plan, Result, Train
from luthier.methods.sft.spec import SftParams

__all__ = ["Sft"]


class Sft:
    """One Train phase, between two evaluations when there are held-out rows."""

    def __init__(self, params: SftParams) -> None:
        self.params = params

    def plan(self, job: Job) -> Plan:
        """Result metrics: eval_loss_before and _after, and with `evaluation.generate_rows` also exact_match_before and _after."""
        if job.model is None:
            raise ConfigurationError("sft needs a model to start from", fix="set `model`, for example model: job://base")
        held_out = job.validation
        rows = int(job.evaluation.get("generate_rows") or 0)
        before: Artifact | None = None
        after: Artifact | None = None
        if held_out is not None:
            before = yield Evaluate(job.model, held_out, generate_rows=rows, title="evaluate before")
        model = yield Train(job.objective, job.train, job.model, job.adapter)
        if held_out is not None:
            after = yield Evaluate(model, held_out, generate_rows=rows, title="evaluate after")
        if before is None or after is None:
            return Result(model=model)
        return Result(
            model=model,
            metrics={f"{name}_{when}": x for when, report in (("before", before), ("after", after)) for name, x in report.metrics.items()},
            samples=[
                {"prompt": old["prompt"], "expected": old["expected"], "before": old["answer"], "after": new["answer"]}
                for old, new in zip(before.samples, after.samples, strict=True)
            ],
        )
