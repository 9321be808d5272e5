"""What a row means: prompt and completion, messages, Alpaca, or plain text.

The shape of a source is named in the specification or detected from its first rows, and the reason is kept for the report. Column names
come from `data.columns` (role -> column of the file), else from the names that are usual for the shape. Keys of `data.columns` that are
no role name a number per row that travels with the tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.errors import DataError

__all__ = ["BadRow", "Message", "Row", "Shape", "Shaper", "choose_shaper"]

Shape = Literal["prompt_completion", "messages", "alpaca", "text"]

Names = tuple[str, ...]

_USUAL: dict[Shape, tuple[dict[str, Names], ...]] = {
    # Alternatives in order; each maps a role to the column names that are tried.
    "messages": ({"messages": ("messages", "conversations", "conversation")},),
    "alpaca": ({"instruction": ("instruction",), "output": ("output",)},),
    "prompt_completion": (
        {"prompt": ("prompt",), "completion": ("completion", "response", "answer", "output")},
        {"prompt": ("question", "query"), "completion": ("answer", "response", "output", "completion")},
        {"prompt": ("instruction",), "completion": ("response", "completion", "answer", "output")},
        {"prompt": ("input",), "completion": ("output", "target", "label")},
        {"prompt": ("source",), "completion": ("target",)},
    ),
    "text": ({"text": ("text", "content", "document")},),
}
_OPTIONAL: dict[Shape, dict[str, Names]] = {
    "messages": {"system": ("system",)},
    "alpaca": {"input": ("input",), "system": ("system",)},
    "prompt_completion": {"system": ("system",)},
    "text": {},
}
_REQUIRED: dict[Shape, Names] = {shape: tuple(alternatives[0]) for shape, alternatives in _USUAL.items()}
_ROLES = frozenset(role for shape in _USUAL for role in (*_REQUIRED[shape], *_OPTIONAL[shape]))
_SPEAKERS = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "bot": "assistant", "developer": "system",
}  # fmt: skip
_LOOKED_AT = 20
"""Rows that detection looks at."""


class BadRow(Exception):
    """The row does not fit its shape; the text says why."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row by its meaning. Which fields are set depends on `shape`; `columns` holds the numbers that travel along."""

    shape: Shape
    prompt: str = ""
    completion: str = ""
    context: str = ""
    """Alpaca's `input`."""
    text: str = ""
    messages: tuple[Message, ...] = ()
    system: str | None = None
    columns: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """{"prompt", "completion"}, {"messages"} or {"text"}, plus columns: what Build functions read."""
        body: dict[str, Any]
        if self.shape == "text":
            body = {"text": self.text}
        elif self.shape == "messages":
            body = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        else:
            body = {"prompt": self.question(), "completion": self.completion}
        if self.system is not None and self.shape != "messages":
            body["system"] = self.system
        return {**body, **self.columns}

    def question(self) -> str:
        """The prompt, with Alpaca's input after an empty line."""
        return f"{self.prompt}\n\n{self.context}" if self.context else self.prompt

    def all_text(self) -> str:
        """Everything that is text in the row, for tokenizer training."""
        parts = [self.system or "", self.text, self.question(), self.completion, *(m.content for m in self.messages)]
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Shaper:
    """Turns raw values into rows of one shape."""

    shape: Shape
    columns: Mapping[str, str]
    """Role -> column of the file, for the roles that the file has."""
    numbers: Mapping[str, str]
    """Name -> column of the file, for numbers that travel along."""
    reason: str
    """Why this shape, for the report."""

    def __call__(self, values: Mapping[str, Any]) -> Row:
        """The row of these values. Raises `BadRow`."""
        numbers = {name: self._number(values, column) for name, column in self.numbers.items()}
        system = self._text(values, "system", required=False) if "system" in self.columns else None
        if self.shape == "messages":
            return Row("messages", messages=self._messages(values, system), columns=numbers)
        if self.shape == "text":
            return Row("text", text=self._text(values, "text"), columns=numbers)
        if self.shape == "alpaca":
            context = self._text(values, "input", required=False) if "input" in self.columns else ""
            return Row(
                "alpaca",
                prompt=self._text(values, "instruction"),
                context=context,
                completion=self._text(values, "output"),
                system=system or None,
                columns=numbers,
            )
        return Row(
            "prompt_completion",
            prompt=self._text(values, "prompt"),
            completion=self._text(values, "completion"),
            system=system or None,
            columns=numbers,
        )

    def _text(self, values: Mapping[str, Any], role: str, *, required: bool = True) -> str:
        column = self.columns[role]
        value = values.get(column)
        if isinstance(value, str):
            return value
        if value is None:
            if required:
                raise BadRow(f"column {column!r} is {'null' if column in values else 'missing'}")
            return ""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        raise BadRow(f"column {column!r} holds {_kind(value)}, not text")

    def _number(self, values: Mapping[str, Any], column: str) -> float:
        value = values.get(column)
        try:
            if isinstance(value, (bool, int, float, str)):
                return float(value)
        except ValueError:
            pass
        raise BadRow(f"column {column!r} holds {value!r}, not a number")

    def _messages(self, values: Mapping[str, Any], system: str | None) -> tuple[Message, ...]:
        column = self.columns["messages"]
        turns = values.get(column)
        if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
            raise BadRow(f"column {column!r} holds {_kind(turns)}, not a list of messages")
        messages = [_message(turn, column, number) for number, turn in enumerate(turns, start=1)]
        if system and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        return tuple(messages)


def choose_shaper(rows: Iterable[Mapping[str, Any]], *, shape: str, columns: Mapping[str, str], where: str) -> Shaper:
    """How to understand the rows of a source, from its first rows.

    `shape` is "auto" or a `Shape`; `columns` maps roles, or names of numbers, to columns. Raises `DataError` that names the columns that
    exist when the shape cannot be told or a column is missing.
    """
    looked_at = [row for _, row in zip(range(_LOOKED_AT), rows, strict=False)]
    present: dict[str, None] = {}
    for row in looked_at:
        present.update(dict.fromkeys(str(name) for name in row))
    names = list(present)
    for role, column in columns.items():
        near_role = difflib.get_close_matches(role, sorted(_ROLES), 1, cutoff=0.8)
        if role not in _ROLES and near_role:
            known_roles = ", ".join(sorted(_ROLES))
            raise DataError(
                f"data.columns has no role {role!r}; roles are {known_roles}", where=where, fix=f"did you mean {near_role[0]!r}?"
            )
        if column not in present:
            raise _no_column(column, f"data.columns.{role}", names, where)
    named = {role: column for role, column in columns.items() if role in _ROLES}
    numbers = {role: column for role, column in columns.items() if role not in _ROLES}

    if shape != "auto":
        known = next((candidate for candidate in _USUAL if candidate == shape), None)
        assert known is not None, f"unknown shape {shape}"
        found = _find(known, named, names)
        if found is None:
            missing = [role for role in _REQUIRED[known] if role not in named and role not in present]
            raise _shape_missing(known, missing, names, where)
        return Shaper(known, found, numbers, f"shape {known} as named")

    if "chosen" in present and "rejected" in present and not {"completion", "output"} & named.keys():
        raise DataError(
            f"the rows are preference pairs (columns {_listed(names)}), which no method of this release reads",
            where=where,
            fix="name what is to be learned, for example data.columns: {prompt: prompt, completion: chosen}",
        )
    # Columns that the user named decide first; then the shapes from the most telling to the least.
    for candidate in ("messages", "alpaca", "prompt_completion", "text"):
        if named and not set(_REQUIRED[candidate]) & named.keys() and not named.keys() <= {"system"}:
            continue
        found = _find(candidate, named, names)
        if found is not None:
            told = ", ".join(f"{role} from {column!r}" if role != column else repr(column) for role, column in found.items())
            return Shaper(candidate, found, numbers, f"shape {candidate} detected: {told}")
    if named:
        wanted: Shape = next((s for s in _USUAL if set(_REQUIRED[s]) & named.keys()), "prompt_completion")
        raise _shape_missing(wanted, [role for role in _REQUIRED[wanted] if role not in named], names, where)
    raise DataError(
        f"cannot tell what the columns mean; the rows have {_listed(names)}",
        where=where,
        fix="map them, for example data.columns: {prompt: COLUMN, completion: COLUMN} or data.columns: {text: COLUMN}",
    )


def _find(shape: Shape, named: Mapping[str, str], present: Sequence[str]) -> dict[str, str] | None:
    """Role -> column for a shape, or None when a required role has no column."""
    for alternative in _USUAL[shape]:
        found: dict[str, str] = {}
        for role, usual in alternative.items():
            free = [name for name in usual if name in present and name not in named.values() and name not in found.values()]
            column = named.get(role) or next(iter(free), None)
            if column is None:
                break
            found[role] = column
        else:
            for role, usual in _OPTIONAL[shape].items():
                column = named.get(role) or next((name for name in usual if name in present and name not in found.values()), None)
                if column is not None:
                    found[role] = column
            return found
    return None


def _message(turn: object, column: str, number: int) -> Message:
    place = f"message {number} of column {column!r}"
    if not isinstance(turn, Mapping):
        raise BadRow(f"{place} is {_kind(turn)}, not an object")
    speaker = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(speaker, str) or speaker.lower() not in _SPEAKERS:
        raise BadRow(f"{place} has the role {speaker!r}; known are {', '.join(sorted(_SPEAKERS))}")
    if not isinstance(content, str):
        raise BadRow(f"{place} has {_kind(content)} as its content, not text")
    return Message(_SPEAKERS[speaker.lower()], content)


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list" if value else "an empty list"
    return "true or false" if isinstance(value, bool) else "text" if isinstance(value, str) else "a number"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "no columns"


def _near(wanted: str, names: Sequence[str]) -> str:
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.lower(), list(lower), 1)
    return f"did you mean {lower[close[0]]!r}? " if close else ""


def _no_column(column: str, setting: str, names: Sequence[str], where: str) -> DataError:
    return DataError(
        f"there is no column {column!r} ({setting}); the rows have {_listed(names)}",
        where=where,
        fix=f"{_near(column, names)}set {setting} to one of these columns",
        metadata={"column": column},
    )


def _shape_missing(shape: Shape, missing: Sequence[str], names: Sequence[str], where: str) -> DataError:
    wanted = " and ".join(repr(role) for role in missing or _REQUIRED[shape])
    hint = "".join(_near(role, names) for role in missing)
    settings = ", ".join(f"{role}: COLUMN" for role in missing or _REQUIRED[shape])
    return DataError(
        f"shape {shape} needs a column for {wanted}; the rows have {_listed(names)}",
        where=where,
        fix=f"{hint}set data.columns: {{{settings}}}",
    )
