"""YAML text as plain values that remember their line.

YAML 1.2 core rules: `1e-4` is a number, `yes` and `012:30` are text, and only `true` and `false` are booleans. Tags, merge keys
and duplicate keys are refused; so are anchors that would expand into more than a specification can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from luthier.errors import FieldViolation, SpecError

__all__ = ["LocatedViolation", "Marked", "compose", "mark", "plain"]

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 32

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class LocatedViolation(FieldViolation):
    """A violation with the place in the user's file, `file:line`; empty when there is none."""

    where: str = ""


@dataclass
class Marked:
    """One value: a scalar, a list, or a mapping by key, each with its line (from 1; 0: none) and the text it was read from."""

    value: Scalar | list[Marked] | dict[str, Marked]
    line: int = 0
    text: str = ""
    """A scalar as written, without quotes."""
    key_lines: dict[str, int] = field(default_factory=dict)

    @property
    def mapping(self) -> dict[str, Marked] | None:
        return self.value if isinstance(self.value, dict) else None

    @property
    def items(self) -> list[Marked] | None:
        return self.value if isinstance(self.value, list) else None


def plain(marked: Marked) -> Any:
    """The value without marks."""
    if isinstance(marked.value, dict):
        return {key: plain(item) for key, item in marked.value.items()}
    if isinstance(marked.value, list):
        return [plain(item) for item in marked.value]
    return marked.value


def mark(value: Any, line: int = 0) -> Marked:
    """A Python value as a marked one. Raises `SpecError` for what YAML could not hold."""
    if isinstance(value, Mapping):
        return Marked({str(key): mark(item, line) for key, item in value.items()}, line)
    if isinstance(value, (list, tuple)):
        return Marked([mark(item, line) for item in value], line)
    if value is None or isinstance(value, (str, int, float, bool)):
        text = {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
        return Marked(value, line, text)
    if hasattr(value, "__fspath__"):
        return Marked(value.__fspath__(), line, value.__fspath__())
    raise SpecError(f"a {type(value).__name__} cannot be part of a specification", fix="use mappings, lists, text, numbers and booleans")


# --- YAML 1.2 --------------------------------------------------------------------------------------------------------

_PLAIN, _TEXT = "plain", "tag:yaml.org,2002:str"
_LIST, _MAPPING = "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """Composes nodes only; scalars are read by the rules above, not by PyYAML's YAML 1.1."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: tuple[bool, bool] | bool) -> str:
        """The tag of a node without one: `_PLAIN` for an unquoted scalar."""
        if kind is yaml.ScalarNode:
            return _PLAIN if isinstance(implicit, tuple) and implicit[0] else _TEXT
        return _LIST if kind is yaml.SequenceNode else _MAPPING


def _scalar(text: str) -> Scalar:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        digits = text.lstrip("+-")
        # Python's base 0 would refuse 007, which YAML 1.2 reads as 7.
        return int(digits[2:], 8) if digits.startswith("0o") else int(digits, 16) if digits.startswith("0x") else int(text)
    if _FLOAT.fullmatch(text):
        lowered = text.lower()
        return float(lowered.replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Reader:
    """Turns composed nodes into marked values; counts them with aliases expanded."""

    def __init__(self, file: str) -> None:
        self.file, self.count = file, 0
        self.found: list[FieldViolation] = []

    def refuse(self, node: yaml.Node, description: str, fix: str) -> None:
        self.found.append(LocatedViolation("", description, fix, where=f"{self.file}:{node.start_mark.line + 1}"))

    def read(self, node: yaml.Node, depth: int = 0) -> Marked:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            what = f"holds more than {MAX_VALUES} values" if self.count > MAX_VALUES else f"is nested deeper than {MAX_DEPTH} levels"
            raise _too_large(f"{self.file}:{line}", f"{what}, anchors expanded")
        if isinstance(node, yaml.ScalarNode):
            return Marked(self._scalar(node), line, node.value)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, _LIST)
            return Marked([self.read(item, depth + 1) for item in node.value], line)
        assert isinstance(node, yaml.MappingNode)
        self._check_tag(node, _MAPPING)
        result: dict[str, Marked] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(key_node, "a key is not plain text", "use a word as the key")
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self.refuse(key_node, "merge keys (<<) are not part of YAML 1.2", "write the fields out")
                continue
            if key in result:
                self.refuse(key_node, f"the key {key!r} stands twice in this mapping, first in line {lines[key]}", "remove one of the two")
                continue
            lines[key] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, depth + 1)
        return Marked(result, line, key_lines=lines)

    def _check_tag(self, node: yaml.Node, standard: str) -> None:
        if node.tag != standard:
            self.refuse(node, f"the tag {node.tag} is not allowed here", "remove the tag")

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        if node.tag == _PLAIN:
            return _scalar(node.value)
        self._check_tag(node, _TEXT)
        return str(node.value)


def _too_large(where: str, what: str) -> SpecError:
    violation = LocatedViolation("", f"the document {what}", "make it smaller; data belongs into files that it names", where=where)
    return SpecError(violation.description, where=where, fix=violation.fix, violations=[violation])


def _nodes(text: str) -> Iterator[yaml.Node]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            yield node
    finally:
        loader.dispose()


def compose(text: str, file: str) -> list[Marked]:
    """The documents of a YAML text; empty ones are left out. Raises `SpecError` with `file:line`."""
    if len(text.encode()) > MAX_BYTES:
        raise _too_large(file, f"is larger than {MAX_BYTES} bytes")
    reader = _Reader(file)
    try:
        documents = [reader.read(node) for node in _nodes(text)]
    except yaml.MarkedYAMLError as error:
        mark_ = error.problem_mark or error.context_mark
        where = f"{file}:{mark_.line + 1}" if mark_ is not None else file
        problem = " ".join(part for part in (error.problem, error.context) if part) or "cannot be parsed"
        raise SpecError(
            f"not YAML: {problem}",
            where=where,
            fix="correct the line; a value with ': ' or a leading '@', '%' or '*' needs quotes",
            violations=[LocatedViolation("", f"not YAML: {problem}", "correct the line", where=where)],
        ) from None
    except yaml.reader.ReaderError as error:
        raise SpecError(f"not YAML: {error.reason}", where=file, fix="save the file as UTF-8 text") from None
    except RecursionError:
        raise _too_large(file, "is nested too deeply") from None
    if reader.found:
        first = reader.found[0]
        assert isinstance(first, LocatedViolation)
        raise SpecError(first.description, where=first.where, fix=first.fix, violations=reader.found)
    return [document for document in documents if document.value is not None]
