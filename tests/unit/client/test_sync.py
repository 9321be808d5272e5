"""The synchronous face has every method of the asynchronous one."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncGenerator

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
    main = threading.main_thread().ident
    assert main is not None

    async def endless() -> None:
        # The caller must be waiting already, or the interrupt hits it before it has anything to cancel.
        asyncio.get_running_loop().call_later(0.1, signal.pthread_kill, main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(KeyboardInterrupt):
        sync._LOOP.run(endless())

    assert cancelled.wait(5)


def test_an_interrupted_stream_is_closed_in_order() -> None:
    """A signal while a stream waits lets the pending step end first, then closes the stream, and nothing else is raised."""
    steps: list[str] = []

    async def messages() -> AsyncGenerator[int]:
        try:
            yield 1
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT]).start()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)  # as a network stream does, closing takes a moment
            steps.append("closed")

    with pytest.raises(KeyboardInterrupt):
        steps += [str(message) for message in sync._iterate(messages())]
    assert steps == ["closed"]
