"""Marked values into protos: shorthands in their long form, types checked against the descriptor, every violation with its line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from luthier.errors import FieldViolation
from luthier.spec import marks
from luthier.spec.convert import enum_from_word, enum_to_word, seconds_to_duration
from luthier.spec.marks import LocatedViolation, Marked
from luthier.spec.violations import nearest

__all__ = ["Builder", "expand", "is_map", "parse_duration", "show"]

# --- shorthands ------------------------------------------------------------------------------------------------------

# Message -> the field that a plain word or number stands for.
_WORD_FIELDS = {
    "luthier.v1.Model": "uri",
    "luthier.v1.DataSource": "uri",
    "luthier.v1.Output": "uri",
    "luthier.v1.Method": "name",
    "luthier.v1.Objective": "name",
    "luthier.v1.Adapter": "name",
    "luthier.v1.DataRecipe": "name",
    "luthier.v1.Optimizer": "name",
    "luthier.v1.Schedule": "name",
    "luthier.v1.EarlyStop": "patience",
}
_MAX_DURATION = 315_576_000_000
_DURATION = re.compile(r"(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float | None:
    """Seconds of `90`, `30s`, `5m`, `1h30m`, `2d`; None for anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groupdict().values()):
        return None
    return math.fsum(float(value) * _UNITS[unit] for unit, value in match.groupdict().items() if value)


def is_map(descriptor: Any) -> bool:
    """True for a map field."""
    return descriptor.message_type is not None and bool(descriptor.message_type.GetOptions().map_entry)


def expand(item: Marked, message: Any) -> Marked:
    """The value in its long form; what cannot be expanded is left for the check of types to refuse."""
    name = message.full_name
    scalar = item.value is not None and item.mapping is None and item.items is None
    if scalar and name == "luthier.v1.NodeRange":
        item = Marked({"min": item, "max": item}, item.line)
    elif name == "luthier.v1.Data" and (isinstance(item.value, str) or item.items is not None):
        item = Marked({"sources": item}, item.line)
    elif scalar and name in _WORD_FIELDS:
        item = Marked({_WORD_FIELDS[name]: item}, item.line)
    if item.mapping is None:
        return item
    result: dict[str, Marked] = {}
    for key, value in item.mapping.items():
        descriptor = message.fields_by_name.get(key)
        if descriptor is not None and descriptor.message_type is not None and not is_map(descriptor):
            inner = descriptor.message_type
            if inner.file.package == "luthier.v1":
                if descriptor.is_repeated:
                    listed = value.items if value.items is not None else ([value] if value.value is not None else None)
                    if listed is not None:
                        value = Marked([expand(entry, inner) for entry in listed], value.line)
                else:
                    value = expand(value, inner)
        result[key] = value
    return Marked(result, item.line, key_lines=item.key_lines)


# --- values into protos ----------------------------------------------------------------------------------------------


def show(item: Marked) -> str:
    """The value as an error message shows it."""
    if item.mapping is not None:
        return "a mapping"
    if item.items is not None:
        return "a list"
    return "nothing" if item.value is None else repr(item.text)


class Builder:
    """Fills protos from marked values; collects violations with their lines."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[str, int] = {}
        self.found: list[FieldViolation] = []

    def refuse(self, path: str, line: int, description: str, fix: str = "") -> None:
        # Inside a file only values from the command line have no line.
        where = f"{self.file}:{line}" if line else "--set" if self.file else ""
        self.found.append(LocatedViolation(path, description, fix, where=where))

    def unknown(self, path: str, line: int, key: str, known: Iterable[str], fix: str = "") -> None:
        self.refuse(f"{path}.{key}" if path else key, line, f"there is no field {key!r} here", fix or nearest(key, known))

    def message(self, target: Message, item: Marked, path: str) -> None:
        """Fill `target` from a mapping."""
        if item.mapping is None:
            self.refuse(path, item.line, f"{show(item)} is not a mapping", "write the fields of this part below it, or remove the key")
            return
        target.SetInParent()
        fields: Any = target.DESCRIPTOR.fields_by_name
        for key, value in item.mapping.items():
            line = item.key_lines.get(key, value.line)
            here = f"{path}.{key}" if path else key
            if key not in fields:
                self.unknown(path, line, key, fields)
                continue
            self.lines[here] = line
            if value.value is None:
                self.refuse(here, line, "has no value", "give a value, or remove the key")
                continue
            descriptor = fields[key]
            oneof = descriptor.containing_oneof
            if oneof is not None and len(oneof.fields) > 1 and target.WhichOneof(oneof.name) is not None:
                other = target.WhichOneof(oneof.name)
                self.refuse(here, line, f"is given beside {other}", f"keep one of {', '.join(f.name for f in oneof.fields)}")
                continue
            self.field(target, descriptor, value, here)

    def field(self, target: Message, descriptor: Any, item: Marked, path: str) -> None:
        if is_map(descriptor):
            self.map(getattr(target, descriptor.name), item, path)
        elif descriptor.is_repeated:
            if item.items is None:
                self.refuse(path, item.line, f"{show(item)} is not a list", "write a list")
                return
            for i, entry in enumerate(item.items):
                self.lines[f"{path}[{i}]"] = entry.line
                self.message(getattr(target, descriptor.name).add(), entry, f"{path}[{i}]")
        elif descriptor.message_type is not None:
            self.submessage(getattr(target, descriptor.name), descriptor.message_type.full_name, item, path)
        else:
            value = self.scalar(descriptor, item, path)
            if value is None:
                return
            try:
                setattr(target, descriptor.name, value)
            except ValueError:
                self.refuse(path, item.line, f"{item.text} is out of range", "give a smaller number")

    def submessage(self, target: Any, name: str, item: Marked, path: str) -> None:
        if name == "google.protobuf.Duration":
            seconds = parse_duration(item.text) if item.mapping is None and item.items is None else None
            if seconds is None or isinstance(item.value, bool):
                self.refuse(path, item.line, f"{show(item)} is not a duration", "write seconds, or for example 30s, 5m, 1h30m")
            elif seconds > _MAX_DURATION:
                self.refuse(path, item.line, f"{item.text} is out of range", f"give at most {_MAX_DURATION} s")
            else:
                target.CopyFrom(seconds_to_duration(seconds))
                target.SetInParent()
        elif name == "google.protobuf.Struct":
            if item.mapping is None:
                self.refuse(path, item.line, f"{show(item)} is not a mapping", "write parameters as `name: value` below it")
            elif self.struct(item, path):
                target.update(marks.plain(item))
                target.SetInParent()
        else:
            self.message(target, item, path)

    def struct(self, item: Marked, path: str) -> bool:
        """Record the lines of a free mapping; False after a violation."""
        fine = True
        for key, value in (item.mapping or {}).items():
            self.lines[f"{path}.{key}"] = item.key_lines.get(key, value.line)
            fine &= self.struct(value, f"{path}.{key}")
        for i, value in enumerate(item.items or ()):
            fine &= self.struct(value, f"{path}[{i}]")
        number = item.value
        if isinstance(number, float) and not math.isfinite(number):
            self.refuse(path, item.line, f"{item.text} is not a finite number", "give a finite number")
            return False
        if isinstance(number, int) and not isinstance(number, bool) and abs(number) > 2**53:
            self.refuse(path, item.line, f"{item.text} is too large to be carried exactly", "give a number up to 2^53, or quote it")
            return False
        return fine

    def map(self, target: Any, item: Marked, path: str) -> None:
        if item.mapping is None:
            self.refuse(path, item.line, f"{show(item)} is not a mapping", "write `name: value` below it")
            return
        for key, value in item.mapping.items():
            self.lines[f"{path}.{key}"] = item.key_lines.get(key, value.line)
            if value.mapping is not None or value.items is not None or value.value is None:
                self.refuse(f"{path}.{key}", value.line, f"{show(value)} is not text", "give one value")
                continue
            target[key] = value.text

    def scalar(self, descriptor: Any, item: Marked, path: str) -> Any:
        """The value for a scalar field; None after a violation."""
        value = item.value
        if item.mapping is not None or item.items is not None:
            self.refuse(path, item.line, f"{show(item)} is not a single value", "give one value")
            return None
        if descriptor.enum_type is not None:
            words = [enum_to_word(descriptor.enum_type, n) for n in sorted(descriptor.enum_type.values_by_number) if n]
            if item.text in words:
                return enum_from_word(descriptor.enum_type, item.text)
            # YAML 1.2 reads `off` as text, but `false` is what people write for it.
            self.refuse(path, item.line, f"{show(item)} is not a value of this field", nearest(item.text, words))
            return None
        kind = descriptor.cpp_type
        if kind == descriptor.CPPTYPE_STRING:
            return item.text
        if kind == descriptor.CPPTYPE_BOOL:
            if isinstance(value, bool):
                return value
            self.refuse(path, item.line, f"{show(item)} is not true or false", "write true or false")
            return None
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        if kind in (descriptor.CPPTYPE_DOUBLE, descriptor.CPPTYPE_FLOAT):
            if number is None or not math.isfinite(number):
                self.refuse(path, item.line, f"{show(item)} is not a finite number", "give a number")
                return None
            return float(number)
        if number is None or not math.isfinite(number) or number != int(number):
            self.refuse(path, item.line, f"{show(item)} is not a whole number", "give a whole number")
            return None
        return int(number)
