"""Errors as statuses."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import error_details_pb2

from luthier import errors
from luthier.controller.service.status import DOMAIN, to_status
from luthier.errors import FieldViolation, LuthierError
from luthier.v1 import errors_pb2

KINDS: tuple[Any, ...] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.ResourceInfo,
)


def details(error: LuthierError, **options: str) -> list[Any]:
    """The unpacked details of an error."""
    found = []
    for packed in to_status(error, **options).details:
        (kind,) = [k for k in KINDS if packed.Is(k.DESCRIPTOR)]
        unpacked = kind()
        packed.Unpack(unpacked)
        found.append(unpacked)
    return found


ALL = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, LuthierError) and cls is not errors.ExecutorError]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_is_a_status(cls: type[LuthierError]) -> None:
    """Code and reason exist, ErrorInfo comes first with the fix, and no detail comes twice."""
    found = details(cls("it broke", fix="mend it", metadata={"job": "x"}))
    info = found[0]

    assert (cls.reason, DOMAIN, {"job": "x", "fix": "mend it"}) == (info.reason, info.domain, dict(info.metadata))
    assert f"ERROR_REASON_{cls.reason}" in errors_pb2.ErrorReason.keys()  # noqa: SIM118  an enum wrapper, no mapping
    assert len({type(d) for d in found}) == len(found)
    assert "it broke" == to_status(cls("it broke")).message


def test_retry_and_resource_details() -> None:
    """UNAVAILABLE and RESOURCE_EXHAUSTED say when to try again, NOT_FOUND what is missing."""
    retry = details(errors.Unavailable("x", retry_seconds=1.25))[1].retry_delay
    resource = details(errors.JobNotFound("x", metadata={"job": "base"}))[1]

    assert (1, 250_000_000) == (retry.seconds, retry.nanos)
    assert ("luthier.dev/Job", "base") == (resource.resource_type, resource.resource_name)


def test_violations_carry_path_reason_and_fix() -> None:
    """Each field with its description; how to fix it as localised message."""
    error = errors.SpecError("bad", violations=[FieldViolation("spec.training.seed", "is negative", "give 0 or more")])
    (violation,) = details(error)[1].field_violations

    assert ("spec.training.seed", "is negative", "INVALID_FIELD", "give 0 or more") == (
        violation.field,
        violation.description,
        violation.reason,
        violation.localized_message.message,
    )


def test_statuses_are_small_and_printable() -> None:
    """Endless and unprintable texts are cut, so that trailers never break the call; the correlation id stays."""
    violations = [FieldViolation(f"f{n}", "x\n\0" * 500, "y" * 2000) for n in range(500)]
    error = errors.SpecError("m\0" * 5000, violations=violations, metadata={"big": "z" * 9999}, fix="f" * 9999)
    status = to_status(error, correlation_id="id-1")
    info, bad = details(error, correlation_id="id-1")

    assert status.ByteSize() < 8000
    assert status.message.isprintable()
    assert "id-1" == info.metadata["correlation_id"]
    assert 500 == len(bad.field_violations) + int(info.metadata["omitted_violations"])
