"""The node's HTTP endpoint: /metrics and /healthz. One per node, on a port of its own; ranks hand their numbers to the agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from luthier.trainer_node.metrics import NodeMetrics

__all__ = ["Exporter"]

_LIMIT_SECONDS = 10.0
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Exporter:
    """Serves until closed. `refresh` is called before each scrape to bring values up to date."""

    def __init__(self, metrics: NodeMetrics, refresh: Callable[[], None]) -> None:
        self._metrics = metrics
        self._refresh = refresh
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> int:
        """Listen on a free port of `host`; returns the port."""
        self._server = await asyncio.start_server(self._serve, host, 0, limit=16384)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.decode("latin-1").partition(" ")
                path = rest.split(" ", 1)[0].split("?", 1)[0]
                writer.write(self._answer(method, path))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that does not speak HTTP gets no answer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, method: str, path: str) -> bytes:
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n", method)
        if path == "/metrics":
            self._refresh()
            return _response("200 OK", self._metrics.exposition(), method)
        if path == "/healthz":
            return _response("200 OK", b"ok\n", method)
        return _response("404 Not Found", b"try /metrics or /healthz\n", method)


def _response(status: str, body: bytes, method: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {_TEXT}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)
