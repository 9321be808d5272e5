"""The asynchronous client."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from luthier.client.catalog import AsyncMethods, AsyncQueues
from luthier.client.channel import DEFAULT_TIMEOUT_SECONDS, Wire
from luthier.client.connection import Connection, discover
from luthier.client.jobs import AsyncJobs
from luthier.client.transfer import AsyncArtifacts

__all__ = ["AsyncClient"]


class AsyncClient:
    """One connection to a controller: `jobs`, `artifacts`, `methods`, `queues`.

    Without arguments it finds the controller by environment, context file or the local state directory. `timeout_seconds` is the
    deadline of every unary call; streams have none, and are opened again for `patience_seconds` when the server goes away.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        state_dir: str | Path | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        patience_seconds: float = 60.0,
    ) -> None:
        self.connection: Connection = discover(address, token, state_dir=state_dir)
        self._wire = Wire(self.connection, timeout=timeout_seconds, patience=patience_seconds)
        self.artifacts = AsyncArtifacts(self._wire)
        self.jobs = AsyncJobs(self._wire, self.artifacts)
        self.methods = AsyncMethods(self._wire)
        self.queues = AsyncQueues(self._wire)

    async def close(self) -> None:
        """Close the connection; open streams end."""
        await self._wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
