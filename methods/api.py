"""The contract between a method and the trainer: phases and roles.

A method is a deterministic generator of phases over named artefacts. The runner executes each phase, journals its result and
sends it back into the generator; a resume replays the generator and feeds it journalled results up to the first unfinished
phase. Hidden state (wall clock, unrecorded randomness, files of its own) breaks the replay and fails with PLAN_DIVERGED.

Shapes: B rows of a micro-batch, T tokens of a row, N samples in it (N >= B when packed), V vocabulary, L learned positions,
D model width. Suffixes name logical dimensions, not shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Artifact", "ArtifactWriter", "Batch", "Budget", "Build", "DataRef", "Decoder", "Emitted", "Evaluate", "Export", "Generate", "Job",
    "JobData", "Loss", "Method", "ModelRef", "Models", "Objective", "Phase", "Plan", "Probe", "Result", "Scan", "Surgery", "TensorSource",
    "Term", "TokenLogprobs", "Train", "current_batch", "emit", "emitting", "fingerprint",
]  # fmt: skip


# --- values that travel through the journal (JSON) -------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """A durable, content-addressed output of a phase. `path` is below the job's store prefix; `digest` is SHA-256 of its manifest."""

    name: str
    kind: str
    digest: str
    path: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()
    """Evaluate only: the first rows of `samples.json` (at most 8), so that a plan can report them without reading files."""


@dataclass(frozen=True)
class ModelRef:
    """Weights to start from: a directory in transformers' format (`base`), plus what training added to it (`state`, an artifact).

    `base` is an address of the job's spec (resolved on the node), or the path of an artifact of kind "model" below the job's prefix.
    """

    base: str
    digest: str = ""
    state: Artifact | None = None


@dataclass(frozen=True)
class DataRef:
    """Rows: a split of the job's data ("train", "validation"), or an artifact of kind "rows"."""

    split: str = "train"
    artifact: Artifact | None = None


@dataclass(frozen=True)
class Budget:
    """When a Train phase ends; exactly one is set."""

    epochs: float | None = None
    steps: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Result:
    """What a plan returns: the model to export (None: nothing), final numbers, and a report."""

    model: ModelRef | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()
    """Rows with keys prompt, expected, before, after."""


# --- phases ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Train:
    """A gradient phase. Its result is a `ModelRef`."""

    objective: Objective
    data: DataRef
    start: ModelRef
    surgery: Surgery
    budget: Budget | None = None
    """None: the job's own."""
    models: Mapping[str, ModelRef] = field(default_factory=dict)
    """Frozen extras by role."""
    carry: bool = False
    """Keep optimiser and resident engine of the previous Train phase."""
    title: str = "train"


@dataclass(frozen=True)
class Scan:
    """One pass over data without optimiser steps. Its result is an `Artifact` of kind "scan" with what the probe wrote."""

    probe: Probe
    data: DataRef
    model: ModelRef
    grad: bool = False
    title: str = "scan"


@dataclass(frozen=True)
class Generate:
    """Text out. Its result is an `Artifact` of kind "rows"."""

    prompts: DataRef
    models: Mapping[str, ModelRef]
    decoder: Decoder | None = None
    """None: the only model's own logits."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    title: str = "generate"


@dataclass(frozen=True)
class Build:
    """A pure function of its inputs, run by rank 0. Its result is an `Artifact`.

    `fn(out, inputs, job)` writes files into the directory `out.path` and returns numbers for the report.
    """

    name: str
    kind: str
    fn: Callable[[ArtifactWriter, Mapping[str, Any], Job], Mapping[str, float] | None]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """`Artifact`, `DataRef` or JSON values; part of the fingerprint."""
    title: str = "build"


@dataclass(frozen=True)
class Evaluate:
    """Held-out loss, and greedy answers with exact match. Its result is an `Artifact` of kind "report".

    `metrics` has "eval_loss" and, with generation, "exact_match"; the file `samples.json` holds rows with keys prompt, expected,
    answer, and the artifact's `samples` the first of them.
    """

    model: ModelRef
    data: DataRef
    objective: Objective | None = None
    """None: token log-likelihood."""
    generate_rows: int = 0
    title: str = "evaluate"


Phase = Train | Scan | Generate | Build | Evaluate
Plan = Generator[Phase, Any, Result]


def fingerprint(phase: Phase) -> str:
    """SHA-256 of what a phase is: its kind, fields, and the class and parameters of its roles; equal on every rank and every replay."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {"": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (frozenset, set)):
            return sorted(str(v) for v in value)
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        if isinstance(value, Path):
            return str(value)
        if hasattr(value, "model_dump"):
            return {"": type(value).__name__, **plain(value.model_dump())}
        if callable(value) and hasattr(value, "__qualname__"):
            return f"{value.__module__}:{value.__qualname__}"
        identity = getattr(value, "params", None)
        return {"": f"{type(value).__module__}:{type(value).__qualname__}", "params": plain(identity)}

    return hashlib.sha256(json.dumps(plain(phase), sort_keys=True).encode()).hexdigest()


# --- what a role is handed ------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """One micro-batch on the device of the rank.

    Rows are right-padded; a packed row holds several samples, told apart by `segment_ids`.
    """

    input_ids: Tensor
    """int64 [B, T]."""
    labels: Tensor
    """int64 [B, T]: the token itself where it is learned, -100 elsewhere (position t is predicted from t - 1)."""
    position_ids: Tensor
    """int64 [B, T]: from 0 in every segment."""
    segment_ids: Tensor
    """int32 [B, T]: 0 for padding, samples from 1 within the row."""
    sample: dict[str, Tensor] = field(default_factory=dict)
    """Per-sample columns, [N] each, in row-major order of segments; "row" holds the row number in the data."""
    packed: bool = False
    """True when a row may hold several samples."""

    def learned(self) -> Tensor:
        """bool [B, T]: positions whose token is learned and has a predecessor in its own segment."""
        import torch

        mask = self.labels != -100
        mask[:, 0] = False
        mask[:, 1:] &= torch.eq(self.segment_ids[:, 1:], self.segment_ids[:, :-1])
        return mask

    def sample_index(self) -> Tensor:
        """int64 [B, T]: which of the N samples a token belongs to (as `sample` and `TokenLogprobs.segment` number them), -1 for padding."""
        import torch

        per_row = self.segment_ids.amax(dim=1).to(torch.int64)
        first = torch.cumsum(per_row, 0) - per_row
        index = first[:, None] + self.segment_ids.to(torch.int64) - 1
        return torch.where(self.segment_ids > 0, index, -1)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of the learned tokens, flat in row-major order.

    `logprobs` float32 [L]; `row` int64 [L] (row of the micro-batch); `segment` int64 [L] (index of the sample in the micro-batch);
    `entropy` float32 [L] or None, detached.
    """

    logprobs: Tensor
    row: Tensor
    segment: Tensor
    entropy: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """A sum over a micro-batch; the engine divides it by the *global* count named `count` and scales it by `coefficient`."""

    sum: Tensor
    count: str = "tokens"
    coefficient: float = 1.0


@dataclass(frozen=True)
class Loss:
    """Loss terms by name, and sums for metrics by name (detached, same division)."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, Term] = field(default_factory=dict)


class Emitted:
    """What layers of the trained network emitted during the forwards of one micro-batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._terms: dict[str, Term] = {}
        self._taken = False

    def add(self, name: str, term: Term) -> None:
        """Add to the term `name`. After `take` nothing is added: what comes then is recomputation for the backward pass."""
        if self._taken:
            return
        old = self._terms.get(name)
        if old is not None and (old.count, old.coefficient) != (term.count, term.coefficient):
            raise ValueError(f"layers emit the term {name!r} with different counts or coefficients")
        self._terms[name] = term if old is None else Term(old.sum + term.sum, term.count, term.coefficient)

    def take(self) -> Mapping[str, Term]:
        """The terms, to be added to the objective's."""
        self._taken = True
        return self._terms


_open: list[Emitted] = []
# A plain list and not a context variable: with recomputed activations a layer's forward also runs on autograd's own threads.


@contextmanager
def emitting(batch: Batch) -> Iterator[Emitted]:
    """Opened by the loop around forward *and* backward of a micro-batch; it adds `take()` to the objective's terms."""
    emitted = Emitted(batch)
    _open.append(emitted)
    try:
        yield emitted
    finally:
        _open.remove(emitted)


def emit(name: str, total: Tensor, *, count: str = "micro_batches", coefficient: float = 1.0) -> None:
    """Called by a layer that owns a loss term. Emissions of several layers under one name are added up.

    `count` is one of the objective's counts or "micro_batches" (1 for a micro-batch with something to learn), which the loop always
    has. Nothing happens outside training and in networks without gradients.
    """
    import torch

    if _open and torch.is_grad_enabled():
        _open[-1].add(name, Term(total, count, coefficient))


def current_batch() -> Batch | None:
    """The micro-batch in work, for layers that need its columns; None outside training, for example while generating."""
    return _open[-1].batch if _open else None


class Models(Protocol):
    """The networks of a phase, seen through memory-lean services."""

    def logprobs(self, batch: Batch, *, role: str = "policy", entropy: bool = False) -> TokenLogprobs:
        """Log-probabilities of learned tokens; positions with nothing to learn never reach the LM head."""
        ...

    def network(self, role: str = "policy") -> nn.Module:
        """The network itself, for what the services do not cover."""
        ...


class ArtifactWriter(Protocol):
    """Where a Build phase writes."""

    @property
    def path(self) -> Path:
        """An empty directory, committed when the function returns."""
        ...


class TensorSource(Protocol):
    """Gathered full tensors by parameter name, streamed one at a time (rank 0 reads, every rank takes part)."""

    def names(self) -> Sequence[str]: ...
    def get(self, name: str) -> Tensor | None:
        """The full CPU tensor on rank 0, None elsewhere. Collective."""
        ...


@dataclass(frozen=True)
class Export:
    """What an adapter writes: kind "adapter" (peft directory) or "model" (transformers directory)."""

    kind: str


class JobData(Protocol):
    """The job's rows, as a Build function may read them."""

    def texts(self, ref: DataRef) -> Iterable[str]:
        """Plain text of every row, for tokenizer training."""
        ...

    def rows(self, ref: DataRef) -> Iterable[Mapping[str, Any]]:
        """Rows after shape detection: {"prompt", "completion"} or {"messages"} or {"text"}, plus columns."""
        ...


@runtime_checkable
class Job(Protocol):
    """What a plan may know of its job; the same on every rank and on every replay."""

    @property
    def model(self) -> ModelRef | None: ...
    @property
    def roles(self) -> Mapping[str, ModelRef]:
        """Extra models of the job by role (`model.roles`)."""
        ...

    @property
    def train(self) -> DataRef: ...
    @property
    def validation(self) -> DataRef | None: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def adapter(self) -> Surgery: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def seed(self) -> int: ...
    @property
    def evaluation(self) -> Mapping[str, Any]:
        """`EvaluationSpec` as a mapping."""
        ...

    @property
    def max_length(self) -> int: ...
    @property
    def data(self) -> JobData:
        """Only inside Build functions."""
        ...

    def model_path(self, ref: ModelRef) -> Path:
        """Local directory of `ref.base`; only inside Build functions."""
        ...

    def artifact_path(self, artifact: Artifact) -> Path:
        """Local directory of an artifact; only inside Build functions."""
        ...


# --- roles ----------------------------------------------------------------------------------------------------------


class Method(Protocol):
    """Which phases, in what order."""

    def plan(self, job: Job) -> Plan: ...


class Surgery(Protocol):
    """How the network changes, what is trainable, how it is exported. Applied before sharding, same result on every rank.

    `params` identifies it in fingerprints.
    """

    params: Any

    def apply(self, net: nn.Module, seed: int) -> nn.Module:
        """Change the network in place or wrap it; freeze what is not trained. Draws randomness from `seed` alone."""
        ...

    def trainable(self, name: str, parameter: nn.Parameter) -> str | None:
        """Parameter-group tag, or None for frozen."""
        ...

    def export(self, net: nn.Module, tensors: TensorSource, directory: Path) -> Export:
        """Write a directory that plain transformers or peft opens. Rank 0 writes, every rank takes part in `tensors.get`."""
        ...


class Objective(Protocol):
    """What is minimised on one micro-batch. `params` identifies it in fingerprints."""

    params: Any

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Local counts by name, known from the batch alone; summed over the step before its first backward."""
        ...

    def __call__(self, models: Models, batch: Batch) -> Loss: ...


class Probe(Protocol):
    """What is accumulated in a pass over data without stepping."""

    params: Any

    def attach(self, net: nn.Module, num_rows: int) -> Callable[[], None]:
        """Start over for a pass of `num_rows` rows and install hooks; returns what removes them."""
        ...

    def update(self, models: Models, batch: Batch) -> None: ...
    def state(self) -> dict[str, Tensor]:
        """Sum-reducible across ranks, so of the same shapes on all of them (per-row results: [num_rows] at `batch.sample["row"]`)."""
        ...

    def finish(self, reduced: Mapping[str, Tensor], out: ArtifactWriter) -> Mapping[str, float] | None: ...


class Decoder(Protocol):
    """How next-token logits of one or several models are combined: [B, V] each -> [B, V]."""

    params: Any

    def step(self, logits: Mapping[str, Tensor], state: dict[str, Any]) -> Tensor: ...
