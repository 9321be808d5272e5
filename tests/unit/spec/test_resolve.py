"""Resolving a specification: slots, defaults, parameters, needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from luthier.errors import FieldViolation, SpecError
from luthier.methods.spec_api import Combination, Needs, Slot, Spec
from luthier.spec import models
from luthier.spec.convert import spec_from_proto, spec_to_proto
from luthier.spec.resolve import resolve
from luthier.spec.violations import nearest


class NoParams(BaseModel):
    """None."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RankParams(NoParams):
    """A few of every kind."""

    rank: int = Field(default=16, ge=1, le=64)
    alpha: float = 32.0
    target: str | tuple[str, ...] = "all"


def _plugin(slot: Slot, name: str, params: type[BaseModel] = NoParams, needs: Needs | None = None, **more: Any) -> Spec:
    return Spec(name=name, slot=slot, version="1.2.0", summary=name, params=params, impl="x:Y", needs=lambda p: needs or Needs(), **more)


PLUGINS = [
    _plugin("method", "sft", default_adapter="full"),
    _plugin("method", "make", needs=Needs(base_model=False, adapters=frozenset({"full"})), learning_rate=1e-3),
    _plugin("method", "distill", needs=Needs(roles=("teacher",))),
    _plugin("method", "narrow", needs=Needs(zero=frozenset({0, 1}), packing=False, activation_checkpointing=False)),
    _plugin("method", "moe", alias=Combination(method="sft", adapter="lora", params={"adapter": {"rank": 4}})),
    _plugin("method", "loop", alias=Combination(method="loop")),
    _plugin("objective", "nll"),
    _plugin("objective", "coupled", needs=Needs(batch_coupled=True)),
    _plugin("adapter", "full", learning_rate=2e-5),
    _plugin("adapter", "lora", RankParams, learning_rate=2e-4),
    _plugin("adapter", "dora", alias=Combination(adapter="lora", params={"adapter": {"alpha": 8.0}})),
    _plugin("recipe", "shuffle", RankParams),
]


def find(slot: Slot, name: str) -> Spec:
    """The fake registry."""
    found = next((p for p in PLUGINS if (p.slot, p.name) == (slot, name)), None)
    if found is None:
        fix = nearest(name, [p.name for p in PLUGINS if p.slot == slot])
        raise SpecError(
            "unknown", reason="UNKNOWN_METHOD", violations=[FieldViolation("x", "unknown", fix)], metadata={"name": name, "suggestion": fix}
        )
    return found


def spec(method: str = "sft", params: dict[str, Any] | None = None, **parts: Any) -> models.JobSpec:
    """A job that resolves, unless a part says otherwise."""
    base: dict[str, Any] = {
        "model": {"uri": "job://base"},
        "data": {"sources": [{"uri": "cwd:a.jsonl"}]},
        "method": {"name": method, "params": params or {}},
    }
    return models.JobSpec.model_validate({**base, **parts})


def refused(given: models.JobSpec) -> SpecError:
    """The error of a specification that does not resolve."""
    with pytest.raises(SpecError) as caught:
        resolve(given, find=find)
    return caught.value


def test_defaults_are_filled() -> None:
    """Objective, adapter, version, rate, budget, micro-batch, stage and engine are chosen for one rank."""
    done = resolve(spec(), find=find)

    assert ("1.2.0", "nll", "full") == (done.method.version, done.objective and done.objective.name, done.adapter and done.adapter.name)
    assert (2e-5, 3.0, 16, 0, "plain") == (
        done.training.optimizer.learning_rate,
        done.training.epochs,
        done.training.micro_batch_size,
        done.training.zero_stage,
        done.training.engine,
    )


def test_resolving_twice_changes_nothing() -> None:
    """A resolved specification resolves to itself, also after a trip over the wire."""
    done = resolve(spec(adapter={"name": "dora"}, resources={"nodes": {"max": 3}, "processes_per_node": 2}), find=find)

    assert done == resolve(done, find=find)
    assert done == resolve(spec_from_proto(spec_to_proto(done)), find=find)


@pytest.mark.parametrize(
    ("batch", "nodes", "processes", "objective", "micro"),
    [
        (16, 1, 1, "nll", 16),
        (64, 1, 1, "nll", 16),
        (16, 2, 2, "nll", 4),
        (5, 2, 2, "nll", 2),
        (2, 8, 1, "nll", 1),
        (64, 1, 2, "coupled", 32),
    ],
)
def test_micro_batch_size(batch: int, nodes: int, processes: int, objective: str, micro: int) -> None:
    """A rank's share of the batch, at most 16 rows; all of it for a loss that couples rows."""
    done = resolve(
        spec(
            objective={"name": objective},
            training={"batch_size": batch},
            resources={"nodes": {"max": nodes}, "processes_per_node": processes},
        ),
        find=find,
    )

    assert micro == done.training.micro_batch_size


@pytest.mark.parametrize(
    ("method", "nodes", "stage", "engine", "expected"),
    [
        ("sft", 1, None, "auto", (0, "plain")),
        ("sft", 2, None, "auto", (2, "deepspeed")),
        ("sft", 1, 3, "auto", (3, "deepspeed")),
        ("sft", 1, None, "deepspeed", (0, "deepspeed")),
        ("sft", 1, None, "plain", (0, "plain")),
        ("narrow", 2, None, "auto", (1, "deepspeed")),
    ],
)
def test_stage_and_engine(method: str, nodes: int, stage: int | None, engine: str, expected: tuple[int, str]) -> None:
    """Stage 0 and plain for one rank, stage 2 and DeepSpeed for more, within what the plugins tolerate."""
    done = resolve(spec(method, training={"zero_stage": stage, "engine": engine}, resources={"nodes": {"max": nodes}}), find=find)

    assert expected == (done.training.zero_stage, done.training.engine)


def test_an_alias_becomes_its_combination() -> None:
    """A method alias fills its slots with presets; parameters beside it go to the slot that knows them."""
    done = resolve(spec("moe", {"alpha": 2}), find=find)

    assert ("sft", {}) == (done.method.name, done.method.params)
    assert done.adapter == models.AdapterSpec(name="lora", params={"rank": 4, "alpha": 2.0, "target": "all"})
    assert 2e-4 == done.training.optimizer.learning_rate


def test_an_alias_against_another_slot_is_refused() -> None:
    """Naming another adapter beside an alias that fixes it is a contradiction with a fix."""
    error = refused(spec("moe", adapter={"name": "full"}))

    assert [("spec.adapter.name", "remove adapter, or write method: sft")] == [(v.field, v.fix) for v in error.violations]


def test_an_endless_alias_is_refused() -> None:
    """An alias that names itself ends in an error, not in a loop."""
    assert "spec.method.name" == refused(spec("loop")).violations[0].field


@pytest.mark.parametrize(
    ("params", "field", "description", "fix"),
    [
        ({"rnk": 8}, "spec.adapter.params.rnk", "lora has no parameter 'rnk'", "did you mean 'rank'?"),
        ({"rank": 0}, "spec.adapter.params.rank", "0 is out of range", "give a value in [1, 64]"),
        ({"rank": 8.5}, "spec.adapter.params.rank", "8.5 is not a whole number", "give a whole number"),
        ({"rank": "8"}, "spec.adapter.params.rank", "'8' is not a whole number", "give a whole number"),
        ({"rank": True}, "spec.adapter.params.rank", "True is not a whole number", "give a whole number"),
        ({"alpha": "x"}, "spec.adapter.params.alpha", "'x' is not a number", "give a number"),
        ({"target": 5}, "spec.adapter.params.target", "5 is not text", "give text or a list"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], field: str, description: str, fix: str) -> None:
    """Each wrong parameter is told with its path, what is wrong and how to fix it."""
    error = refused(spec(adapter={"name": "lora", "params": params}))

    assert [(field, description, fix)] == [(v.field, v.description, v.fix) for v in error.violations]
    assert "INVALID_FIELD" == error.reason


def test_an_unknown_method_suggests_the_nearest() -> None:
    """The reason is UNKNOWN_METHOD; name and suggestion stand in the metadata."""
    error = refused(spec("sfd"))

    assert ("UNKNOWN_METHOD", "sfd") == (error.reason, error.metadata["name"])
    assert [("spec.method.name", "there is no method 'sfd'", "did you mean 'sft'?")] == [
        (v.field, v.description, v.fix) for v in error.violations
    ]


@pytest.mark.parametrize(
    ("given", "need", "field"),
    [
        (lambda: spec(model=None), "base_model", "spec.model"),
        (lambda: spec("make"), "base_model", "spec.model"),
        (lambda: spec(data={}), "data", "spec.data.sources"),
        (lambda: spec("distill"), "roles", "spec.model.roles.teacher"),
        (lambda: spec("make", model=None, adapter={"name": "lora"}), "adapters", "spec.adapter.name"),
        (lambda: spec("narrow", training={"zero_stage": 3}), "zero", "spec.training.zero_stage"),
        (lambda: spec("narrow", training={"packing": "packed"}), "packing", "spec.training.packing"),
        (
            lambda: spec("narrow", training={"gradient_checkpointing": True}),
            "activation_checkpointing",
            "spec.training.gradient_checkpointing",
        ),
    ],
    ids=["no model", "model too much", "no data", "role", "adapter", "zero", "packing", "checkpointing"],
)
def test_unmet_needs(given: Callable[[], models.JobSpec], need: str, field: str) -> None:
    """A need that is not met is named, with reason UNMET_NEED and the field to change."""
    error = refused(given())

    assert ("UNMET_NEED", need, [field]) == (error.reason, error.metadata["need"], [v.field for v in error.violations])


def test_packing_auto_becomes_grouped_where_packing_is_not_tolerated() -> None:
    """`auto` never packs rows for a plugin that does not tolerate it."""
    assert "length_grouped" == resolve(spec("narrow"), find=find).training.packing


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"training": {"engine": "plain"}, "resources": {"nodes": {"max": 2}}}, "spec.training.engine"),
        ({"training": {"engine": "plain", "zero_stage": 2}}, "spec.training.engine"),
        ({"model": {"uri": "job://base", "roles": {"techer": "job://b"}}}, "spec.model.roles.techer"),
        ({"evaluation": {"generate_rows": 3}}, "spec.evaluation.generate_rows"),
        (
            {"data": {"sources": [{"uri": "cwd:a"}], "validation": [{"uri": "cwd:b"}], "validation_fraction": 0.1}},
            "spec.data.validation_fraction",
        ),
        ({"secret_refs": [{"env": "LD_PRELOAD", "secret": "x"}]}, "spec.secret_refs[0].env"),
        ({"output": {"uri": "job://other"}}, "spec.output.uri"),
        (
            {"data": {"sources": [{"uri": "cwd:a"}], "recipes": [{"name": "shuffle", "params": {"rank": 0}}]}},
            "spec.data.recipes[0].params.rank",
        ),
        ({"data": {"sources": [{"uri": "data/a.jsonl"}]}}, "spec.data.sources[0].uri"),
    ],
    ids=["plain on two", "plain at 2", "role", "held out", "two validations", "secret", "output", "recipe", "local path"],
)
def test_other_contradictions(parts: dict[str, Any], field: str) -> None:
    """Contradictions between fields are violations at the field to change."""
    assert [field] == [v.field for v in refused(spec(**parts)).violations]


def test_another_version_is_refused() -> None:
    """A job that asks for a version that is not installed does not run with another."""
    error = refused(spec().model_copy(update={"method": models.MethodSpec(name="sft", version="9")}))

    assert ["sft 9 is not installed; the installed version is 1.2.0"] == [v.description for v in error.violations]


def test_everything_wrong_comes_back_together() -> None:
    """Violations of different kinds share one answer with reason INVALID_FIELD."""
    error = refused(
        spec(
            "sfd", adapter={"name": "lora", "params": {"rnk": 1}}, data={"sources": [{"uri": "cwd:../x"}]}, evaluation={"generate_rows": 1}
        )
    )

    assert ["spec.data.sources[0].uri", "spec.method.name", "spec.adapter.params.rnk", "spec.evaluation.generate_rows"] == [
        v.field for v in error.violations
    ]
    assert "INVALID_FIELD" == error.reason


def test_addresses_become_canonical() -> None:
    """Stored addresses have one spelling."""
    done = resolve(spec(data={"sources": [{"uri": "cwd:./data//a.jsonl"}]}), find=find)

    assert "cwd:data/a.jsonl" == done.data.sources[0].uri


def test_the_installed_plugins_resolve() -> None:
    """The real registry resolves the two methods of this release."""
    sft = resolve(spec(adapter={"name": "lora"}))
    pretrain = resolve(models.JobSpec.model_validate({"method": {"name": "pretrain"}, "data": {"sources": [{"uri": "cwd:a"}]}}))

    assert ("lora", 2e-4) == (sft.adapter and sft.adapter.name, sft.training.optimizer.learning_rate)
    assert ("full", 1e-3) == (pretrain.adapter and pretrain.adapter.name, pretrain.training.optimizer.learning_rate)
