"""The torch-free half of a plugin: what the controller and the CLI know of it.

A plugin's `spec.py` makes one `Spec` (or several) from the classes here. A method, objective, adapter or recipe is known by its
id, which is folder name, proto string, metric label and CLI word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["Combination", "Cost", "Needs", "Shape", "Slot", "Spec"]

Slot = Literal["method", "objective", "adapter", "recipe"]


@dataclass(frozen=True)
class Needs:
    """What a plugin tolerates and requires; checked at submit, a violation names the need."""

    zero: frozenset[int] = frozenset({0, 1, 2, 3})
    """ZeRO stages it works with."""
    packing: bool = True
    """Tolerates several rows in one sequence."""
    activation_checkpointing: bool = True
    """Tolerates recomputed activations."""
    batch_coupled: bool = False
    """The loss couples the rows of a micro-batch, so accumulation changes it."""
    base_model: bool = True
    """Starts from a model; False for a method that makes one."""
    data: bool = True
    """Reads training rows."""
    generation: bool = False
    """Generates text during the plan."""
    roles: tuple[str, ...] = ()
    """Extra model slots that the job must bind in `model.roles`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Row columns it needs, by name with type, for example {"task_type": "int8[sample]"}."""
    adapters: frozenset[str] | None = None
    """Adapters it works with; None means any."""
    objectives: frozenset[str] | None = None
    """Objectives it works with; None means any."""
    gauges: Mapping[str, str] = field(default_factory=dict)
    """Metrics it adds, name -> help; exported as `luthier_method_<name>`."""


@dataclass(frozen=True)
class Shape:
    """What is known of a job before it runs: parameter count, layers, width, vocabulary, rows and mean length (0: unknown)."""

    num_parameters: int = 0
    num_layers: int = 0
    width: int = 0
    vocabulary_size: int = 0
    num_rows: int = 0
    mean_length: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Estimate: peak bytes by part on one rank, and forward passes' worth of work per row."""

    memory_bytes: Mapping[str, int]
    passes_per_row: float


@dataclass(frozen=True)
class Combination:
    """What an alias stands for: one entry per slot it fixes, with parameter overrides."""

    method: str = ""
    objective: str = ""
    adapter: str = ""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Overrides by slot."""


@dataclass(frozen=True)
class Spec:
    """One plugin as the controller sees it."""

    name: str
    slot: Slot
    version: str
    summary: str
    """One sentence."""
    params: type[BaseModel]
    """Pydantic class of the parameters (extra="forbid", frozen); its JSON schema is the public schema."""
    impl: str
    """"package.module:Class", imported on trainer nodes only; called with the validated parameters."""
    paper: str = ""
    """Authors, title, venue and year, link; empty for the basics."""
    needs: Callable[[Any], Needs] = lambda params: Needs()
    """Needs for given parameters."""
    estimate: Callable[[Any, Shape], Cost] | None = None
    default_objective: str = "nll"
    """Methods only: objective when the job names none."""
    default_adapter: str = "full"
    """Methods only: adapter when the job names none."""
    learning_rate: float | None = None
    """Adapters and methods: default peak rate; the method's wins over the adapter's."""
    example: str = ""
    """A worked example in YAML."""
    alias: Combination | None = None
    """Set when the id is an alias for a combination of slots; `impl` is unused then."""
