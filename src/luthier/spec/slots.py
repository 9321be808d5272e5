"""Fills the composition slots of a job: aliases, default objective and adapter, parameters checked by each plugin's own schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.errors import SpecError
from luthier.methods.spec_api import Needs, Slot, Spec
from luthier.spec.findings import Findings
from luthier.spec.models import AdapterSpec, DataRecipeSpec, JobSpec, MethodSpec, ObjectiveSpec
from luthier.spec.violations import nearest, violations_of

__all__ = ["SLOTS", "Choice", "Find", "check_recipes", "fill_slots", "plain_params"]

Find = Callable[[Slot, str], Spec]
"""(slot, id) -> plugin; raises `SpecError` (UNKNOWN_METHOD)."""

SLOTS: tuple[Slot, ...] = ("method", "objective", "adapter")
_MAX_ALIAS_CHAIN = 8


@dataclass
class Choice:
    """What fills one slot: the plugin's id, the parameters given, and where each parameter was written."""

    name: str
    params: dict[str, Any]
    origin: dict[str, str]
    spec: Spec | None = None
    checked: BaseModel | None = None

    def needs(self) -> Needs:
        return self.spec.needs(self.checked) if self.spec is not None and self.checked is not None else Needs()


def _chosen(part: MethodSpec | ObjectiveSpec | AdapterSpec | None, slot: str) -> Choice | None:
    if part is None:
        return None
    return Choice(part.name, dict(part.params), {name: f"spec.{slot}.params.{name}" for name in part.params})


def _find(find: Find, slot: Slot, choice: Choice, path: str, found: Findings) -> Spec | None:
    try:
        return find(slot, choice.name)
    except SpecError as error:
        fix = error.violations[0].fix if error.violations else error.fix
        found.add(path, f"there is no {slot} {choice.name!r}", fix, reason=error.reason, **error.metadata)
        return None


def _expand(find: Find, slots: dict[Slot, Choice | None], found: Findings) -> None:
    """Replace aliases by what they stand for, in every slot, until none is left."""
    for slot in SLOTS:
        for _ in range(_MAX_ALIAS_CHAIN):
            choice = slots[slot]
            if choice is None or choice.spec is not None:
                break
            spec = _find(find, slot, choice, f"spec.{slot}.name", found)
            if spec is None:
                break
            if spec.alias is None:
                choice.spec = spec
                break
            _apply_alias(find, slot, spec, slots, found)
        else:
            found.add(f"spec.{slot}.name", "is an alias of an alias of an alias …", "repair the plugin")


def _apply_alias(find: Find, slot: Slot, spec: Spec, slots: dict[Slot, Choice | None], found: Findings) -> None:
    """One alias. Parameters written beside it go to the first of its slots whose plugin knows them."""
    assert spec.alias is not None
    combination: dict[Slot, str] = {"method": spec.alias.method, "objective": spec.alias.objective, "adapter": spec.alias.adapter}
    given = slots[slot]
    assert given is not None
    if not combination[slot]:
        found.add(f"spec.{slot}.name", f"the alias {spec.name!r} does not say which {slot} it stands for", "repair the plugin")
        slots[slot] = None
        return
    for target, name in combination.items():
        if not name:
            continue
        present = slots[target] if target != slot else None
        if present is not None and present.name != name:
            found.add(
                f"spec.{target}.name",
                f"{slot} {spec.name!r} stands for {target} {name!r}, not {present.name!r}",
                f"remove {target}, or write {slot}: {combination[slot]}",
            )
            present = None  # its parameters belong to another plugin
        presets = dict(spec.alias.params.get(target, {}))
        merged = present or Choice(name, {}, {})
        merged.params = {**presets, **merged.params}
        slots[target] = merged
    order = [slot, *(s for s in SLOTS if s != slot)]
    homes = [(s, set(find(s, combination[s]).params.model_fields)) for s in order if combination[s]]
    for name, value in given.params.items():
        home = next((s for s, known in homes if name in known), None)
        if home is None:
            found.add(given.origin[name], f"{spec.name} has no parameter {name!r}", nearest(name, {n for _, known in homes for n in known}))
            continue
        choice = slots[home]
        assert choice is not None
        choice.params[name] = value
        choice.origin[name] = given.origin[name]


def _check_params(spec: Spec, choice: Choice, slot: str, found: Findings) -> None:
    """Validate and default the parameters. JSON rules, strictly: lists may fill tuples, but "8" is not 8 and true is not 1."""
    prefix = f"spec.{slot}.params"
    try:
        choice.checked = spec.params.model_validate_json(json.dumps(choice.params), strict=True)
    except ValidationError as error:
        for violation in violations_of(error, spec.params, prefix):
            name = violation.field.removeprefix(prefix + ".").split(".")[0].split("[")[0]
            path = violation.field.replace(f"{prefix}.{name}", choice.origin.get(name, f"{prefix}.{name}"), 1)
            unknown = violation.description.startswith("there is no field")
            found.add(path, f"{spec.name} has no parameter {name!r}" if unknown else violation.description, violation.fix)


def plain_params(choice: Choice) -> dict[str, Any]:
    """The defaulted parameters as JSON values; as given where they were refused."""
    return choice.checked.model_dump(mode="json") if choice.checked is not None else choice.params


def fill_slots(spec: JobSpec, find: Find, found: Findings) -> dict[Slot, Choice]:
    """The plugin and the checked parameters of every slot. Slots with findings may be missing."""
    slots: dict[Slot, Choice | None] = {
        "method": _chosen(spec.method, "method"),
        "objective": _chosen(spec.objective, "objective"),
        "adapter": _chosen(spec.adapter, "adapter"),
    }
    _expand(find, slots, found)
    method = slots["method"]
    if method is not None and method.spec is not None:
        if slots["objective"] is None:
            slots["objective"] = Choice(method.spec.default_objective, {}, {})
        if slots["adapter"] is None:
            slots["adapter"] = Choice(method.spec.default_adapter, {}, {})
        _expand(find, slots, found)
    for slot, choice in slots.items():
        if choice is not None and choice.spec is not None:
            _check_params(choice.spec, choice, slot, found)
    return {slot: choice for slot, choice in slots.items() if choice is not None and choice.spec is not None}


def check_recipes(spec: JobSpec, find: Find, found: Findings) -> tuple[DataRecipeSpec, ...]:
    """The data recipes with checked, defaulted parameters."""
    result = []
    for i, recipe in enumerate(spec.data.recipes):
        slot = f"data.recipes[{i}]"
        choice = Choice(recipe.name, dict(recipe.params), {})
        plugin = _find(find, "recipe", choice, f"spec.{slot}.name", found)
        if plugin is not None:
            _check_params(plugin, choice, slot, found)
            result.append(DataRecipeSpec(name=recipe.name, params=plain_params(choice)))
    return tuple(result)
