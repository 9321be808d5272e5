"""Objectives that ship with Luthier: what the controller and the CLI know of them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from luthier.methods.spec_api import Needs, Spec

__all__ = ["SPECS", "NllParams"]


class NllParams(BaseModel):
    """Negative log-likelihood has no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SPECS = (
    Spec(
        name="nll",
        slot="objective",
        version="1.0.0",
        summary="Mean negative log-likelihood of the learned tokens, over all learned tokens of the global batch.",
        params=NllParams,
        impl="luthier.methods.objectives.nll:Nll",
        needs=lambda params: Needs(),
        example="objective: nll\n",
    ),
)
