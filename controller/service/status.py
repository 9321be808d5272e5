"""Errors as gRPC statuses: code, text, and at most one google.rpc detail of each type.

The text is what is wrong and where; how to fix it travels as metadata `fix` of ErrorInfo and as each violation's localised message, so
that no client parses English.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from luthier.errors import Exhausted, LuthierError, NotFound, SpecError, Unavailable

__all__ = ["DETAILS_KEY", "DOMAIN", "code_of", "to_status"]

DOMAIN = "luthier.dev"
DETAILS_KEY = "grpc-status-details-bin"
# Trailers travel as HTTP/2 headers, of which peers accept 8 KiB by default; details grow by a third in base64.
_MOST_DETAIL_BYTES = 4096
_LONGEST_TEXT = 1024
_LONGEST_VALUE = 512


def code_of(error: LuthierError) -> grpc.StatusCode:
    """The gRPC code that an error class names."""
    return grpc.StatusCode[error.code]


def to_status(error: LuthierError, *, correlation_id: str = "") -> status_pb2.Status:
    """The whole status of an error, small enough for trailers."""
    metadata = {key: _cut(value, _LONGEST_VALUE) for key, value in error.metadata.items()}
    if error.fix:
        metadata["fix"] = _cut(error.fix, _LONGEST_VALUE)
    if correlation_id:
        metadata["correlation_id"] = correlation_id
    text = _cut(f"{error.where}: {error.message}" if error.where else error.message, _LONGEST_TEXT)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details: list[Message] = [info]
    if isinstance(error, SpecError) and error.violations:
        details.append(_bad_request(error, info))
    if isinstance(error, (Unavailable, Exhausted)):
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_seconds)))
    if isinstance(error, NotFound):
        details.append(_resource_info(error, text))
    code: int = code_of(error).value[0]
    return status_pb2.Status(code=code, message=text, details=_pack(details))


def _bad_request(error: SpecError, info: error_details_pb2.ErrorInfo) -> error_details_pb2.BadRequest:
    """All violations that fit; how many did not is told in the metadata."""
    request = error_details_pb2.BadRequest()
    for number, violation in enumerate(error.violations):
        entry = request.field_violations.add(
            field=_cut(violation.field, _LONGEST_VALUE), description=_cut(violation.description, _LONGEST_VALUE), reason=error.reason
        )
        if violation.fix:
            entry.localized_message.locale = "en"
            entry.localized_message.message = _cut(violation.fix, _LONGEST_VALUE)
        if number and request.ByteSize() + info.ByteSize() > _MOST_DETAIL_BYTES:
            del request.field_violations[-1]
            info.metadata["omitted_violations"] = str(len(error.violations) - number)
            break
    return request


def _resource_info(error: NotFound, text: str) -> error_details_pb2.ResourceInfo:
    kind = next((key for key in ("job", "artifact", "method", "queue", "digest") if key in error.metadata), "resource")
    name = error.metadata.get(kind, error.metadata.get("uid", ""))
    return error_details_pb2.ResourceInfo(
        resource_type=f"{DOMAIN}/{kind.capitalize()}", resource_name=_cut(name, _LONGEST_VALUE), description=text
    )


def _pack(details: Sequence[Message]) -> list[AnyMessage]:
    packed = []
    for detail in details:
        wrapped = AnyMessage()
        wrapped.Pack(detail)
        packed.append(wrapped)
    return packed


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 10**9))


def _cut(text: str, longest: int) -> str:
    """Trailers carry no control characters and no endless text."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
