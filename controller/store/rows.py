"""Records to rows and back. JSON columns are compact text, flags are 0 and 1, absent mappings are NULL."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Generic, TypeVar

from sqlalchemy import Table, insert

from luthier.controller.store import schema
from luthier.controller.store.records import (
    ArtifactRecord,
    AttemptRecord,
    CheckpointRecord,
    EventRecord,
    GenerationRecord,
    JobRecord,
    JobState,
    NodeRecord,
    RankEndRecord,
)

__all__ = ["ARTIFACT", "ATTEMPT", "CHECKPOINT", "EVENT", "GENERATION", "JOB", "NODE", "RANK_END", "Codec", "to_micros"]

R = TypeVar("R")


def to_micros(seconds: float) -> int:
    """Whole microseconds: what wall time is counted in, so that sums are exact."""
    return round(seconds * 1_000_000)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not plain JSON")


def _load(text: str) -> Any:
    return {} if text == "{}" else json.loads(text)


class Codec(Generic[R]):
    """Conversion of one record type; columns are named like the record's fields."""

    def __init__(
        self, record: type[R], table: Table, *, json: Collection[str] = (), tuples: Collection[str] = (), flags: Collection[str] = ()
    ):
        self.record = record
        self.table = table
        self.insert = insert(table)
        self.columns = [table.c[f.name] for f in fields(record) if f.name in table.c]  # type: ignore[arg-type]
        self._names = tuple(column.name for column in self.columns)
        self._json = frozenset(json)
        self._tuples = frozenset(tuples)
        self._flags = frozenset(flags)

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Column values of some fields. Raises TypeError for a field that the record does not have."""
        row: dict[str, Any] = {}
        for name, value in values.items():
            if name not in self._names:
                raise TypeError(f"{self.record.__name__} has no field {name!r} that can be written")
            if name in self._json:
                row[name] = None if value is None else _dump(value)
            elif name in self._tuples:
                row[name] = _dump(list(value))
            elif name in self._flags:
                row[name] = int(value)
            else:
                row[name] = value
        return row

    def all_values(self, record: R) -> dict[str, Any]:
        """Column values of a whole record."""
        return self.encode({name: getattr(record, name) for name in self._names})

    def fields_of(self, row: Any) -> dict[str, Any]:
        """Field values of a row that begins with `columns`."""
        values: dict[str, Any] = {}
        for name, value in zip(self._names, row, strict=False):
            if name in self._json:
                values[name] = None if value is None else _load(value)
            elif name in self._tuples:
                values[name] = () if value == "[]" else tuple(json.loads(value))
            elif name in self._flags:
                values[name] = bool(value)
            else:
                values[name] = value
        return values

    def decode(self, row: Any) -> R:
        """The record of a row that begins with `columns`."""
        return self.record(**self.fields_of(row))


class _JobCodec(Codec[JobRecord]):
    """Wall time by cause is stored in whole microseconds."""

    def __init__(self) -> None:
        super().__init__(
            JobRecord,
            schema.jobs,
            json=("labels", "spec", "failure", "result", "progress", "budget_used", "last_end"),
            tuples=("excluded_hosts", "dependencies"),
            flags=("plan_finished",),
        )
        self.columns = [*self.columns, schema.jobs.c.cause_micros]

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in values.items() if name != "cause_seconds"}
        row = super().encode(rest)
        if "cause_seconds" in values:
            row["cause_micros"] = _dump({cause: to_micros(seconds) for cause, seconds in values["cause_seconds"].items()})
        if "state" in row:
            row["state"] = str(row["state"])
        return row

    def all_values(self, record: JobRecord) -> dict[str, Any]:
        return {**super().all_values(record), **self.encode({"cause_seconds": record.cause_seconds})}

    def decode(self, row: Any) -> JobRecord:
        values = self.fields_of(row)
        values["state"] = JobState(values["state"])
        values["cause_seconds"] = {c: micros / 1_000_000 for c, micros in _load(row[len(self._names)]).items()}
        return JobRecord(**values)


JOB = _JobCodec()
ATTEMPT = Codec(AttemptRecord, schema.attempts, json=("launch", "versions"))
GENERATION = Codec(
    GenerationRecord, schema.generations, json=("resume_from", "journal_head"), tuples=("fallbacks",), flags=("phase_started",)
)
NODE = Codec(NodeRecord, schema.nodes, json=("versions", "ready", "preflight"), tuples=("superseded",), flags=("left", "finished"))
RANK_END = Codec(RankEndRecord, schema.rank_ends, tuples=("log_lines",), flags=("hung", "reaped"))
EVENT = Codec(EventRecord, schema.events, json=("details",))
CHECKPOINT = Codec(CheckpointRecord, schema.checkpoints, flags=("removed",))
ARTIFACT = Codec(ArtifactRecord, schema.artifacts)
