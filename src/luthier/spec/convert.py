"""The only conversion between protos and Python values of a specification.

`spec_from_proto` and `spec_to_proto` walk the message descriptor beside `luthier.spec.models`: same field names, enums as their
short lower-case words, Durations as seconds, Structs as plain values whose integral numbers are ints. A round trip is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from pydantic import BaseModel, ValidationError

from luthier.errors import FieldViolation, SpecError
from luthier.spec.models import JobSpec
from luthier.spec.violations import field_path, violations_of
from luthier.v1 import spec_pb2

__all__ = [
    "duration_to_seconds",
    "enum_from_word",
    "enum_to_word",
    "from_plain",
    "integral",
    "invalid",
    "seconds_to_duration",
    "spec_from_proto",
    "spec_to_proto",
    "struct_to_plain",
    "to_plain",
]

_M = TypeVar("_M", bound=Message)

# Limits of what no field bounds itself: a specification is a page of text, not a carrier of data.
MAX_TEXT = 65_536
MAX_KEY = 256
MAX_PARAM_DEPTH = 16
MAX_PARAM_VALUES = 10_000


def invalid(violations: list[FieldViolation], *, reason: str = "", metadata: Mapping[str, str] | None = None) -> SpecError:
    """One error for all violations; its message names the first."""
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return SpecError(f"{first.field}: {first.description}{more}", violations=violations, fix=first.fix, reason=reason, metadata=metadata)


# --- enums, durations, structs ---------------------------------------------------------------------------------------


def _enum_prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def enum_to_word(enum: EnumDescriptor, number: int) -> str:
    """`PACKING_LENGTH_GROUPED` -> `length_grouped`; "" for unspecified. Raises KeyError for an unknown number."""
    if number == 0:
        return ""
    return str(enum.values_by_number[number].name).removeprefix(_enum_prefix(enum)).lower()


def enum_from_word(enum: EnumDescriptor, word: str) -> int:
    """The number of a short lower-case word. Raises KeyError for an unknown word."""
    return int(enum.values_by_name[_enum_prefix(enum) + word.upper()].number)


def duration_to_seconds(duration: Duration) -> float:
    """Seconds, correctly rounded."""
    return (duration.seconds * 10**9 + duration.nanos) / 10**9


def seconds_to_duration(seconds: float) -> Duration:
    """The nearest Duration (whole nanoseconds). Raises ValueError outside the proto's range."""
    nanos = round(seconds * 10**9) if not float(seconds).is_integer() else int(seconds) * 10**9
    if abs(nanos) > 315_576_000_000 * 10**9:
        raise ValueError(f"{seconds} s is longer than a Duration holds (10,000 years)")
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), 10**9)
    return Duration(seconds=sign * whole, nanos=sign * rest)


class _StructReader:
    """Reads one Struct; counts values over all levels."""

    def __init__(self, path: str, found: list[FieldViolation]) -> None:
        self.path, self.found, self.values = path, found, 0

    def mapping(self, struct: Struct, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key in struct.fields:
            if len(key) > MAX_KEY:
                self.found.append(FieldViolation(path, f"a key has {len(key)} characters", f"use at most {MAX_KEY}"))
                continue
            result[key] = self.value(struct.fields[key], field_path(path, [key]), depth + 1)
        return result

    def value(self, value: Value, path: str, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_PARAM_VALUES:
            if self.values == MAX_PARAM_VALUES + 1:
                self.found.append(FieldViolation(self.path, "has too many values", f"give at most {MAX_PARAM_VALUES}"))
            return None
        if depth > MAX_PARAM_DEPTH:
            self.found.append(FieldViolation(path, f"is nested deeper than {MAX_PARAM_DEPTH} levels", "flatten it"))
            return None
        kind = value.WhichOneof("kind")
        if kind == "number_value":
            number = value.number_value
            if not math.isfinite(number):
                self.found.append(FieldViolation(path, f"{number} is not a finite number", "give a finite number"))
                return None
            return int(number) if number.is_integer() else number
        if kind == "string_value":
            if len(value.string_value) > MAX_TEXT:
                self.found.append(FieldViolation(path, f"has {len(value.string_value)} characters", f"give at most {MAX_TEXT} characters"))
                return None
            return value.string_value
        if kind == "bool_value":
            return value.bool_value
        if kind == "struct_value":
            return self.mapping(value.struct_value, path, depth)
        if kind == "list_value":
            return [self.value(item, field_path(path, [i]), depth + 1) for i, item in enumerate(value.list_value.values)]
        return None


def struct_to_plain(struct: Struct, path: str = "params") -> dict[str, Any]:
    """A Struct as plain values; integral doubles become ints. Raises `SpecError` for NaN, infinities and what is too large."""
    found: list[FieldViolation] = []
    result = _StructReader(path, found).mapping(struct, path, 0)
    if found:
        raise invalid(found)
    return result


# --- proto -> model --------------------------------------------------------------------------------------------------


def _duration_in(duration: Duration, path: str, found: list[FieldViolation]) -> float | None:
    if abs(duration.nanos) > 999_999_999 or duration.seconds * duration.nanos < 0 or abs(duration.seconds) > 315_576_000_000:
        found.append(FieldViolation(path, f"{duration.seconds} s and {duration.nanos} ns is not a valid Duration"))
        return None
    return duration_to_seconds(duration)


def _single_in(field: FieldDescriptor, value: Any, path: str, found: list[FieldViolation]) -> Any:
    """One value of a singular or repeated field as pydantic takes it; None after a violation."""
    if field.message_type is not None:
        name = field.message_type.full_name
        if name == "google.protobuf.Duration":
            return _duration_in(value, path, found)
        if name == "google.protobuf.Struct":
            return _StructReader(path, found).mapping(value, path, 0)
        return _message_in(value, path, found)
    if field.enum_type is not None:
        if value in field.enum_type.values_by_number:
            return enum_to_word(field.enum_type, value)
        words = ", ".join(enum_to_word(field.enum_type, n) for n in sorted(field.enum_type.values_by_number) if n)
        found.append(FieldViolation(path, f"{value} is not a value of {field.enum_type.name}", f"one of {words}"))
        return None
    if isinstance(value, float) and not math.isfinite(value):
        found.append(FieldViolation(path, f"{value} is not a finite number", "give a finite number"))
        return None
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            found.append(FieldViolation(path, f"has {len(value)} characters", f"give at most {MAX_TEXT} characters"))
            return None
        if "\0" in value:
            found.append(FieldViolation(path, "contains a NUL character", "remove it"))
            return None
    return value


def _map_in(field: FieldDescriptor, value: Mapping[str, Any], path: str, found: list[FieldViolation]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    inner = _map_value(field)
    for key in value:
        if len(key) > MAX_KEY or "\0" in key:
            found.append(FieldViolation(path, "a key is too long or contains a NUL", f"use at most {MAX_KEY} characters"))
            continue
        result[key] = _single_in(inner, value[key], field_path(path, [key]), found)
    return result


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def _message_in(message: Message, path: str, found: list[FieldViolation]) -> dict[str, Any]:
    """The populated fields of a message by name. What is not populated is left to the model's defaults."""
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        here = field_path(path, [field.name])
        if _is_map(field):
            result[field.name] = _map_in(field, value, here, found)
        elif field.is_repeated:
            result[field.name] = [_single_in(field, item, field_path(here, [i]), found) for i, item in enumerate(value)]
        else:
            plain = _single_in(field, value, here, found)
            if field.enum_type is not None and plain == "":
                continue  # explicitly unspecified is unset
            result[field.name] = plain
    return result


def spec_from_proto(pb: spec_pb2.JobSpec, path: str = "spec") -> JobSpec:
    """The validated, defaulted specification.

    Raises `SpecError` with one `FieldViolation` per problem, in proto paths below `path`.
    """
    found: list[FieldViolation] = []
    plain = _message_in(pb, path, found)
    refused = {violation.field for violation in found}
    try:
        spec = JobSpec.model_validate(plain)
    except ValidationError as error:
        # A value refused above stands in the input as None: do not report it twice.
        found += [v for v in violations_of(error, JobSpec, path) if v.field not in refused]
        raise invalid(found) from None
    if found:
        raise invalid(found)
    return spec


# --- model -> proto --------------------------------------------------------------------------------------------------


def _struct_of(value: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(dict(value))
    return struct


_LEAVES: dict[str, Callable[[Any], Message]] = {"google.protobuf.Duration": seconds_to_duration, "google.protobuf.Struct": _struct_of}


_Outline = list[tuple[str, str, Callable[[Any], Any] | None]]
_outlines: dict[type[Message], _Outline] = {}


def _outline(message_class: type[Message]) -> _Outline:
    """(name, kind, conversion) of every field. Once per class: walking descriptors costs more than filling the message."""
    known = _outlines.get(message_class)
    if known is not None:
        return known
    outline: _Outline = []
    fields: Any = message_class.DESCRIPTOR.fields  # the stubs name two classes of descriptor
    for field in fields:
        if _is_map(field):
            outline.append((field.name, "map", None))
        elif field.is_repeated:
            outline.append((field.name, "parts", None))
        elif field.message_type is not None:
            leaf = _LEAVES.get(field.message_type.full_name)
            outline.append((field.name, "leaf" if leaf else "part", leaf))
        else:
            outline.append((field.name, "value", partial(enum_from_word, field.enum_type) if field.enum_type is not None else None))
    _outlines[message_class] = outline
    return outline


def _fill(message: Message, part: BaseModel) -> None:
    for name, kind, convert in _outline(type(message)):
        value = getattr(part, name)
        if value is None:
            continue
        if kind == "value":
            setattr(message, name, value if convert is None else convert(value))
            continue
        target = getattr(message, name)
        if kind == "map":
            target.update(value)
        elif kind == "parts":
            for item in value:
                _fill(target.add(), item)
        elif convert is not None:
            target.CopyFrom(convert(value))
            target.SetInParent()
        else:
            target.SetInParent()
            _fill(target, value)


def spec_to_proto(spec: JobSpec) -> spec_pb2.JobSpec:
    """The specification with every known field populated."""
    message = spec_pb2.JobSpec()
    _fill(message, spec)
    return message


# --- any message -----------------------------------------------------------------------------------------------------

_WIDE = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_OPAQUE = {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any"}


def _narrow(descriptor: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """Whole 64-bit numbers, which the JSON mapping writes as text, as ints; in place."""
    for name, value in plain.items():
        field = descriptor.fields_by_name[name]
        if _is_map(field):
            inner = _map_value(field)
            for key in value:
                value[key] = _narrow_one(inner, value[key])
        elif field.is_repeated:
            plain[name] = [_narrow_one(field, item) for item in value]
        else:
            plain[name] = _narrow_one(field, value)
    return plain


def integral(value: Any) -> Any:
    """Plain values with integral doubles as ints: a Struct holds nothing but doubles."""
    if isinstance(value, dict):
        return {key: integral(item) for key, item in value.items()}
    if isinstance(value, list):
        return [integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _narrow_one(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name in _OPAQUE:
            return integral(value)
        return _narrow(field.message_type, value) if isinstance(value, dict) else value
    return int(value) if field.cpp_type in _WIDE else value


def to_plain(message: Message) -> dict[str, Any]:
    """Any message as plain JSON values: proto field names, enum names, RFC 3339 times, 64-bit integers as numbers."""
    return _narrow(message.DESCRIPTOR, json_format.MessageToDict(message, preserving_proto_field_name=True))


def from_plain(data: Mapping[str, Any], message_class: type[_M]) -> _M:
    """The message whose `to_plain` is `data`. Raises `SpecError` when it does not fit."""
    message = message_class()
    try:
        json_format.ParseDict(dict(data), message)
    except json_format.ParseError as error:
        raise SpecError(f"not a {message_class.DESCRIPTOR.full_name}: {error}", fix="use the fields of the proto") from error
    return message
