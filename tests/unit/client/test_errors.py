"""Statuses as exceptions."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from luthier import errors
from luthier.client.errors import BY_REASON, class_name, from_status
from luthier.v1 import errors_pb2


def trailer(*details: object) -> list[tuple[str, str | bytes]]:
    """Trailing metadata with details."""
    status = status_pb2.Status()
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)  # type: ignore[arg-type]
        status.details.append(packed)
    return [("grpc-status-details-bin", status.SerializeToString())]


def test_every_reason_has_its_class() -> None:
    """One class per entry of the enum, below the class of its code, importable by its name."""
    reasons = [name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys() if not name.endswith("UNSPECIFIED")]  # noqa: SIM118

    assert sorted(reasons) == sorted(BY_REASON)
    for reason in reasons:
        cls = BY_REASON[reason]
        assert (reason, class_name(reason)) == (cls.reason, cls.__name__)
        assert issubclass(cls, errors.LuthierError)

    from luthier.client.errors import JobIdTaken, JobNotFound

    assert (errors.Conflict, errors.JobNotFound) == (JobIdTaken.__mro__[1], JobNotFound.__mro__[1])


def test_details_become_attributes() -> None:
    """Reason, metadata, fix and violations arrive."""
    info = error_details_pb2.ErrorInfo(reason="UNMET_NEED", domain="luthier.dev", metadata={"need": "zero", "fix": "use 0"})
    request = error_details_pb2.BadRequest()
    violation = request.field_violations.add(field="spec.training.zero_stage", description="no")
    violation.localized_message.message = "use 0"

    error = from_status(grpc.StatusCode.INVALID_ARGUMENT, "text", trailer(info, request))

    assert isinstance(error, errors.SpecError)
    assert ("UNMET_NEED", "use 0", {"need": "zero"}) == (error.reason, error.fix, error.metadata)
    assert (errors.FieldViolation("spec.training.zero_stage", "no", "use 0"),) == error.violations


def test_retry_delay_arrives() -> None:
    """RetryInfo becomes `retry_seconds`."""
    info = error_details_pb2.ErrorInfo(reason="DRAINING", domain="luthier.dev")

    error = from_status(
        grpc.StatusCode.UNAVAILABLE, "bye", trailer(info, error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)))
    )

    assert isinstance(error, errors.Unavailable)
    assert ("DRAINING", 2.5) == (error.reason, error.retry_seconds)


@pytest.mark.parametrize(
    ("code", "cls", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable, "UNREACHABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.PERMISSION_DENIED, errors.Denied, "PERMISSION_DENIED"),
        (grpc.StatusCode.UNKNOWN, errors.LuthierError, "INTERNAL"),
    ],
)
def test_statuses_without_details(code: grpc.StatusCode, cls: type[errors.LuthierError], reason: str) -> None:
    """A status that no Luthier server made is mapped by its code."""
    error = from_status(code, "connection refused", [("x", "y")], address="127.0.0.1:1")

    assert (cls, reason) == (type(error), error.reason)


def test_damaged_details_do_not_hide_the_status() -> None:
    """Bytes that are no Status leave code and text."""
    error = from_status(grpc.StatusCode.NOT_FOUND, "no such thing", [("grpc-status-details-bin", b"\xff\xff")])

    assert (errors.NotFound, "no such thing") == (type(error), error.message)


def test_an_unknown_reason_falls_back_to_its_code() -> None:
    """A newer server's reason is still caught by the family."""
    error = from_status(grpc.StatusCode.FAILED_PRECONDITION, "x", trailer(error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE")))

    assert isinstance(error, errors.IllegalState)
