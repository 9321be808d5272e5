"""Makes a specification complete: what is stored, shown and sent to the nodes is what `resolve` returns.

Aliases become combinations of slots, defaults of method, objective and adapter are filled, parameters are checked against each
plugin's schema, needs are checked, and the defaults that depend on other fields are chosen. Nothing here imports torch, reads a
file or asks a network. `resolve(resolve(spec)) == resolve(spec)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luthier.errors import SpecError
from luthier.methods import registry
from luthier.methods.spec_api import Slot
from luthier.spec.address import parse_address
from luthier.spec.findings import Findings
from luthier.spec.models import ENV_NAME, ENV_REFUSED, AdapterSpec, JobSpec, MethodSpec, ObjectiveSpec
from luthier.spec.slots import SLOTS, Choice, Find, check_recipes, fill_slots, plain_params
from luthier.spec.violations import nearest

__all__ = ["resolve"]

_FALLBACK_LEARNING_RATE = 2e-5
_MAX_MICRO_BATCH = 16


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_needs(spec: JobSpec, slots: Mapping[Slot, Choice], found: Findings) -> None:
    """What plugins require of the job. Each violation names the need and who has it."""
    method = slots.get("method")
    # What a plugin needs depends on its parameters: nothing is known of it while they are wrong.
    if method is not None and method.checked is not None:
        needs = method.needs()
        if needs.base_model and spec.model is None:
            found.unmet("base_model", "spec.model", f"{method.name} starts from a model", "set model, for example job://base")
        if not needs.base_model and spec.model is not None:
            found.unmet(
                "base_model", "spec.model", f"{method.name} makes its own model", "remove model, or choose a method that starts from one"
            )
        if needs.data and not spec.data.sources:
            found.unmet("data", "spec.data.sources", f"{method.name} reads training rows", "name at least one source in data.sources")
    roles: dict[str, str] = {}
    for slot, choice in slots.items():
        needs = choice.needs()
        roles.update(dict.fromkeys(needs.roles, choice.name))
        partners: tuple[tuple[Slot, frozenset[str] | None], ...] = (("adapter", needs.adapters), ("objective", needs.objectives))
        for other, allowed in partners:
            partner = slots.get(other)
            if partner is not None and allowed is not None and partner.name not in allowed:
                found.unmet(
                    f"{other}s",
                    f"spec.{other}.name",
                    f"{slot} {choice.name} does not work with {other} {partner.name}",
                    f"use {other}: {' or '.join(sorted(allowed))}",
                )
        if spec.training.packing == "packed" and not needs.packing:
            found.unmet(
                "packing", "spec.training.packing", f"{slot} {choice.name} does not tolerate packed rows", "use auto, off or length_grouped"
            )
        if spec.training.gradient_checkpointing and not needs.activation_checkpointing:
            found.unmet(
                "activation_checkpointing",
                "spec.training.gradient_checkpointing",
                f"{slot} {choice.name} does not tolerate recomputed activations",
                "set it to false",
            )
    bound = set(spec.model.roles) if spec.model is not None else set()
    for role, owner in sorted(roles.items()):
        if role not in bound:
            found.unmet("roles", f"spec.model.roles.{role}", f"{owner} needs a model in the role {role!r}", f"set model.roles.{role}")
    if len(slots) == len(SLOTS):
        for role in sorted(bound - set(roles)):
            found.add(
                f"spec.model.roles.{role}", f"nothing in this job uses the role {role!r}", nearest(role, roles) if roles else "remove it"
            )


def _check_evaluation(spec: JobSpec, found: Findings) -> None:
    data, evaluation = spec.data, spec.evaluation
    if data.validation and data.validation_fraction:
        found.add("spec.data.validation_fraction", "is given beside data.validation", "keep one of the two")
    if not data.validation and not data.validation_fraction:
        for name, given in (
            ("every_steps", bool(evaluation.every_steps)),
            ("generate_rows", bool(evaluation.generate_rows)),
            ("early_stop", evaluation.early_stop is not None),
        ):
            if given:
                found.add(
                    f"spec.evaluation.{name}",
                    "needs held-out rows, and this job holds out none",
                    "set data.validation or data.validation_fraction",
                )
    elif evaluation.early_stop is not None and not evaluation.every_steps:
        found.add("spec.evaluation.early_stop", "needs evaluations during training", "set evaluation.every_steps")


def _check_names(spec: JobSpec, found: Findings) -> None:
    seen = set(spec.env)
    for i, ref in enumerate(spec.secret_refs):
        path = f"spec.secret_refs[{i}]"
        if not ENV_NAME.fullmatch(ref.env):
            found.add(f"{path}.env", f"{ref.env!r} is not a variable name", "use [A-Z][A-Z0-9_]*")
        elif ENV_REFUSED.match(ref.env):
            found.add(f"{path}.env", f"{ref.env} may not be set by a job", "choose another name")
        elif ref.env in seen:
            found.add(f"{path}.env", f"{ref.env} is set twice", "keep one of the two")
        seen.add(ref.env)
        if not ref.secret or len(ref.secret) > 253:
            found.add(f"{path}.secret", "is empty or longer than 253 characters", "name a secret that the operator configured")
    for path, text in (("spec.resources.node_profile", spec.resources.node_profile),):
        if len(text) > 63:
            found.add(path, f"has {len(text)} characters", "use at most 63")
    if spec.scheduling.deadline is not None and spec.scheduling.deadline > 10 * 365 * 86400:
        found.add("spec.scheduling.deadline", f"{spec.scheduling.deadline:g} s is out of range", "give at most 10 years, or leave it out")
    if spec.faults.checkpoint.every > 10 * 365 * 86400:
        found.add("spec.faults.checkpoint.every", f"{spec.faults.checkpoint.every:g} s is out of range", "give at most 10 years")


def _addresses(spec: JobSpec, found: Findings) -> dict[str, Any]:
    """The parts that hold addresses, with each address in its canonical text."""

    def clean(text: str, path: str, *, empty: bool = False, writable: bool = False) -> str:
        if empty and not text:
            return ""
        try:
            address = parse_address(text, path)
        except SpecError as error:
            found.take(error, path)
            return text
        if writable and address.kind != "root":
            found.add(path, f"{text!r} cannot be written", "write ROOT:relative/path, or leave it out for the job's own store")
        return str(address)

    update: dict[str, Any] = {}
    if spec.model is not None:
        model = spec.model
        update["model"] = model.model_copy(
            update={
                "uri": clean(model.uri, "spec.model.uri"),
                "tokenizer_uri": clean(model.tokenizer_uri, "spec.model.tokenizer_uri", empty=True),
                "roles": {role: clean(uri, f"spec.model.roles.{role}") for role, uri in model.roles.items()},
            }
        )
    update["data"] = spec.data.model_copy(
        update={
            name: tuple(
                s.model_copy(update={"uri": clean(s.uri, f"spec.data.{name}[{i}].uri")}) for i, s in enumerate(getattr(spec.data, name))
            )
            for name in ("sources", "validation")
        }
    )
    if spec.output.uri:
        update["output"] = spec.output.model_copy(update={"uri": clean(spec.output.uri, "spec.output.uri", writable=True)})
    return update


# --- defaults --------------------------------------------------------------------------------------------------------


def _training(spec: JobSpec, slots: Mapping[Slot, Choice], found: Findings) -> dict[str, Any]:
    """Training fields whose defaults depend on other fields."""
    training = spec.training
    ranks = spec.resources.nodes.max * spec.resources.processes_per_node
    all_needs = [(slot, choice, choice.needs()) for slot, choice in slots.items()]
    update: dict[str, Any] = {}

    stages = frozenset.intersection(frozenset(range(4)), *(needs.zero for _, _, needs in all_needs))
    stage = training.zero_stage
    if training.engine == "plain":
        if ranks > 1:
            found.add(
                "spec.training.engine",
                f"plain runs one rank, and this job has up to {ranks}",
                "use auto or deepspeed, or set resources.nodes and resources.processes_per_node to 1",
            )
        if stage:
            found.add("spec.training.engine", f"plain has no ZeRO stage {stage}", "use auto or deepspeed, or set zero_stage to 0")
    if stage is None:
        stage = 0 if ranks == 1 else 2
        if stages and stage not in stages:
            stage = max((s for s in stages if s < stage), default=min(stages))
    elif stage not in stages:
        for slot, choice, needs in all_needs:
            if stage not in needs.zero:
                allowed = ", ".join(str(s) for s in sorted(needs.zero))
                found.unmet(
                    "zero",
                    "spec.training.zero_stage",
                    f"{slot} {choice.name} does not work with ZeRO stage {stage}",
                    f"use one of {allowed}",
                )
    if not stages:
        found.unmet(
            "zero", "spec.training.zero_stage", "the plugins of this job share no ZeRO stage", "choose another objective or adapter"
        )
    update["zero_stage"] = stage
    if training.engine == "auto":
        update["engine"] = "plain" if ranks == 1 and stage == 0 else "deepspeed"

    share = max(1, math.ceil(training.batch_size / ranks))
    if training.micro_batch_size is None:
        # A loss that couples the rows of a micro-batch should see as many of them as there are.
        coupled = any(needs.batch_coupled for _, _, needs in all_needs)
        update["micro_batch_size"] = min(training.batch_size, share if coupled else min(share, _MAX_MICRO_BATCH))
    if training.packing == "auto" and not all(needs.packing for _, _, needs in all_needs):
        update["packing"] = "length_grouped"
    if training.epochs is None and training.steps is None and training.tokens is None:
        update["epochs"] = 3.0
    if training.optimizer.learning_rate is None:
        plugins = [choice.spec for choice in (slots.get("method"), slots.get("adapter")) if choice is not None]
        rates = [plugin.learning_rate for plugin in plugins if plugin is not None and plugin.learning_rate is not None]
        rate = rates[0] if rates else _FALLBACK_LEARNING_RATE
        update["optimizer"] = training.optimizer.model_copy(update={"learning_rate": rate})
    return update


def _version(spec: JobSpec, method: Choice, found: Findings) -> str:
    assert method.spec is not None
    if spec.method.version and spec.method.version != method.spec.version:
        found.add(
            "spec.method.version",
            f"{method.spec.name} {spec.method.version} is not installed; the installed version is {method.spec.version}",
            "leave version out, or ask the operator to install that version",
        )
    return method.spec.version


def resolve(spec: JobSpec, *, find: Find | None = None) -> JobSpec:
    """The complete specification. Raises `SpecError` with all violations together.

    `find` looks plugins up; the installed ones by default. The error's reason is UNKNOWN_METHOD, UNMET_NEED or FORBIDDEN_URI when
    all violations are of that kind, else INVALID_FIELD; metadata names the need, or the unknown name and its suggestion.
    """
    found = Findings()
    lookup: Find = find or registry.find
    update = _addresses(spec, found)
    slots = fill_slots(spec, lookup, found)
    recipes = check_recipes(spec, lookup, found)
    _check_needs(spec, slots, found)
    _check_evaluation(spec, found)
    _check_names(spec, found)
    training = _training(spec, slots, found)
    version = _version(spec, slots["method"], found) if "method" in slots else ""
    found.raise_if_any()
    method, objective, adapter = slots["method"], slots["objective"], slots["adapter"]
    update["data"] = update["data"].model_copy(update={"recipes": recipes})
    return spec.model_copy(
        update={
            **update,
            "method": MethodSpec(name=method.name, version=version, params=plain_params(method)),
            "objective": ObjectiveSpec(name=objective.name, params=plain_params(objective)),
            "adapter": AdapterSpec(name=adapter.name, params=plain_params(adapter)),
            "training": spec.training.model_copy(update=training),
        }
    )
