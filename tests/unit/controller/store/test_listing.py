"""ListJobs in the store: keyset pages, orders and tokens."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import Any

import pytest

from luthier.controller.store.pages import page_limit, scope_of, token_for, token_key
from luthier.controller.store.sqlite import SqlStore
from luthier.errors import SpecError


async def walk(store: SqlStore, **options: Any) -> list[str]:
    """Names over all pages."""
    names, token = [], ""
    while True:
        page, token = await store.read(lambda reader, token=token: reader.list_jobs("t", page_token=token, **options))
        names += [job.name for job in page]
        if not token:
            return names


@pytest.mark.asyncio
async def test_every_order_lists_every_job_once(store: SqlStore, job: Any, clock: Any) -> None:
    """Four orders, also where times are equal, and nothing of another tenant."""
    rng = random.Random(3)
    for n in rng.sample(range(25), 25):
        clock.now += rng.choice([0, 1])
        await store.transact(lambda tx, n=n: tx.insert_job(job(f"n{n:02}")))
    await store.transact(lambda tx: tx.insert_job(job("foreign", tenant="t2")))
    names = [f"n{n:02}" for n in range(25)]
    newest = await walk(store, page_size=4)

    assert names == sorted(newest)
    assert newest == await walk(store, page_size=1000, order_by="create_time desc")
    assert newest[::-1] == await walk(store, page_size=7, order_by=" create_time ")
    assert names == await walk(store, page_size=3, order_by="name")
    assert names[::-1] == await walk(store, page_size=3, order_by="name  desc")


@pytest.mark.asyncio
async def test_a_walk_sees_each_job_once_while_others_are_created(store: SqlStore, job: Any) -> None:
    """Jobs that exist when the walk begins are seen exactly once, whatever is inserted meanwhile."""
    for n in range(40):
        await store.transact(lambda tx, n=n: tx.insert_job(job(f"old{n:03}")))
    stop = False

    async def insert() -> None:
        n = 0
        while not stop:
            await store.transact(lambda tx, n=n: tx.insert_job(job(f"new{n:03}")))
            n += 1

    for order in ("name", "name desc", "create_time", "create_time desc"):
        stop = False
        inserting = asyncio.create_task(insert()) if order == "name" else None
        seen = await walk(store, page_size=3, order_by=order) if order != "create_time" else await walk(store, page_size=9, order_by=order)
        stop = True
        if inserting is not None:
            await inserting
        old = [name for name in seen if name.startswith("old")]
        assert [f"old{n:03}" for n in range(40)] == sorted(old)
        assert len(seen) == len(set(seen))


@pytest.mark.asyncio
async def test_tokens_belong_to_filter_order_and_tenant(store: SqlStore, job: Any) -> None:
    """A token of another filter, order or tenant, and any made-up text, is INVALID_PAGE_TOKEN."""
    for n in range(3):
        await store.transact(lambda tx, n=n: tx.insert_job(job(f"n{n}")))
    _, token = await store.read(lambda reader: reader.list_jobs("t", page_size=1, filter="priority = 0"))
    forged = base64.urlsafe_b64encode(b'["x",[1e400,"a"]]').decode()
    scope = scope_of("jobs", "t", "priority = 0", "create_time desc")
    bad = [
        ("t", {"filter": "priority = 1"}, token),
        ("t", {"filter": "priority = 0", "order_by": "name"}, token),
        ("t2", {"filter": "priority = 0"}, token),
        *(("t", {"filter": "priority = 0"}, t) for t in ("", "x", "é", "AAAA", forged, token[:-3], token + "AA")[1:]),
        ("t", {"filter": "priority = 0"}, token_for(scope, ["no time", "u"])),
        ("t", {"filter": "priority = 0"}, token_for(scope, [1.0])),
        ("t", {"filter": "priority = 0"}, token_for(scope, [1.0, "a\0b"])),
    ]
    for tenant, options, text in bad:
        with pytest.raises(SpecError) as caught:
            await store.read(lambda reader, a=tenant, o=options, t=text: reader.list_jobs(a, page_token=t, **o))
        assert "INVALID_PAGE_TOKEN" == caught.value.reason, text


@pytest.mark.asyncio
async def test_an_unknown_order_is_refused(store: SqlStore) -> None:
    """The error names the orders that exist."""
    with pytest.raises(SpecError, match="create_time desc"):
        await store.read(lambda reader: reader.list_jobs("t", order_by="priority"))


def test_page_sizes() -> None:
    """0 is 50, more than 1000 is 1000, negative is refused."""
    assert [50, 1, 1000, 1000] == [page_limit(n) for n in (0, 1, 1000, 5000)]
    with pytest.raises(SpecError, match="negative"):
        page_limit(-1)


def test_tokens_hold_what_the_database_takes() -> None:
    """Numbers beyond 64 bits and other types are refused instead of failing in the database."""
    scope = scope_of("x")

    assert [5, "a"] == token_key(token_for(scope, [5, "a"]), scope, (int, str))
    for key in ([2**63, "a"], [True, "a"], ["5", "a"], [5], [5, "a", 1]):
        with pytest.raises(SpecError):
            token_key(token_for(scope, key), scope, (int, str))
