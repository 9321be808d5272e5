"""Filters of ListJobs: a subset of AIP-160, parsed into SQL.

    filter      = [ conjunction ]
    conjunction = disjunction { "AND" disjunction }
    disjunction = term { "OR" term }                      (OR binds tighter than AND, as AIP-160 says)
    term        = [ "NOT" | "-" ] ( "(" conjunction ")" | comparison )
    comparison  = field ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
    value       = bare word | "text" | 'text'             (backslash escapes the next character)

Fields: `state`, `method`, `queue`, `name`, `labels.KEY` (or `labels."KEY"`), `create_time` (RFC 3339), `priority`. A label that a job
does not have compares as "". At most 1 KiB and 16 levels of NOT and parentheses.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, and_, exists, not_, or_, true

from luthier.controller.store.records import JobState
from luthier.controller.store.schema import jobs, labels
from luthier.errors import FieldViolation, SpecError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "filter_clause"]

MAX_BYTES = 1024
MAX_DEPTH = 16

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXT_FIELDS = {"method": jobs.c.method, "queue": jobs.c.queue, "name": jobs.c.name}
_FIELDS = ("state", "method", "queue", "name", "labels.KEY", "create_time", "priority")

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_KEY = re.compile(r"[A-Za-z0-9_.\-/]+")
_BARE_VALUE = re.compile(r"""[^\s()"'=<>!]+""")
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>")
_KEYWORD = {word: re.compile(rf"{word}(?![A-Za-z0-9_.])") for word in ("AND", "OR", "NOT")}


@dataclass(frozen=True)
class _Value:
    text: str
    column: int


def filter_clause(text: str) -> ColumnElement[bool]:
    """The WHERE clause of a filter. Raises `SpecError` (INVALID_FILTER) with the column, counted in characters from 1."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        _fail(f"it has {size} bytes, more than {MAX_BYTES}", MAX_BYTES, "shorten it")
    return _Parser(text).parse()


def _fail(what: str, column: int, fix: str) -> NoReturn:
    raise SpecError(
        f"the filter is wrong at column {column}: {what}",
        reason="INVALID_FILTER",
        violations=[FieldViolation("filter", f"column {column}: {what}", fix)],
        fix=fix,
        metadata={"column": str(column)},
    )


class _Parser:
    """Recursive descent over the characters; `at` is the position of the next one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def parse(self) -> ColumnElement[bool]:
        self.skip()
        if self.at == len(self.text):
            return true()
        clause = self.conjunction(0)
        if self.at < len(self.text):
            if self.text[self.at] == ")":
                _fail("there is no parenthesis to close", self.at + 1, "remove `)` or open one before it")
            _fail(
                f"{self.rest()!r} follows a complete comparison", self.at + 1, "put AND or OR between comparisons; quote values with spaces"
            )
        return clause

    # --- grammar ---

    def conjunction(self, depth: int) -> ColumnElement[bool]:
        parts = [self.disjunction(depth)]
        while self.keyword("AND"):
            parts.append(self.disjunction(depth))
        return parts[0] if len(parts) == 1 else and_(*parts)

    def disjunction(self, depth: int) -> ColumnElement[bool]:
        parts = [self.term(depth)]
        while self.keyword("OR"):
            parts.append(self.term(depth))
        return parts[0] if len(parts) == 1 else or_(*parts)

    def term(self, depth: int) -> ColumnElement[bool]:
        if depth > MAX_DEPTH:
            _fail(f"it is nested deeper than {MAX_DEPTH} levels", self.at + 1, "flatten it")
        if self.keyword("NOT"):
            return not_(self.term(depth + 1))
        if self.take("-"):
            return not_(self.term(depth + 1))
        opened = self.at
        if self.take("("):
            inner = self.conjunction(depth + 1)
            if not self.take(")"):
                _fail("this parenthesis is never closed", opened + 1, "add `)`")
            # Grouped, so that what stands around it cannot bind into it.
            return inner.self_group()
        return self.comparison()

    def comparison(self) -> ColumnElement[bool]:
        start = self.at
        field = self.match(_WORD)
        if not field:
            wanted = "the filter ends where a comparison should begin" if start == len(self.text) else f"{self.rest()!r} is no field name"
            _fail(wanted, start + 1, 'write comparisons such as state = RUNNING AND method = "sft"')
        key = ""
        if field == "labels":
            key = self.label_key()
        elif field not in _TEXT_FIELDS and field not in ("state", "create_time", "priority"):
            near = difflib.get_close_matches(field, _FIELDS, 1)
            _fail(f"there is no field {field!r}", start + 1, f"did you mean {near[0]}?" if near else f"use one of {', '.join(_FIELDS)}")
        self.skip()
        where = self.at
        symbol = self.match(_OPERATOR)
        if not symbol:
            _fail(f"after {field!r} one of = != < <= > >= is needed", where + 1, f"write {field} = VALUE")
        self.skip()
        value = self.value(field)
        self.skip()
        return self.clause(field, key, symbol, where + 1, value)

    def label_key(self) -> str:
        where = self.at
        if not self.text.startswith(".", self.at):
            _fail("`labels` needs a key", where + 1, "write labels.KEY")
        self.at += 1
        if self.text[self.at : self.at + 1] in ("'", '"'):
            return self.quoted()
        key = self.match(_LABEL_KEY)
        if not key:
            _fail("`labels.` needs a key", self.at + 1, 'write labels.KEY, or labels."KEY" for keys with other characters')
        return key

    def value(self, field: str) -> _Value:
        start = self.at
        if self.text[start : start + 1] in ("'", '"'):
            return _Value(self.quoted(), start + 1)
        word = self.match(_BARE_VALUE)
        if not word:
            _fail(f"{field!r} is compared with nothing", start + 1, "give a value; quote it if it has spaces or symbols")
        return _Value(word, start + 1)

    def quoted(self) -> str:
        start, quote = self.at, self.text[self.at]
        out: list[str] = []
        self.at += 1
        while self.at < len(self.text):
            character = self.text[self.at]
            self.at += 1
            if character == quote:
                return "".join(out)
            if character == "\\":
                if self.at == len(self.text):
                    break
                character = self.text[self.at]
                self.at += 1
            out.append(character)
        _fail("this quote is never closed", start + 1, f"add {quote}")

    # --- meaning ---

    def clause(self, field: str, key: str, symbol: str, where: int, value: _Value) -> ColumnElement[bool]:
        compare = _OPERATORS[symbol]
        if "\0" in value.text or "\0" in key:
            _fail("a NUL character cannot be compared with", value.column, "remove it")
        if field == "priority":
            return _bool(compare(jobs.c.priority, self.integer(value)))
        if field == "create_time":
            return _bool(compare(jobs.c.create_time, self.time(value)))
        if field == "state":
            if symbol not in ("=", "!="):
                _fail(f"states have no order, so {symbol} is not possible", where, "use = or !=")
            return _bool(compare(jobs.c.state, self.state(value)))
        if field == "labels":
            return self.label(key, symbol, where, value.text)
        text = value.text.removeprefix("jobs/") if field == "name" else value.text
        return _bool(compare(_TEXT_FIELDS[field], text))

    def label(self, key: str, symbol: str, where: int, text: str) -> ColumnElement[bool]:
        if symbol not in ("=", "!="):
            _fail(f"labels are compared with = and !=, not {symbol}", where, "use = or !=")
        mine = exists().where(labels.c.job_uid == jobs.c.uid, labels.c.key == key)
        # A missing label is "": equal to "" and unequal to everything else.
        same = or_(mine.where(labels.c.value == text), not_(mine)) if text == "" else mine.where(labels.c.value == text)
        return same if symbol == "=" else not_(same)

    def integer(self, value: _Value) -> int:
        try:
            number = int(value.text)
        except ValueError:
            _fail(f"{value.text!r} is not a whole number", value.column, "give a whole number, for example priority >= 10")
        return max(-(2**63), min(number, 2**63 - 1))

    def time(self, value: _Value) -> float:
        try:
            moment = datetime.fromisoformat(value.text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            _fail(f"{value.text!r} is not a time", value.column, 'give RFC 3339, for example create_time > "2026-01-31T12:00:00Z"')

    def state(self, value: _Value) -> str:
        names = [str(state) for state in JobState]
        if value.text in names:
            return value.text
        near = difflib.get_close_matches(value.text.upper(), names, 1)
        _fail(f"there is no state {value.text!r}", value.column, f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}")

    # --- characters ---

    def skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None  # it matches nothing, too
        self.at = match.end()

    def match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    def take(self, symbol: str) -> bool:
        if not self.text.startswith(symbol, self.at):
            return False
        self.at += len(symbol)
        self.skip()
        return True

    def keyword(self, word: str) -> bool:
        if _KEYWORD[word].match(self.text, self.at) is None:
            return False
        self.at += len(word)
        self.skip()
        return True

    def rest(self) -> str:
        return self.text[self.at : self.at + 20]


def _bool(clause: Any) -> ColumnElement[bool]:
    """Comparisons of columns are clauses; the operator module hides that."""
    expression: ColumnElement[bool] = clause
    return expression
