"""Metrics and health over HTTP, from a thread of its own: it answers while the event loop is busy, and says so.

`/metrics` Prometheus text; `/healthz` 200 while the event loop lives; `/readyz` 200 while calls are served; `/version`; `/sd`
Prometheus HTTP discovery of the live nodes' own metrics ports.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from luthier._version import __version__
from luthier.errors import LuthierError, Unavailable

__all__ = ["HttpServer", "Pulse", "SdTarget"]

SdTarget = dict[str, Any]
"""{"targets": ["host:port"], "labels": {…}}."""

_STALE_SECONDS = 15.0
"""A loop that did not turn for so long is not healthy. Far above any pause that is normal."""


class Pulse:
    """Written by the event loop, read by the HTTP thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()
        self.ready = False

    def beat(self) -> None:
        """The loop turned."""
        self._last = self._monotonic()

    def alive(self) -> bool:
        """Whether it turned lately."""
        return self._monotonic() - self._last < _STALE_SECONDS


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is its own affair."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: scrapes would fill the terminal."""


class HttpServer:
    """Listens from construction; serves from `start` to `close`. Raises `Unavailable` when the port is in use."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, pulse: Pulse, targets: Callable[[], list[SdTarget]]) -> None:
        self._pulse = pulse
        self._targets = targets
        self._metrics = make_wsgi_app(registry, disable_compression=True)
        try:
            kind = _Server6 if ":" in host else _Server
            self._server = make_server(host, port, self._answer, server_class=kind, handler_class=_Quiet)
        except OSError as error:
            raise _in_use(host, port, error) from error
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_port)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _send(start_response, "405 Method Not Allowed", "only GET is served here\n")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path == "/healthz":
            return _verdict(start_response, self._pulse.alive(), "the event loop is stuck")
        if path == "/readyz":
            return _verdict(start_response, self._pulse.ready and self._pulse.alive(), "starting or draining")
        if path == "/version":
            return _send(start_response, "200 OK", json.dumps({"version": __version__}), "application/json")
        if path == "/sd":
            return _send(start_response, "200 OK", json.dumps(self._targets()), "application/json")
        return _send(start_response, "404 Not Found", "served here: /metrics /healthz /readyz /version /sd\n")


def _verdict(start_response: StartResponse, good: bool, why: str) -> Iterable[bytes]:
    return _send(start_response, "200 OK", "ok\n") if good else _send(start_response, "503 Service Unavailable", why + "\n")


def _send(start_response: StartResponse, status: str, text: str, kind: str = "text/plain; charset=utf-8") -> Iterable[bytes]:
    body = text.encode()
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def _in_use(host: str, port: int, error: OSError) -> LuthierError:
    return Unavailable(
        f"the metrics port {host}:{port} cannot be used: {error.strerror or error}",
        fix="choose another one (--http-listen HOST:PORT, port 0 for a free one), or stop what uses it",
    )
