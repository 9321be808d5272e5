"""Turns pydantic's findings into field violations with proto paths, ranges and near names."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from luthier.errors import FieldViolation

__all__ = ["field_path", "nearest", "range_text", "violations_of"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A fix text for a wrong word of a closed set: the nearest member, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1) or difflib.get_close_matches(name.lower().replace("-", "_"), names, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"one of {', '.join(names)}" if names else "there are none"


def field_path(prefix: str, location: Sequence[int | str]) -> str:
    """`spec` + ("data", "sources", 0, "uri") -> `spec.data.sources[0].uri`."""
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic class inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [found for argument in typing.get_args(annotation) for found in _models_in(argument)]
    return []


def _field_of(model: type[BaseModel], location: Sequence[int | str]) -> tuple[type[BaseModel] | None, Any]:
    """The innermost class on the way along `location`, and the field's info (None where the way leaves the classes)."""
    here: type[BaseModel] | None = model
    info: Any = None
    for part in location:
        if isinstance(part, int):
            continue
        if here is None or part not in here.model_fields:
            return here, None
        info = here.model_fields[part]
        inner = _models_in(info.annotation)
        here = inner[0] if inner else None
    return here, info


def range_text(info: Any) -> str:
    """The range of a numeric field as `[1, 65536]` or `(0, 10]`; empty without bounds."""
    low, high = "", ""
    for constraint in getattr(info, "metadata", ()):
        if (value := getattr(constraint, "ge", None)) is not None:
            low = f"[{value}"
        if (value := getattr(constraint, "gt", None)) is not None:
            low = f"({value}"
        if (value := getattr(constraint, "le", None)) is not None:
            high = f"{value}]"
        if (value := getattr(constraint, "lt", None)) is not None:
            high = f"{value})"
    if not low and not high:
        return ""
    return f"{low or '(-inf'}, {high or 'inf)'}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "model": "a mapping",
}


def _is_union(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Union or isinstance(annotation, types.UnionType):
        return len([a for a in typing.get_args(annotation) if a is not type(None)]) > 1
    return False


def _plain_location(location: Sequence[int | str], model: type[BaseModel]) -> list[int | str]:
    """The location without what pydantic adds to it: map-key marks and the names of union branches."""
    result: list[int | str] = []
    here: type[BaseModel] | None = model
    in_union = False
    for part in location:
        if part == "[key]" or (in_union and isinstance(part, str)):
            in_union = False
            continue
        in_union = False
        result.append(part)
        if here is not None and isinstance(part, str) and part in here.model_fields:
            annotation = here.model_fields[part].annotation
            in_union = _is_union(annotation)
            inner = _models_in(annotation)
            here = inner[0] if inner else None
    return result


def _violation(detail: ErrorDetails, model: type[BaseModel], prefix: str) -> FieldViolation:
    location = _plain_location(detail["loc"], model)
    path = field_path(prefix, location)
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx") or {}
    parent, info = _field_of(model, location)
    if kind == "missing":
        return FieldViolation(path, "is required", f"set {location[-1]}")
    if kind == "extra_forbidden":
        owner, _ = _field_of(model, location[:-1])
        known = owner.model_fields if owner is not None else {}
        return FieldViolation(path, f"there is no field {location[-1]!r} here", nearest(str(location[-1]), known))
    if kind == "literal_error":
        literals = [str(v) for v in _literals(info.annotation)] if info is not None else []
        return FieldViolation(path, f"{_show(value)} is not a value of this field", nearest(str(value), literals))
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        bounds = range_text(info)
        return FieldViolation(path, f"{_show(value)} is out of range", f"give a value in {bounds}" if bounds else detail["msg"])
    if kind == "finite_number":
        return FieldViolation(path, f"{value} is not a finite number", "give a finite number")
    if kind in ("int_from_float", "int_type", "int_parsing") and isinstance(value, float):
        return FieldViolation(path, f"{value} is not a whole number", "give a whole number")
    word = _TYPE_WORDS.get(kind.split("_")[0])
    if word is not None and kind.split("_")[1:2] in (["type"], ["parsing"], ["from"]):
        return FieldViolation(path, f"{_show(value)} is not {word}", f"give {word}")
    if kind == "too_long":
        return FieldViolation(path, f"has {context.get('actual_length')} entries", f"give at most {context.get('max_length')}")
    if kind == "string_too_long":
        return FieldViolation(path, f"has {len(str(value))} characters", f"give at most {context.get('max_length')} characters")
    if kind == "value_error":
        message = str(context.get("error", detail["msg"]))
        first = message.split(" ", 1)[0]
        # A check over several fields names the one to change first: point at it.
        if parent is not None and first in parent.model_fields:
            path = field_path(path, [first])
        return FieldViolation(path, message)
    return FieldViolation(path, f"{_show(value)}: {detail['msg'][:1].lower()}{detail['msg'][1:]}")


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for argument in typing.get_args(annotation) for value in _literals(argument)]


def violations_of(error: ValidationError, model: type[BaseModel], prefix: str) -> list[FieldViolation]:
    """One violation per problem, in the order of the fields, with paths below `prefix`."""
    found: list[FieldViolation] = []
    for detail in error.errors(include_url=False):
        violation = _violation(detail, model, prefix)
        same = next((i for i, other in enumerate(found) if other.field == violation.field), None)
        if same is None:
            found.append(violation)
        elif violation != found[same]:  # the branches of a union each complain: one violation with both fixes
            other = found[same]
            fixes = [fix for fix in (other.fix, violation.fix) if fix]
            fix = f"{fixes[0]} or {fixes[1].removeprefix('give ')}" if len(fixes) == 2 else "".join(fixes)
            found[same] = FieldViolation(other.field, other.description, fix)
    return found
