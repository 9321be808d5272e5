"""How a job runs on the devices it got: engine, ZeRO stage, precision, micro-batch. Pure decisions with a reason each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from luthier.errors import ConfigurationError
from luthier.spec.models import TrainingSpec
from luthier.trainer_node.context import RankContext
from luthier.trainer_node.engine.api import EngineOptions

__all__ = ["RunPlan", "plan_run"]

PERSISTENCE_VARIABLE = "LUTHIER_ZERO3_PERSISTENCE_THRESHOLD"
"""For tests: with DeepSpeed's usual threshold nothing of a toy model is partitioned."""
_PERSISTENCE_THRESHOLD = 100_000
SHARDED_LOAD_VARIABLE = "LUTHIER_ZERO3_SHARDED_LOAD_BYTES"
"""For tests: weights from this size on are sharded while they are read at ZeRO-3."""
_SHARDED_LOAD_BYTES = 4 << 30
_TOKENS_AT_ONCE = {"cpu": 8192, "cuda": 16384}
"""Positions of one micro-batch that the planner aims at: enough for full matmul speed, small beside a device's memory."""


@dataclass(frozen=True)
class RunPlan:
    """What was decided for a Train phase."""

    engine: Literal["plain", "deepspeed"]
    options: EngineOptions
    micro_batch_size: int
    """Rows in one forward pass of one rank. The global batch does not depend on it."""
    reasons: tuple[str, ...]

    def sharded_load(self, weight_bytes: int) -> bool:
        """Whether no rank may hold the whole model in host memory while it is read. Small models load faster whole."""
        return self.options.stage == 3 and weight_bytes >= int(os.environ.get(SHARDED_LOAD_VARIABLE, _SHARDED_LOAD_BYTES))

    @property
    def dtype(self) -> torch.dtype:
        """Number format that the network is loaded in."""
        return torch.bfloat16 if self.options.precision == "bf16" and self.options.stage > 0 else torch.float32


def plan_run(context: RankContext, *, micro_batch_size: int = 0) -> RunPlan:
    """Decide. `micro_batch_size`: that of the checkpoint to resume from, so that the same random numbers are drawn; 0 for none.

    Raises `ConfigurationError` for an engine that cannot run so.
    """
    training, world_size, device = context.spec.training, context.group.world_size, context.device
    kind = "cuda" if device.startswith("cuda") else "cpu"
    reasons = []
    stage = training.zero_stage
    if stage is None:
        stage = 0 if world_size == 1 or training.engine == "plain" else 2
        reasons.append(f"ZeRO {stage}: {'one rank has nothing to share' if stage == 0 else 'several ranks share gradients and moments'}")
    engine = training.engine
    if engine == "plain" and (world_size > 1 or stage > 0):
        raise ConfigurationError(
            f"the plain engine runs one rank without sharding, not {world_size} ranks at ZeRO {stage}",
            where="training.engine", fix="leave training.engine out, or set it to deepspeed",
        )  # fmt: skip
    if engine == "auto":
        engine = "plain" if world_size == 1 and stage == 0 else "deepspeed"
    precision = training.precision
    if precision == "auto":
        precision = "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        reasons.append(f"{precision}: {'the device has it' if precision == 'bf16' else 'exact, and fastest on this device'}")
    options = EngineOptions(
        stage=stage, precision=precision, max_grad_norm=training.max_grad_norm, beta1=training.optimizer.beta1,
        beta2=training.optimizer.beta2, epsilon=training.optimizer.epsilon, device=device,
        persistence_threshold=int(os.environ.get(PERSISTENCE_VARIABLE, _PERSISTENCE_THRESHOLD)),
    )  # fmt: skip
    rows, why = _micro_batch(training, world_size, kind, context.launch.micro_batch_size, micro_batch_size)
    return RunPlan(engine, options, rows, (*reasons, f"micro-batch of {rows}: {why}"))


def _micro_batch(training: TrainingSpec, world_size: int, kind: str, forced: int, resumed: int) -> tuple[int, str]:
    if forced:
        return forced, "reduced after a memory error"
    if resumed:
        return resumed, "as in the checkpoint"
    if training.micro_batch_size:
        return training.micro_batch_size, "as the job says"
    share = -(-training.batch_size // world_size)
    fitting = max(1, _TOKENS_AT_ONCE[kind] // training.max_length)
    if share <= fitting:
        return share, "the rank's share of the batch"
    # Equal parts: a share of 33 with room for 32 becomes 17 + 16, not 32 + 1.
    return -(-share // -(-share // fitting)), f"at most {_TOKENS_AT_ONCE[kind]} positions at once"
