"""What happens around every call, outermost first: correlation id, access log and metrics, error mapping, authentication, deadline.

One gRPC interceptor wraps each handler once; the layers are small coroutines. Error mapping stands outside of authentication and
deadlines because they refuse calls with errors of their own, and errors become statuses in one place only.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from luthier.controller.service.auth import Authenticator, Principal
from luthier.controller.service.status import DETAILS_KEY, code_of, to_status
from luthier.errors import DeadlineExceeded, LuthierError, Unauthenticated, Unavailable

__all__ = ["Call", "CallObserver", "Drain", "Pipeline", "current_tenant", "standard_layers"]

CORRELATION_KEY = "x-correlation-id"
UNARY_SECONDS = 30.0
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_access = logging.getLogger("luthier.controller.access")
_log = logging.getLogger(__name__)

CallObserver = Callable[[str, str, float, bool], None]
"""(full method name, status code, seconds, streaming): for metrics, at the end of every call."""


@dataclass
class Call:
    """One call on its way through the layers."""

    method: str
    kind: str
    """"unary", "upload" (client stream), "download" (server stream) or "session" (both)."""
    context: Any
    metadata: dict[str, str]
    correlation_id: str = ""
    principal: Principal | None = None
    code: str = "OK"

    @property
    def streaming(self) -> bool:
        return self.kind != "unary"


Proceed = Callable[[], Awaitable[Any]]


class Layer(Protocol):
    """Does something around the rest of the call."""

    async def __call__(self, call: Call, proceed: Proceed) -> Any: ...


_current: ContextVar[Call] = ContextVar("luthier_call")


def current_tenant() -> str:
    """The tenant of the call being handled."""
    principal = _current.get().principal
    assert principal is not None, "the method is not authenticated"
    return principal.tenant


# --- layers ----------------------------------------------------------------------------------------------------------


async def correlation(call: Call, proceed: Proceed) -> Any:
    """Take the caller's id or make one; it goes back in the trailers and into every log line."""
    given = call.metadata.get(CORRELATION_KEY, "")
    call.correlation_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
    call.context.set_trailing_metadata(((CORRELATION_KEY, call.correlation_id),))
    return await proceed()


@dataclass
class AccessLog:
    """One line per call, and the metrics hook."""

    observer: CallObserver | None = None

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        started = time.monotonic()
        try:
            return await proceed()
        except asyncio.CancelledError:
            call.code = "CANCELLED"
            raise
        finally:
            seconds = time.monotonic() - started
            if self.observer is not None:
                self.observer(call.method, call.code, seconds, call.streaming)
            if _access.isEnabledFor(logging.INFO):
                tenant = call.principal.tenant if call.principal is not None else "-"
                _access.info("%s %s %.1f ms tenant=%s id=%s", call.method, call.code, seconds * 1000, tenant, call.correlation_id)


@dataclass(eq=False)
class Drain:
    """Ends streams when the server goes away, so that clients reconnect elsewhere or later."""

    started: bool = False
    streams: set[asyncio.Task[Any]] = field(default_factory=set)

    def start(self) -> None:
        """From now on open and new streams end with UNAVAILABLE (DRAINING)."""
        self.started = True
        for task in tuple(self.streams):
            task.cancel()

    def error(self) -> Unavailable:
        return Unavailable("the controller is shutting down", fix="connect again; nothing is lost", retry_seconds=1.0)


@dataclass
class ErrorMapping:
    """Errors to statuses. Bad input never gets a traceback; a bug gets a correlation id, and its traceback stays in the log."""

    drain: Drain

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        task = asyncio.current_task()
        assert task is not None
        endless = call.kind in ("download", "session")
        try:
            if endless:
                if self.drain.started:
                    raise self.drain.error()
                self.drain.streams.add(task)
            return await proceed()
        except asyncio.CancelledError:
            # Our own cancellation becomes an answer; the caller's propagates, because grpcio leaks when it is swallowed.
            if not (endless and self.drain.started) or call.context.cancelled():
                raise
            task.uncancel()
            error: LuthierError = self.drain.error()
        except LuthierError as raised:
            error = raised
        except grpc.aio.AbortError:
            call.code = str(getattr(call.context.code(), "name", "UNKNOWN"))
            raise
        except Exception:  # noqa: BLE001  a bug of ours is the caller's INTERNAL, whatever it is
            _log.exception("bug in %s (correlation id %s)", call.method, call.correlation_id)
            error = LuthierError(
                "internal error", fix=f"report it with the correlation id {call.correlation_id}; the server's log has the details"
            )
        finally:
            self.drain.streams.discard(task)
        internal = error.code == "INTERNAL"
        status = to_status(error, correlation_id=call.correlation_id if internal else "")
        call.code = error.code
        trailers = ((CORRELATION_KEY, call.correlation_id), (DETAILS_KEY, status.SerializeToString()))
        return await call.context.abort(code_of(error), status.message, trailers)


@dataclass
class Authentication:
    """`authorization: Bearer <token>`. NodeService has tokens of its own, per attempt."""

    authenticator: Authenticator
    exempt: tuple[str, ...] = ("/luthier.v1.NodeService/",)

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.method.startswith(self.exempt):
            return await proceed()
        header = call.metadata.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if not header or scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated(
                "the call carries no token",
                fix="send the metadata `authorization: Bearer TOKEN`; the CLI finds the token of `luthier up` in its state directory",
            )
        call.principal = self.authenticator.authenticate(token.strip())
        if call.principal is None:
            raise Unauthenticated(
                "the token is not known here",
                fix="is this the controller that the token belongs to? `luthier up` writes a new one into its state directory",
            )
        return await proceed()


@dataclass
class DeadlineCap:
    """Unary calls end after 30 s at the latest, and are not begun when their deadline has passed."""

    seconds: float

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.streaming:
            return await proceed()
        remaining = call.context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded("the deadline of the call has passed", fix="give a longer timeout")
        deadline = asyncio.timeout(self.seconds)
        try:
            async with deadline:
                return await proceed()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"the call took longer than {self.seconds:g} s", fix="try again; the server is busy") from None


def standard_layers(authenticator: Authenticator, drain: Drain, observer: CallObserver | None = None) -> tuple[Layer, ...]:
    """The layers of every Luthier server."""
    return correlation, AccessLog(observer), ErrorMapping(drain), Authentication(authenticator), DeadlineCap(UNARY_SECONDS)


# --- the one gRPC interceptor ----------------------------------------------------------------------------------------


class Pipeline(grpc.aio.ServerInterceptor):  # type: ignore[misc, name-defined, unused-ignore]
    """Runs the layers around every handler of `luthier.v1`; health and reflection stay open."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        method: str = details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is None or not method.startswith("/luthier.v1."):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        options = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method, "session", handler.stream_stream), **options)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._single(method, "upload", handler.stream_unary), **options)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, "download", handler.unary_stream), **options)
        return grpc.unary_unary_rpc_method_handler(self._single(method, "unary", handler.unary_unary), **options)

    def _single(self, method: str, kind: str, inner: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        async def behaviour(request: Any, context: Any) -> Any:
            return await self._run(_call(method, kind, context), lambda: inner(request, context))

        return behaviour

    def _streaming(self, method: str, kind: str, inner: Callable[[Any, Any], Any]) -> Any:
        async def write_all(request: Any, context: Any) -> None:
            answer = inner(request, context)
            if not hasattr(answer, "__aiter__"):
                await answer  # a handler that writes by itself
                return
            responses: AsyncIterator[Any] = answer
            try:
                async for response in responses:
                    await context.write(response)
            finally:
                close = getattr(responses, "aclose", None)
                if close is not None:
                    await close()

        async def behaviour(request: Any, context: Any) -> None:
            await self._run(_call(method, kind, context), lambda: write_all(request, context))

        return behaviour

    async def _run(self, call: Call, handler: Proceed) -> Any:
        token = _current.set(call)
        try:
            return await self._layer(0, call, handler)
        finally:
            _current.reset(token)

    async def _layer(self, number: int, call: Call, handler: Proceed) -> Any:
        if number == len(self._layers):
            return await handler()
        return await self._layers[number](call, lambda: self._layer(number + 1, call, handler))


def _call(method: str, kind: str, context: Any) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Call(method=method, kind=kind, context=context, metadata=metadata)
