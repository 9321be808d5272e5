"""The synchronous face has every method of the asynchronous one."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading

import pytest

from luthier.client import sync
from luthier.client.asynchronous import AsyncClient
from luthier.client.catalog import AsyncMethods, AsyncQueues
from luthier.client.jobs import AsyncJob, AsyncJobs
from luthier.client.transfer import AsyncArtifacts

PAIRS = [
    (AsyncClient, sync.Client),
    (AsyncJobs, sync.Jobs),
    (AsyncJob, sync.Job),
    (AsyncArtifacts, sync.Artifacts),
    (AsyncMethods, sync.Methods),
    (AsyncQueues, sync.Queues),
]


def public(cls: type) -> set[str]:
    """Public methods."""
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(("asynchronous", "plain"), PAIRS, ids=lambda cls: cls.__name__)
def test_no_method_is_missing(asynchronous: type, plain: type) -> None:
    """Both classes have the same public methods with the same parameters and the same documentation."""
    assert public(asynchronous) == public(plain)
    for name in public(asynchronous):
        theirs, ours = getattr(asynchronous, name), getattr(plain, name)
        assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)
        assert theirs.__doc__
        assert theirs.__doc__ == ours.__doc__


def test_an_interrupt_cancels_the_call() -> None:
    """What the caller's thread raises while it waits cancels the coroutine instead of leaving it running."""
    cancelled = threading.Event()

    async def endless() -> None:
        try:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(KeyboardInterrupt):
        sync._LOOP.run(endless())

    assert cancelled.wait(5)
