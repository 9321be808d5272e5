"""The engine: weights, gradients, optimiser and sharding behind about ten methods.

The loop hands an engine losses that are already divided by the *global* counts of the step, runs the same number of `backward`
calls on every rank, then one `step`. Everything that differs between one process, ZeRO stages and devices stays behind this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["MOMENTS", "WEIGHT", "Engine", "EngineOptions", "Fragment", "Key", "ParameterGroup", "StateSource", "StepResult"]

Key = Literal["w", "exp_avg", "exp_avg_sq"]
"""fp32 master weight, first and second Adam moment."""
WEIGHT: Key = "w"
MOMENTS: tuple[Key, Key] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class EngineOptions:
    """What an engine must know of a phase."""

    stage: int
    """ZeRO stage, 0 to 3."""
    precision: Literal["fp32", "bf16"]
    max_grad_norm: float
    """Largest global gradient norm; 0 switches clipping off."""
    beta1: float
    beta2: float
    epsilon: float
    device: str
    persistence_threshold: int
    """ZeRO-3: parameters up to this many elements stay whole on every rank. 0 partitions everything."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters by name that share a weight decay."""

    tag: str
    names: tuple[str, ...]
    weight_decay: float


@dataclass(frozen=True)
class Fragment:
    """The part of one parameter's training state that this rank owns: elements [start, start + length) of the flattened tensor."""

    name: str
    start: int
    length: int
    shape: tuple[int, ...]
    read: Callable[[Key], Tensor]
    """The fragment's fp32 values, flat [length], on the engine's device; a view where possible."""


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did."""

    grad_norm: float
    """Global L2 norm before clipping; infinite or NaN when a gradient is not finite."""
    applied: bool
    """False when the gradient was not finite: weights and moments are untouched."""


class StateSource(Protocol):
    """Where a training state is read from, by parameter name; see `luthier.trainer_node.fragments`."""

    @property
    def optimizer_steps(self) -> int:
        """Adam's step count."""
        ...

    def read(self, name: str, key: Key, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of the flattened fp32 tensor, on CPU. Raises `StorageError` when some are missing."""
        ...


class Engine(Protocol):
    """A network under training."""

    @property
    def options(self) -> EngineOptions: ...

    @property
    def policy(self) -> nn.Module:
        """Call this for forward passes of the trained network; see `luthier.trainer_node.logprobs.Policy`."""
        ...

    @property
    def optimizer_steps(self) -> int:
        """Adam's step count."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar that is already divided by global counts; gradients of all ranks are summed."""
        ...

    def step(self, learning_rate: float) -> StepResult:
        """Clip, update and clear the gradients. Collective. A non-finite gradient changes nothing but the gradients."""
        ...

    def gather(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor | None]]:
        """Full tensors one at a time, fp32 master where there is one: on CPU at rank 0, None elsewhere. Collective; consume it whole."""
        ...

    def fragments(self) -> list[Fragment]:
        """What this rank must store so that all ranks together can rebuild the training state. No communication."""
        ...

    def load(self, state: StateSource) -> None:
        """Set weights, moments and Adam's step count. No communication."""
        ...

    def generation_view(self) -> AbstractContextManager[nn.Module]:
        """The whole network, in evaluation mode and without gradients, usable without collectives inside. Entering is collective."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes by kind ("allocated", "peak"); empty where the device does not tell."""
        ...

    def close(self) -> nn.Module:
        """Take the engine down and give the network back as ordinary parameters. Collective. The engine is unusable afterwards."""
        ...


def torch_dtype(options: EngineOptions) -> torch.dtype:
    """The number format of sharded weights."""
    import torch

    return torch.bfloat16 if options.precision == "bf16" else torch.float32
