"""Negative log-likelihood: the ordinary language-model loss over learned tokens."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.methods.api import Batch, Loss, Models, Term
from luthier.methods.objectives.spec import NllParams

__all__ = ["Nll"]


class Nll:
    """-sum of log p(token) over the learned tokens, divided by their global number: padding and prompts have no weight."""

    def __init__(self, params: NllParams) -> None:
        self.params = params

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """{"tokens": learned tokens of the micro-batch}."""
        return {"tokens": int(batch.learned().sum())}

    def __call__(self, models: Models, batch: Batch) -> Loss:
        return Loss(terms={"nll": Term(sum=-models.logprobs(batch).logprobs.sum(), count="tokens")})
