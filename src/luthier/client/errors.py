"""Statuses of the server as exceptions: one class per reason of `luthier.v1.ErrorReason`, each below its class of `luthier.errors`.

`from luthier.client.errors import JobIdTaken` works for every reason (`JOB_ID_TAKEN` -> `JobIdTaken`); catch the class of
`luthier.errors` (`Conflict`) to catch its whole family.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from luthier import errors
from luthier.errors import FieldViolation, LuthierError
from luthier.v1 import errors_pb2

__all__ = ["BY_REASON", "class_name", "from_status"]

_BY_CODE: dict[str, type[LuthierError]] = {
    "INVALID_ARGUMENT": errors.SpecError,
    "NOT_FOUND": errors.NotFound,
    "ALREADY_EXISTS": errors.Conflict,
    "ABORTED": errors.StaleEtag,
    "FAILED_PRECONDITION": errors.IllegalState,
    "RESOURCE_EXHAUSTED": errors.Exhausted,
    "OUT_OF_RANGE": errors.TokenExpired,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.Denied,
    "UNAVAILABLE": errors.Unavailable,
    "UNIMPLEMENTED": errors.NotImplementedYet,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "INTERNAL": LuthierError,
}

_CODES = {
    "INVALID_FIELD": "INVALID_ARGUMENT",
    "INVALID_FILTER": "INVALID_ARGUMENT",
    "INVALID_PAGE_TOKEN": "INVALID_ARGUMENT",
    "UNKNOWN_METHOD": "INVALID_ARGUMENT",
    "UNMET_NEED": "INVALID_ARGUMENT",
    "JOB_NOT_FOUND": "NOT_FOUND",
    "NOT_FOUND": "NOT_FOUND",
    "JOB_ID_TAKEN": "ALREADY_EXISTS",
    "REQUEST_ID_REUSED": "ALREADY_EXISTS",
    "ETAG_MISMATCH": "ABORTED",
    "JOB_ACTIVE": "FAILED_PRECONDITION",
    "ILLEGAL_STATE": "FAILED_PRECONDITION",
    "IMMUTABLE_FIELD": "FAILED_PRECONDITION",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "SLOW_READER": "RESOURCE_EXHAUSTED",
    "TOKEN_EXPIRED": "OUT_OF_RANGE",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    "DRAINING": "UNAVAILABLE",
    "STORE_BUSY": "UNAVAILABLE",
    "NOT_IMPLEMENTED": "UNIMPLEMENTED",
    "INTERNAL": "INTERNAL",
    "FORBIDDEN_URI": "INVALID_ARGUMENT",
    "UNKNOWN_DEPENDENCY": "INVALID_ARGUMENT",
    "DIGEST_MISMATCH": "INVALID_ARGUMENT",
    "CONTENT_MISSING": "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
}
"""Code of every reason, as documented in errors.proto."""


def class_name(reason: str) -> str:
    """`JOB_ID_TAKEN` -> `JobIdTaken`."""
    return "".join(word.capitalize() for word in reason.split("_"))


def _reasons() -> list[str]:
    values: Any = errors_pb2.ErrorReason.DESCRIPTOR.values
    return [value.name.removeprefix("ERROR_REASON_") for value in values if value.number]


def _class(reason: str) -> type[LuthierError]:
    base: type[LuthierError] = _BY_CODE[_CODES[reason]]
    if reason in ("JOB_NOT_FOUND",):
        base = errors.JobNotFound
    members = {"reason": reason, "code": _CODES[reason], "__doc__": f"The server answered {reason}.", "__module__": __name__}
    return type(class_name(reason), (base,), members)


BY_REASON: dict[str, type[LuthierError]] = {reason: _class(reason) for reason in _reasons()}
"""Reason -> class."""

_BY_NAME = {cls.__name__: cls for cls in BY_REASON.values()}


def __getattr__(name: str) -> type[LuthierError]:
    if name in _BY_NAME:
        return _BY_NAME[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _details(metadata: Iterable[tuple[str, str | bytes]] | None) -> status_pb2.Status:
    status = status_pb2.Status()
    for key, value in metadata or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:  # a proxy's invention: the code and the text still tell the story
                return status_pb2.Status()
    return status


def from_status(
    code: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, str | bytes]] | None = None, *, address: str = ""
) -> LuthierError:
    """The exception for a status and its details."""
    reason, fields, fix, retry_seconds = "", {}, "", 1.0
    violations: list[FieldViolation] = []
    for packed in _details(metadata).details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            reason, fields = info.reason, dict(info.metadata)
            fix = fields.pop("fix", "")
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            packed.Unpack(request)
            violations = [FieldViolation(v.field, v.description, v.localized_message.message) for v in request.field_violations]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    if not reason and code == grpc.StatusCode.UNAVAILABLE:
        reached = f"no controller answers at {address}" if address else "the controller cannot be reached"
        return errors.Unavailable(f"{reached}: {message}", reason="UNREACHABLE", fix="start it with `luthier up`, or check the address")
    if not reason and code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded("the controller did not answer in time", fix="try again; give a longer timeout if it is busy")
    cls = BY_REASON.get(reason) or _BY_CODE.get(code.name, LuthierError)
    arguments: dict[str, Any] = {"fix": fix, "metadata": fields}
    if issubclass(cls, errors.SpecError):
        arguments["violations"] = violations
    if issubclass(cls, (errors.Unavailable, errors.Exhausted)):
        arguments["retry_seconds"] = retry_seconds
    return cls(message or code.name, **arguments)
