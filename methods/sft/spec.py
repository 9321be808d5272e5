"""`sft`: what the controller and the CLI know of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from luthier.methods.spec_api import Needs, Spec

__all__ = ["SPEC", "SftParams"]


class SftParams(BaseModel):
    """Supervised fine-tuning has no parameters: the loss is the objective's, what is trained the adapter's, the rest `training`'s."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SPEC = Spec(
    name="sft",
    slot="method",
    version="1.0.0",
    summary="Supervised fine-tuning: one training pass over demonstrations, evaluated before and after when there are held-out rows.",
    params=SftParams,
    impl="luthier.methods.sft.method:Sft",
    needs=lambda params: Needs(),
    default_objective="nll",
    default_adapter="full",
    example="""\
name: tune
model: job://base
method: sft
adapter: {name: lora, params: {rank: 8, alpha: 16}}
data:
  sources: [{uri: data/tune_train.jsonl}]
  validation: [{uri: data/tune_validation.jsonl}]
training: {batch_size: 32, max_length: 64, epochs: 6, zero_stage: 2}
resources: {nodes: 2}
evaluation: {generate_rows: 64, max_new_tokens: 16}
""",
)
