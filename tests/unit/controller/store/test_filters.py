"""The filter language: meaning against a Python evaluation, and errors with columns."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, insert, select

from luthier.controller.store import schema
from luthier.controller.store.filters import filter_clause
from luthier.controller.store.records import JobRecord, JobState
from luthier.controller.store.rows import JOB
from luthier.errors import SpecError

Check = Callable[[JobRecord], bool]

STATES = ["QUEUED", "RUNNING", "FAILED"]
WORDS = ["a", "b", "sft", "long name", 'quo"te', "back\\slash", "-x", "AND", "é"]
TIMES = [1_700_000_000.0, 1_700_000_001.5, 1_800_000_000.0]
COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

jobs = st.builds(
    lambda **fields: JobRecord(uid="", tenant="t", spec={}, **fields),
    name=st.sampled_from(WORDS),
    method=st.sampled_from(WORDS),
    queue=st.sampled_from(["default", "night"]),
    priority=st.integers(-3, 3),
    state=st.sampled_from([JobState(s) for s in STATES]),
    create_time=st.sampled_from(TIMES),
    labels=st.dictionaries(st.sampled_from(["k", "app.kubernetes.io/name", "odd key"]), st.sampled_from(["", *WORDS]), max_size=3),
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@st.composite
def comparisons(draw: Any) -> tuple[str, Check]:
    """One comparison as text, and what it means."""
    field = draw(st.sampled_from(["state", "method", "name", "queue", "priority", "create_time", "labels"]))
    symbol = draw(st.sampled_from(["=", "!="] if field in ("state", "labels") else list(COMPARE)))
    compare, gap = COMPARE[symbol], draw(st.sampled_from(["", " ", "  "]))
    if field == "state":
        value = draw(st.sampled_from(STATES))
        return f"state{gap}{symbol}{gap}{value}", lambda job: compare(str(job.state), value)
    if field == "priority":
        number = draw(st.integers(-4, 4))
        return f"priority{gap}{symbol}{gap}{number}", lambda job: compare(job.priority, number)
    if field == "create_time":
        time = draw(st.sampled_from(TIMES))
        return f"create_time{gap}{symbol}{gap}{quoted(rfc3339(time))}", lambda job: compare(job.create_time, time)
    text = draw(st.sampled_from(["", *WORDS]))
    if field == "labels":
        key = draw(st.sampled_from(["k", "app.kubernetes.io/name", "odd key", "missing"]))
        shown = quoted(key) if " " in key else key
        return f"labels.{shown}{gap}{symbol}{gap}{quoted(text)}", lambda job: compare(job.labels.get(key, ""), text)
    # SQLite compares text by code point of its UTF-8, which is the order of Python's strings.
    return f"{field}{gap}{symbol}{gap}{quoted(text)}", lambda job: compare(getattr(job, field), text)


def combined(inner: st.SearchStrategy[tuple[str, Check]]) -> st.SearchStrategy[tuple[str, Check]]:
    """AND, OR and NOT of smaller filters, each in parentheses."""

    def both(word: str, left: tuple[str, Check], right: tuple[str, Check]) -> tuple[str, Check]:
        if word == "AND":
            return f"({left[0]}) AND ({right[0]})", lambda job: left[1](job) and right[1](job)
        return f"({left[0]}) OR ({right[0]})", lambda job: left[1](job) or right[1](job)

    def negated(sign: str, part: tuple[str, Check]) -> tuple[str, Check]:
        return f"{sign}({part[0]})", lambda job: not part[1](job)

    return st.builds(both, st.sampled_from(["AND", "OR"]), inner, inner) | st.builds(negated, st.sampled_from(["NOT ", "-"]), inner)


filters = st.recursive(comparisons(), combined, max_leaves=6)


def select_names(records: list[JobRecord], text: str) -> set[str]:
    """Uids that the database selects."""
    engine = create_engine("sqlite://")
    schema.metadata.create_all(engine, tables=[schema.jobs, schema.labels])
    with engine.begin() as connection:
        for record in records:
            connection.execute(insert(schema.jobs), {**JOB.all_values(record), "event_sequence": 0, "stamp": 0})
            rows = [{"job_uid": record.uid, "key": key, "value": value} for key, value in record.labels.items()]
            if rows:
                connection.execute(insert(schema.labels), rows)
        found = set(connection.execute(select(schema.jobs.c.uid).where(filter_clause(text))).scalars())
    engine.dispose()
    return found


@settings(max_examples=60, deadline=None)
@given(records=st.lists(jobs, min_size=1, max_size=6), filter_=filters)
def test_filters_select_what_they_say(records: list[JobRecord], filter_: tuple[str, Check]) -> None:
    """The database selects exactly the jobs for which the expression is true."""
    import dataclasses

    records = [dataclasses.replace(r, uid=str(n), tenant=str(n)) for n, r in enumerate(records)]
    text, check = filter_

    if len(text.encode()) <= 1024:
        assert {r.uid for r in records if check(r)} == select_names(records, text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", {"a", "b", "c"}),
        ("   ", {"a", "b", "c"}),
        ("name = a OR name = b AND priority = 2", {"b"}),  # OR binds tighter: (a OR b) AND 2
        ("priority = 1 AND name = a OR name = b", {"a"}),
        ("NOT name = a", {"b", "c"}),
        ("-name = a AND NOT name = b", {"c"}),
        ("name = jobs/a", {"a"}),
        ("priority > -1 AND priority<=2", {"a", "b"}),
        ("name = 'a'", {"a"}),
        ("create_time >= 2026-01-01", {"c"}),
        ('create_time < "2026-01-01T00:00:00Z"', {"a", "b"}),
        ("NOT NOT name = a", {"a"}),
        ("(name = a) OR ((name = b))", {"a", "b"}),
        ("labels.k = v", {"a"}),
        ("labels.k != v", {"b", "c"}),
        ('labels.k = ""', {"b", "c"}),
    ],
)
def test_examples(text: str, names: set[str], job: Any) -> None:
    """Precedence, negation, quoting, times, and labels that are missing."""
    records = [
        job("a", uid="a", priority=1, create_time=1.0, labels={"k": "v"}),
        job("b", uid="b", priority=2, create_time=2.0),
        job("c", uid="c", priority=3, create_time=1_800_000_000.0),
    ]

    assert names == select_names(records, text)


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("stat = RUNNING", 1, "no field 'stat'"),
        ("state = RUNING", 9, "no state 'RUNING'"),
        ("state < RUNNING", 7, "no order"),
        ("state RUNNING", 7, "is needed"),
        ("state = ", 9, "compared with nothing"),
        ("state = RUNNING queue = a", 17, "follows a complete comparison"),
        ("state = RUNNING AND", 20, "ends where a comparison should begin"),
        ("(state = RUNNING", 1, "never closed"),
        ("state = RUNNING)", 16, "no parenthesis to close"),
        ('name = "abc', 8, "quote is never closed"),
        ('name = "abc\\', 8, "quote is never closed"),
        ("priority = high", 12, "not a whole number"),
        ("create_time > yesterday", 15, "not a time"),
        ("labels = x", 7, "needs a key"),
        ("labels. = x", 8, "needs a key"),
        ("labels.k < x", 10, "= and !="),
        ("= 3", 1, "is no field name"),
        ("NOT " * 17 + "name = a", 69, "deeper than 16"),
        ("(" * 17 + "name = a" + ")" * 17, 18, "deeper than 16"),
        ("name = " + "a" * 1024, 1024, "1031 bytes"),
        ("name = 'a\0b'", 8, "NUL"),
    ],
)
def test_errors_name_the_column(text: str, column: int, why: str) -> None:
    """A bad filter is INVALID_FILTER with its column and a fix, never anything else."""
    with pytest.raises(SpecError) as caught:
        filter_clause(text)

    assert ("INVALID_FILTER", str(column)) == (caught.value.reason, caught.value.metadata["column"])
    assert why in caught.value.message
    assert caught.value.fix
    assert ["filter"] == [violation.field for violation in caught.value.violations]


def test_a_misspelt_word_is_guessed() -> None:
    """The fix proposes the nearest field or state."""
    with pytest.raises(SpecError, match="did you mean priority"):
        filter_clause("prioriti = 1")
    with pytest.raises(SpecError, match="did you mean RUNNING"):
        filter_clause("state = running")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text(alphabet="()-=<>!'\"\\ .AORNDTstaelbkpriy_0123", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text makes the parser fail in another way, and columns lie inside the text."""
    refused = None
    try:
        filter_clause(text)
    except SpecError as error:
        refused = error

    if refused is not None:
        assert "INVALID_FILTER" == refused.reason
        assert 1 <= int(refused.metadata["column"]) <= len(text) + 1
