"""Down-sampled series: bounded, exact where nothing was merged, and true in mean, minimum and maximum where it was."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import pytest_asyncio

from luthier.controller.store import series
from luthier.controller.store.records import SamplePoint
from luthier.controller.store.sqlite import SqlStore

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def with_job(store: SqlStore, job: Any) -> SqlStore:
    """A store with the job `u-one`."""
    await store.transact(lambda tx: tx.insert_job(job()))
    return store


async def add(store: SqlStore, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    await store.transact(lambda tx: tx.add_samples("u-one", rows))


async def points(store: SqlStore, name: str = "loss", most: int = 5000) -> list[SamplePoint]:
    return (await store.read(lambda reader: reader.series("u-one", [name], most)))[name]


async def test_few_steps_are_kept_as_they_are(with_job: SqlStore) -> None:
    """Below the limit every value is there; several series and names that do not exist are told apart."""
    await add(with_job, [(1, 10.0, {"loss": 2.0, "lr": 0.1}), (2, 11.0, {"loss": 1.5})])
    found = await with_job.read(lambda reader: reader.series("u-one", ["loss", "nothing"]))

    assert {"loss": [point(1, 2.0, 10.0), point(2, 1.5, 11.0)]} == found
    assert ["loss", "lr"] == list(await with_job.read(lambda reader: reader.series("u-one")))


def point(step: int, value: float, time: float) -> SamplePoint:
    """A stretch of one step."""
    return SamplePoint(step=step, value=value, min=value, max=value, time=time)


@pytest.mark.parametrize("seed", range(3))
async def test_a_long_series_stays_bounded_and_true(with_job: SqlStore, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Stretches double when full; means weigh every step once, extremes survive, and steps ascend."""
    print("seed", seed)
    monkeypatch.setattr(series, "MOST_STRETCHES", 16)
    rng = random.Random(seed)
    values = [rng.uniform(-5, 5) for _ in range(333)]
    start = 0
    while start < len(values):
        size = rng.randint(1, 40)
        await add(with_job, [(n, float(n), {"loss": values[n]}) for n in range(start, min(start + size, len(values)))])
        start += size
    found = await points(with_job)
    width = 2 ** math.ceil(math.log2(len(values) / 16))

    assert len(found) <= 16
    for number, stretch in enumerate(found):
        covered = values[number * width : (number + 1) * width]
        assert min((number + 1) * width, len(values)) - 1 == stretch.step
        assert stretch.value == pytest.approx(sum(covered) / len(covered), abs=1e-12)
        assert (min(covered), max(covered)) == (stretch.min, stretch.max)


async def test_recomputed_steps_count_once(with_job: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart from step 2 the new values replace the old ones; in merged stretches they are not counted again."""
    await add(with_job, [(n, 1.0, {"loss": float(n)}) for n in range(1, 6)])
    await add(with_job, [(3, 2.0, {"loss": 30.0}), (4, 2.0, {"loss": 40.0}), (5, 2.0, {"loss": 50.0}), (6, 2.0, {"loss": 6.0})])
    assert [1.0, 2.0, 30.0, 40.0, 50.0, 6.0] == [p.value for p in await points(with_job)]

    monkeypatch.setattr(series, "MOST_STRETCHES", 2)
    await add(with_job, [(7, 3.0, {"loss": 8.0})])
    before = await points(with_job)
    await add(with_job, [(n, 4.0, {"loss": 0.0}) for n in (6, 7)])
    after = await points(with_job)

    assert len(before) <= 2
    assert [p.value for p in before] == [p.value for p in after]
    assert 0.0 == after[-1].min


async def test_reading_thins_out(with_job: SqlStore) -> None:
    """At most as many points as asked for, over all steps."""
    await add(with_job, [(n, float(n), {"loss": float(n)}) for n in range(100)])
    found = await points(with_job, most=10)

    assert [9, 19, 29, 39, 49, 59, 69, 79, 89, 99] == [p.step for p in found]
    assert [4.5, 14.5] == [p.value for p in found[:2]]
    assert (0.0, 9.0) == (found[0].min, found[0].max)
    assert 1 == len(await points(with_job, most=1))


async def test_what_is_no_number_is_left_out(with_job: SqlStore) -> None:
    """NaN and infinities do not enter a series."""
    await add(with_job, [(1, 1.0, {"loss": math.nan}), (2, 1.0, {"loss": math.inf, "lr": 1.0}), (3, 1.0, {"loss": 3.0})])

    assert [3] == [p.step for p in await points(with_job)]


async def test_the_number_of_series_is_bounded(with_job: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that invents names without end fills no database."""
    monkeypatch.setattr(series, "MOST_SERIES", 5)
    await add(with_job, [(n, 1.0, {f"s{n}": 1.0}) for n in range(20)])
    await add(with_job, [(50, 1.0, {"s1": 2.0, "new": 1.0})])
    found = await with_job.read(lambda reader: reader.series("u-one"))

    assert [f"s{n}" for n in range(5)] == sorted(found)
    assert 2 == len(found["s1"])
