"""Which plugins exist: id -> spec, without torch.

Built-in plugins are one line each. Plugins outside the repository register through the entry-point group `luthier.methods`; the
entry's object is a `Spec` or an iterable of them. Import errors and name clashes are fatal: a job never runs without its method.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from luthier.errors import SpecError
from luthier.methods.spec_api import Slot, Spec

__all__ = ["all_specs", "find", "load_impl"]

# One line per built-in module that holds SPEC or SPECS.
_BUILT_IN = (
    "luthier.methods.pretrain.spec",
    "luthier.methods.sft.spec",
    "luthier.methods.objectives.spec",
    "luthier.methods.adapters.spec",
)


def _specs_of(module: Any) -> Iterable[Spec]:
    if hasattr(module, "SPECS"):
        specs: Iterable[Spec] = module.SPECS
        return specs
    return (module.SPEC,)


@cache
def all_specs() -> dict[tuple[Slot, str], Spec]:
    """Every installed plugin by (slot, id). Raises `SpecError` on a name clash or an import error."""
    found: dict[tuple[Slot, str], Spec] = {}
    sources: list[tuple[str, Iterable[Spec]]] = [(m, _specs_of(importlib.import_module(m))) for m in _BUILT_IN]
    for entry in entry_points(group="luthier.methods"):
        try:
            loaded = entry.load()
        except Exception as error:
            raise SpecError(
                f"method plugin {entry.name!r} ({entry.value}) cannot be imported: {error}",
                fix="repair or uninstall the plugin's distribution; Luthier never runs without an installed plugin",
            ) from error
        sources.append((entry.value, (loaded,) if isinstance(loaded, Spec) else loaded))
    for origin, specs in sources:
        for spec in specs:
            key = (spec.slot, spec.name)
            if key in found:
                raise SpecError(f"two plugins register {spec.slot} {spec.name!r}; the second is {origin}", fix="uninstall one of them")
            found[key] = spec
    return found


def find(slot: Slot, name: str, *, field: str = "") -> Spec:
    """The plugin `name` in `slot`. Raises `SpecError` (UNKNOWN_METHOD) with the nearest name."""
    specs = all_specs()
    spec = specs.get((slot, name))
    if spec is not None:
        return spec
    names = sorted(n for s, n in specs if s == slot)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(names)}"
    from luthier.errors import FieldViolation

    raise SpecError(
        f"there is no {slot} {name!r}",
        reason="UNKNOWN_METHOD",
        fix=hint,
        violations=[FieldViolation(field or f"spec.{slot}.name", f"there is no {slot} {name!r}", hint)],
        metadata={"name": name, "slot": slot, "suggestion": near[0] if near else ""},
    )


def load_impl(spec: Spec) -> Any:
    """Import a plugin's class; on trainer nodes only."""
    module, _, attribute = spec.impl.partition(":")
    return getattr(importlib.import_module(module), attribute)
