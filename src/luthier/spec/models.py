"""The validated specification of a job, by part.

These classes mirror `luthier.v1.JobSpec` field by field (same names; enums as their short lower-case words). They fill the defaults,
check the ranges and are what the controller resolves, stores (as proto) and hands to trainer nodes (as JSON). Conversion to and
from protos lives in `luthier.spec.convert`, and nowhere else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "ENV_NAME",
    "ENV_REFUSED",
    "AdapterSpec",
    "CheckpointPolicy",
    "DataRecipeSpec",
    "DataSource",
    "DataSpec",
    "EarlyStop",
    "EvaluationSpec",
    "FaultSpec",
    "JobSpec",
    "MethodSpec",
    "ModelSpec",
    "NodeRange",
    "ObjectiveSpec",
    "OptimizerSpec",
    "OutputSpec",
    "ResourceSpec",
    "ScheduleSpec",
    "SchedulingSpec",
    "SecretRef",
    "TrainingSpec",
]

ShortText = Annotated[str, Field(max_length=2048)]
Params = dict[str, Any]


class _Part(BaseModel):
    """Base of every part: unknown fields are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSpec(_Part):
    """A model by address; see `luthier.v1.Model`."""

    uri: ShortText
    tokenizer_uri: ShortText = ""
    roles: dict[str, ShortText] = Field(default_factory=dict, max_length=16)


class DataSource(_Part):
    """One file or directory of rows; see `luthier.v1.DataSource`."""

    uri: ShortText
    format: Literal["auto", "jsonl", "json", "parquet", "csv", "text"] = "auto"
    shape: Literal["auto", "prompt_completion", "messages", "alpaca", "text"] = "auto"
    weight: float = Field(default=1.0, gt=0, le=1000)
    max_rows: int = Field(default=0, ge=0)
    columns: dict[str, str] = Field(default_factory=dict, max_length=16)


class DataRecipeSpec(_Part):
    """A named transformation of the rows before training."""

    name: str
    params: Params = Field(default_factory=dict)


class DataSpec(_Part):
    """Rows to learn from and how to read them; see `luthier.v1.Data`."""

    sources: tuple[DataSource, ...] = Field(default=(), max_length=256)
    validation: tuple[DataSource, ...] = Field(default=(), max_length=256)
    validation_fraction: float = Field(default=0.0, ge=0, le=0.5)
    columns: dict[str, str] = Field(default_factory=dict, max_length=16)
    on_bad_row: Literal["fail", "skip"] = "fail"
    bad_row_threshold: float = Field(default=0.1, ge=0, le=1)
    overlong: Literal["auto", "truncate_right", "truncate_left", "drop", "split"] = "auto"
    system_prompt: str | None = None
    recipes: tuple[DataRecipeSpec, ...] = Field(default=(), max_length=16)


class MethodSpec(_Part):
    """The plan of a job: a registered method."""

    name: str = Field(min_length=1, max_length=63)
    version: str = ""
    params: Params = Field(default_factory=dict)


class ObjectiveSpec(_Part):
    """The loss of a job: a registered objective."""

    name: str = Field(min_length=1, max_length=63)
    params: Params = Field(default_factory=dict)


class AdapterSpec(_Part):
    """What is trainable: a registered adapter."""

    name: str = Field(min_length=1, max_length=63)
    params: Params = Field(default_factory=dict)


class OptimizerSpec(_Part):
    """An optimiser with explicit coefficients. `learning_rate` None means the adapter's default."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=10)


class ScheduleSpec(_Part):
    """A learning-rate schedule. `warmup_steps` None means 3 % of the steps."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int | None = Field(default=None, ge=0, le=10**8)
    final_ratio: float = Field(default=0.1, ge=0, le=1)


class TrainingSpec(_Part):
    """How training runs; see `luthier.v1.Training`. At most one of `epochs`, `steps`, `tokens`; none means 3 epochs."""

    batch_size: int = Field(default=16, ge=1, le=65536)
    micro_batch_size: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=512, ge=8, le=1048576)
    packing: Literal["auto", "off", "length_grouped", "packed"] = "auto"
    epochs: float | None = Field(default=None, gt=0, le=10000)
    steps: int | None = Field(default=None, ge=1, le=10**8)
    tokens: int | None = Field(default=None, ge=1, le=10**15)
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    max_grad_norm: float = Field(default=1.0, ge=0, le=1e6)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    zero_stage: int | None = Field(default=None, ge=0, le=3)
    engine: Literal["auto", "deepspeed", "plain"] = "auto"
    gradient_checkpointing: bool = False
    log_every_steps: int = Field(default=1, ge=1, le=100000)
    threads_per_rank: int | None = Field(default=None, ge=1, le=1024)

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingSpec:
        given = [n for n in ("epochs", "steps", "tokens") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of epochs, steps and tokens, not {' and '.join(given)}")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}")
        return self


class NodeRange(_Part):
    """Smallest and largest number of nodes; 0 means the other one, both 0 mean 1."""

    min: int = Field(default=0, ge=0, le=1024)
    max: int = Field(default=0, ge=0, le=1024)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if isinstance(value, dict):
            low, high = value.get("min") or 0, value.get("max") or 0
            return {**value, "min": low or high or 1, "max": high or low or 1}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> NodeRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class ResourceSpec(_Part):
    """Nodes, processes and devices; see `luthier.v1.Resources`."""

    nodes: NodeRange = NodeRange(min=1, max=1)
    processes_per_node: int = Field(default=1, ge=1, le=64)
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    cpu: float = Field(default=0.0, ge=0, le=1024)
    memory_bytes: int = Field(default=0, ge=0)
    node_profile: str = ""


class SchedulingSpec(_Part):
    """When the job runs. `deadline` in seconds; None means none."""

    queue: str = Field(default="default", min_length=1, max_length=63)
    priority: int = Field(default=0, ge=-1000, le=1000)
    deadline: float | None = Field(default=None, gt=0)


class CheckpointPolicy(_Part):
    """When checkpoints are made and which are kept. `every` in seconds."""

    every_steps: int = Field(default=0, ge=0, le=10**8)
    every: float = Field(default=300.0, gt=0)
    keep_last: int = Field(default=2, ge=1, le=1000)


class FaultSpec(_Part):
    """What happens when something breaks. `hang_timeout` in seconds."""

    infra_retries: int = Field(default=5, ge=0, le=1000)
    memory_retries: int = Field(default=1, ge=0, le=8)
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    hang_timeout: float = Field(default=120.0, ge=1, le=86400)
    non_finite: Literal["skip", "rewind", "stop"] = "skip"


class OutputSpec(_Part):
    """What the job leaves behind."""

    uri: ShortText = ""
    form: Literal["auto", "adapter", "merged"] = "auto"


class EarlyStop(_Part):
    """Early stop on the held-out loss."""

    patience: int = Field(ge=1, le=1000)
    min_delta: float = Field(default=0.0, ge=0, le=100)


class EvaluationSpec(_Part):
    """Held-out evaluation; see `luthier.v1.Evaluation`."""

    every_steps: int = Field(default=0, ge=0)
    max_rows: int = Field(default=256, ge=0)
    generate_rows: int = Field(default=0, ge=0, le=100000)
    max_new_tokens: int = Field(default=64, ge=1, le=8192)
    early_stop: EarlyStop | None = None


class SecretRef(_Part):
    """A secret that the operator configured."""

    env: str
    secret: str


ENV_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,127}")
"""Names of environment variables that a job may choose."""
ENV_REFUSED = re.compile(r"(LD_|PYTHON|PATH$|TORCH|NCCL_SOCKET|GLOO_|HF_ENDPOINT$|LUTHIER_)")
"""Beginnings of names that a job may not set: they steer the loader, the interpreter or the group."""


class JobSpec(_Part):
    """The whole specification of a job; see `luthier.v1.JobSpec`."""

    model: ModelSpec | None = None
    data: DataSpec = DataSpec()
    method: MethodSpec
    objective: ObjectiveSpec | None = None
    adapter: AdapterSpec | None = None
    training: TrainingSpec = TrainingSpec()
    resources: ResourceSpec = ResourceSpec()
    scheduling: SchedulingSpec = SchedulingSpec()
    faults: FaultSpec = FaultSpec()
    output: OutputSpec = OutputSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    env: dict[str, str] = Field(default_factory=dict, max_length=64)
    secret_refs: tuple[SecretRef, ...] = Field(default=(), max_length=64)

    @field_validator("env")
    @classmethod
    def _allowed_env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not ENV_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a variable name ([A-Z][A-Z0-9_]*)")
            if ENV_REFUSED.match(name):
                raise ValueError(f"{name} may not be set by a job")
            if len(text) > 8192 or "\0" in text:
                raise ValueError(f"the value of {name} is longer than 8192 characters or contains a NUL")
        return value
