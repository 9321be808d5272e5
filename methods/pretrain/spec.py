"""`pretrain`: what the controller and the CLI know of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.methods.spec_api import Needs, Spec

__all__ = ["SPEC", "PretrainParams"]


class PretrainParams(BaseModel):
    """Size of the model that is made. Batch, length, budget and optimiser come from `training`; what is trainable from `adapter`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_layers: int = Field(default=4, ge=1, le=256, description="Decoder layers.", json_schema_extra={"unit": "layers"})
    width: int = Field(
        default=128,
        ge=8,
        le=65536,
        description="Width of the residual stream; a multiple of num_heads.",
        json_schema_extra={"unit": "features"},
    )
    num_heads: int = Field(
        default=4, ge=1, le=1024, description="Attention heads; width / num_heads is even.", json_schema_extra={"unit": "heads"}
    )
    num_kv_heads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Heads of keys and values (grouped-query attention); divides num_heads. Unset: num_heads.",
        json_schema_extra={"unit": "heads"},
    )
    intermediate_size: int | None = Field(
        default=None, ge=8, le=262144, description="Width inside the gated MLP. Unset: 3 x width.", json_schema_extra={"unit": "features"}
    )
    vocabulary_size: int = Field(
        default=1000,
        ge=264,
        le=1000000,
        description="Upper bound of the byte-level BPE vocabulary: 256 bytes, 8 special tokens, and merges while the text has pairs left.",
        json_schema_extra={"unit": "tokens"},
    )
    tie_embeddings: bool = Field(
        default=True, description="Use one matrix for the input embedding and the LM head.", json_schema_extra={"unit": "flag"}
    )

    @model_validator(mode="after")
    def _divisible(self) -> PretrainParams:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if (self.width // self.num_heads) % 2:
            raise ValueError(f"width / num_heads is {self.width // self.num_heads}, but rotary positions need an even number")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, default filled."""
        return self.num_kv_heads or self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP, default filled."""
        return self.intermediate_size or 3 * self.width


SPEC = Spec(
    name="pretrain",
    slot="method",
    version="1.0.0",
    summary="Make a byte-level BPE tokenizer and a Llama-architecture model from the job's text, and train it from scratch.",
    params=PretrainParams,
    impl="luthier.methods.pretrain.method:Pretrain",
    needs=lambda params: Needs(base_model=False, adapters=frozenset({"full"})),
    default_objective="nll",
    default_adapter="full",
    learning_rate=1e-3,
    example="""\
name: base
method:
  name: pretrain
  params: {num_layers: 3, width: 96, num_heads: 4, vocabulary_size: 800}
data:
  sources: [{uri: data/pretrain.jsonl}]
training: {batch_size: 32, max_length: 64, epochs: 6}
""",
)
