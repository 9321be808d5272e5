"""Adapters that ship with Luthier: what the controller and the CLI know of them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from luthier.methods.spec_api import Needs, Spec

__all__ = ["SPECS", "FullParams", "LoraParams"]


class FullParams(BaseModel):
    """Full fine-tuning has no parameters: every weight is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraParams(BaseModel):
    """Low-rank adapters beside linear layers: y = W x + scale * B A x, with A [rank, inputs] and B [outputs, rank]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1, le=4096, description="Rank of the update.", json_schema_extra={"unit": "dimensions"})
    alpha: float = Field(
        default=32.0,
        gt=0,
        le=65536,
        description="Numerator of the scale: alpha / rank, or alpha / sqrt(rank) with use_rslora.",
        json_schema_extra={"unit": "1"},
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on the adapter's input while training.", json_schema_extra={"unit": "probability"}
    )
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        description="Linear layers that get an adapter: 'all-linear' (all but the LM head) or a list of the last parts of their names, "
        "for example [q_proj, v_proj].",
        json_schema_extra={"unit": "names"},
    )
    use_dora: bool = Field(
        default=False,
        description="Train the magnitude of every adapted weight beside its direction (DoRA; Liu et al., ICML 2024, arXiv:2402.09353).",
        json_schema_extra={"unit": "flag"},
    )
    use_rslora: bool = Field(
        default=False,
        description="Scale by alpha / sqrt(rank) (rsLoRA; Kalajdzievski, 2023, arXiv:2312.03732).",
        json_schema_extra={"unit": "flag"},
    )
    bias: Literal["none"] = Field(default="none", description="Biases stay frozen.", json_schema_extra={"unit": "name"})

    @field_validator("target_modules")
    @classmethod
    def _names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            if value != "all-linear":
                raise ValueError(f"{value!r} is neither 'all-linear' nor a list of module names; write [{value}]")
        else:
            if not value:
                raise ValueError("the list is empty: name at least one module, or write all-linear")
            for name in value:
                if not re.fullmatch(r"[A-Za-z0-9_.]{1,128}", name):
                    raise ValueError(f"{name!r} is not a module name (letters, digits, '_' and '.')")
            if len(set(value)) != len(value):
                raise ValueError("a module is named twice")
        return value


def _lora_needs(params: LoraParams) -> Needs:
    """DoRA takes norms of whole base weights inside its layers, where ZeRO-3 has them sharded."""
    return Needs(zero=frozenset({0, 1, 2})) if params.use_dora else Needs()


SPECS = (
    Spec(
        name="full",
        slot="adapter",
        version="1.0.0",
        summary="Train every weight.",
        params=FullParams,
        impl="luthier.methods.adapters.full:Full",
        needs=lambda params: Needs(),
        learning_rate=2e-5,
        example="adapter: full\n",
    ),
    Spec(
        name="lora",
        slot="adapter",
        version="1.0.0",
        summary="Train low-rank updates beside frozen linear layers; DoRA and rsLoRA by flag.",
        params=LoraParams,
        impl="luthier.methods.adapters.lora:Lora",
        paper="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685",
        needs=_lora_needs,
        learning_rate=2e-4,
        example="adapter: {name: lora, params: {rank: 8, alpha: 16, target_modules: [q_proj, v_proj]}}\n",
    ),
)
