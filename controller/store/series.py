"""Step series, kept down-sampled: at most `MOST_STRETCHES` stretches per series, each with mean, minimum and maximum.

A stretch covers `width` consecutive steps. When a series is full, its width doubles and neighbours merge, so an endless job costs a
bounded number of rows. A step that is reported again (recomputed after a restart, or sent twice) counts once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from luthier.controller.store import schema
from luthier.controller.store.records import SamplePoint

__all__ = ["MOST_SERIES", "MOST_STRETCHES", "add_rows", "read_series"]

MOST_STRETCHES = 2000
MOST_SERIES = 200
"""Series of one job: more than any method has, and a bound on what a broken one can write."""


@dataclass
class _Stretch:
    """The values of `count` reported steps."""

    step: int
    count: int
    mean: float
    min: float
    max: float
    time: float

    def add(self, other: _Stretch) -> None:
        """Merge a stretch of later or equal steps."""
        total = self.count + other.count
        self.mean += (other.mean - self.mean) * other.count / total
        self.count = total
        self.step = max(self.step, other.step)
        self.min, self.max, self.time = min(self.min, other.min), max(self.max, other.max), max(self.time, other.time)


@dataclass
class _Header:
    width: int
    stretches: int
    last_step: int
    fresh: bool


_POINT_COLUMNS = ("stretch", "step", "count", "mean", "min", "max", "time")


def add_rows(connection: Connection, uid: str, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
    """Add (step, time, values) in order of time. Values that are not finite are left out: the store keeps numbers, events tell of them."""
    by_name: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for step, time, values in rows:
        for name, value in values.items():
            if math.isfinite(value) and step >= 0:
                by_name[name].append((step, time, float(value)))
    if not by_name:
        return
    headers = _headers(connection, uid)
    changed: dict[str, _Header] = {}
    written: list[dict[str, Any]] = []
    for name, samples in by_name.items():
        header = headers.get(name)
        if header is None:
            if len(headers) >= MOST_SERIES:
                continue
            header = headers[name] = _Header(width=1, stretches=0, last_step=-1, fresh=True)
        written += _merge_in(connection, uid, name, header, samples)
        changed[name] = header
    if written:
        connection.execute(insert(schema.points), written)
    _write_headers(connection, uid, changed)
    for name, header in changed.items():
        while header.stretches > MOST_STRETCHES:
            _halve(connection, uid, name, header)


def _headers(connection: Connection, uid: str) -> dict[str, _Header]:
    table = schema.series
    rows = connection.execute(select(table.c.name, table.c.width, table.c.stretches, table.c.last_step).where(table.c.job_uid == uid))
    return {name: _Header(width, stretches, last, fresh=False) for name, width, stretches, last in rows}


def _merge_in(
    connection: Connection, uid: str, name: str, header: _Header, samples: Iterable[tuple[int, float, float]]
) -> list[dict[str, Any]]:
    """Merge samples into their stretches: removes the stored rows that change and returns all rows to insert."""
    touched: dict[int, _Stretch] = {}
    stored: dict[int, _Stretch] = {}
    batch = list(samples)
    lowest = min(step for step, _, _ in batch) // header.width
    if not header.fresh and lowest <= header.last_step // header.width:
        stored = _read(connection, uid, name, lowest)
    for step, time, value in batch:
        number = step // header.width
        sample = _Stretch(step, 1, value, value, value, time)
        if number not in touched and number in stored:
            touched[number] = stored[number]
        if number not in touched:
            touched[number] = sample
        elif step > header.last_step:
            touched[number].add(sample)
        elif header.width == 1:
            touched[number] = sample
        else:
            # Counted already: a wider stretch cannot forget the old value, so only its extremes may grow.
            old = touched[number]
            old.min, old.max, old.time = min(old.min, value), max(old.max, value), max(old.time, time)
        header.last_step = max(header.last_step, step)
    old_numbers = [number for number in touched if number in stored]
    if old_numbers:
        table = schema.points
        same = (table.c.job_uid == uid, table.c.name == name)
        connection.execute(delete(table).where(*same, table.c.stretch == bindparam("old")), [{"old": number} for number in old_numbers])
    header.stretches += len(touched) - len(old_numbers)
    return [_row(uid, name, number, stretch) for number, stretch in touched.items()]


def _read(connection: Connection, uid: str, name: str, lowest: int = 0) -> dict[int, _Stretch]:
    table = schema.points
    columns = [table.c[column] for column in _POINT_COLUMNS]
    query = select(*columns).where(table.c.job_uid == uid, table.c.name == name, table.c.stretch >= lowest).order_by(table.c.stretch)
    return {row[0]: _Stretch(*row[1:]) for row in connection.execute(query)}


def _row(uid: str, name: str, number: int, stretch: _Stretch) -> dict[str, Any]:
    return {"job_uid": uid, "name": name, "stretch": number, **vars(stretch)}


def _write_headers(connection: Connection, uid: str, headers: Mapping[str, _Header]) -> None:
    table = schema.series
    new = [(name, header) for name, header in headers.items() if header.fresh]
    if new:
        connection.execute(
            insert(table),
            [{"job_uid": uid, "name": n, "width": h.width, "stretches": h.stretches, "last_step": h.last_step} for n, h in new],
        )
    old = [{"n": name, "w": h.width, "s": h.stretches, "l": h.last_step} for name, h in headers.items() if not h.fresh]
    if old:
        query = update(table).where(table.c.job_uid == uid, table.c.name == bindparam("n"))
        connection.execute(query.values(width=bindparam("w"), stretches=bindparam("s"), last_step=bindparam("l")), old)
    for _, header in new:
        header.fresh = False


def _halve(connection: Connection, uid: str, name: str, header: _Header) -> None:
    """Double the width: neighbouring stretches become one."""
    merged: dict[int, _Stretch] = {}
    for number, stretch in _read(connection, uid, name).items():
        if number // 2 in merged:
            merged[number // 2].add(stretch)
        else:
            merged[number // 2] = stretch
    table = schema.points
    connection.execute(delete(table).where(table.c.job_uid == uid, table.c.name == name))
    connection.execute(insert(table), [_row(uid, name, number, stretch) for number, stretch in merged.items()])
    header.width, header.stretches = header.width * 2, len(merged)
    _write_headers(connection, uid, {name: header})


def read_series(connection: Connection, uid: str, names: Sequence[str], max_points: int) -> dict[str, list[SamplePoint]]:
    """The series that exist, by name, each with at most `max_points` points of equally many stretches."""
    known = _headers(connection, uid)
    wanted = [name for name in (names or sorted(known)) if name in known]
    return {name: _thin(list(_read(connection, uid, name).values()), max_points) for name in wanted}


def _thin(stretches: list[_Stretch], max_points: int) -> list[SamplePoint]:
    group = -(-len(stretches) // max(1, max_points))
    points = []
    for start in range(0, len(stretches), max(1, group)):
        whole = stretches[start]
        for stretch in stretches[start + 1 : start + group]:
            whole.add(stretch)
        points.append(SamplePoint(step=whole.step, value=whole.mean, min=whole.min, max=whole.max, time=whole.time))
    return points
