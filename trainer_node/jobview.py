"""What a plan may know of its job, made from the specification: the same on every rank and on every replay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import SpecError, StorageError
from luthier.methods.api import Artifact, Budget, DataRef, JobData, Method, ModelRef, Objective, Surgery
from luthier.methods.registry import find, load_impl
from luthier.methods.spec_api import Slot, Spec
from luthier.spec.models import JobSpec
from luthier.trainer_node.artifacts import Artifacts
from luthier.trainer_node.data.jobdata import SourceRows

__all__ = ["JobView", "instantiate"]

_DEFAULT_EPOCHS = 3.0


def instantiate(slot: Slot, name: str, params: Mapping[str, Any]) -> tuple[Any, Spec]:
    """The plugin `name` with validated parameters, and its spec. Raises `SpecError`."""
    spec = find(slot, name)
    try:
        validated = spec.params.model_validate(dict(params))
    except ValueError as error:
        raise SpecError(f"the parameters of {slot} {name!r} are not valid: {error}", where=f"spec.{slot}.params") from error
    return load_impl(spec)(validated), spec


class JobView:
    """`luthier.methods.api.Job`."""

    def __init__(self, spec: JobSpec, inputs: Mapping[str, str], prefix: Path, artifacts: Artifacts) -> None:
        self._spec = spec
        self._inputs = inputs
        self._prefix = prefix
        self._artifacts = artifacts
        self.method: Method
        self.method, method_spec = instantiate("method", spec.method.name, spec.method.params)
        objective = (spec.objective.name, spec.objective.params) if spec.objective else (method_spec.default_objective, {})
        adapter = (spec.adapter.name, spec.adapter.params) if spec.adapter else (method_spec.default_adapter, {})
        self._objective, objective_spec = instantiate("objective", *objective)
        self._adapter, adapter_spec = instantiate("adapter", *adapter)
        self.adapter_name = adapter[0]
        self.learning_rate = spec.training.optimizer.learning_rate or method_spec.learning_rate or adapter_spec.learning_rate or 1e-4
        """Peak rate: the job's, else the method's, else the adapter's."""
        needs = [
            method_spec.needs(getattr(self.method, "params", None)),
            objective_spec.needs(self._objective.params),
            adapter_spec.needs(self._adapter.params),
        ]
        self.packable = all(need.packing for need in needs)
        """Whether every plugin of the job tolerates several rows in one sequence."""

    @property
    def model(self) -> ModelRef | None:
        return ModelRef(self._spec.model.uri) if self._spec.model else None

    @property
    def roles(self) -> Mapping[str, ModelRef]:
        """Extra models of the job by role."""
        return {role: ModelRef(uri) for role, uri in self._spec.model.roles.items()} if self._spec.model else {}

    @property
    def train(self) -> DataRef:
        return DataRef("train")

    @property
    def validation(self) -> DataRef | None:
        data = self._spec.data
        return DataRef("validation") if data.validation or data.validation_fraction > 0 else None

    @property
    def objective(self) -> Objective:
        found: Objective = self._objective
        return found

    @property
    def adapter(self) -> Surgery:
        found: Surgery = self._adapter
        return found

    @property
    def budget(self) -> Budget:
        training = self._spec.training
        if training.epochs is None and training.steps is None and training.tokens is None:
            return Budget(epochs=_DEFAULT_EPOCHS)
        return Budget(training.epochs, training.steps, training.tokens)

    @property
    def seed(self) -> int:
        return self._spec.training.seed

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """`EvaluationSpec` as a mapping."""
        return self._spec.evaluation.model_dump(mode="json")

    @property
    def max_length(self) -> int:
        return self._spec.training.max_length

    @property
    def data(self) -> JobData:
        """Only inside Build functions."""
        return SourceRows(self._spec.data, self._inputs, self.seed, self.artifact_path)

    def model_path(self, ref: ModelRef) -> Path:
        """Local directory of `ref.base`: an address of the job, or an artifact below its prefix."""
        if ref.base in self._inputs:
            return Path(self._inputs[ref.base])
        directory = (self._prefix / ref.base).resolve()
        if not directory.is_relative_to(self._prefix.resolve()) or not directory.is_dir():
            raise StorageError(f"the model {ref.base!r} is neither an address of the job nor an artifact of it", where=ref.base)
        return directory

    def artifact_path(self, artifact: Artifact) -> Path:
        """Local directory of an artifact."""
        return self._artifacts.path(artifact)

    def tokenizer_path(self, ref: ModelRef) -> Path:
        """Directory of the tokenizer that belongs to a model."""
        model = self._spec.model
        if model is not None and ref.base == model.uri and model.tokenizer_uri:
            return Path(self._inputs[model.tokenizer_uri])
        return self.model_path(ref)
