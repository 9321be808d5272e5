"""One hierarchy of errors, each with its gRPC code (a plain string, so that no grpc is imported) and its reason.

Every error says what, where, why and how to fix it. Reasons are the entries of `luthier.v1.ErrorReason` without their prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field: its proto path (`spec.training.batch_size`), what is wrong, and how to fix it."""

    field: str
    description: str
    fix: str = ""


class LuthierError(Exception):
    """Root of all errors that a user may see.

    `metadata` holds every variable of the message, so that no client parses English.
    """

    code: str = "INTERNAL"
    reason: str = "INTERNAL"

    def __init__(
        self, message: str, *, reason: str = "", fix: str = "", where: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        """`reason` replaces the class's own where one class stands for several reasons."""
        super().__init__(message)
        if reason:
            self.reason = reason
        self.message = message
        self.fix = fix
        self.where = where
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} Fix: {self.fix}" if self.fix else text


class SpecError(LuthierError):
    """The request or a specification is wrong. All violations come back together."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        reason: str = "",
        fix: str = "",
        where: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, fix=fix, where=where, metadata=metadata)
        self.violations = tuple(violations)


class NotFound(LuthierError):
    """There is no such thing, or it belongs to another tenant."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class JobNotFound(NotFound):
    """There is no such job in the tenant."""

    reason = "JOB_NOT_FOUND"


class Conflict(LuthierError):
    """The request contradicts what is stored. `reason` tells JOB_ID_TAKEN from REQUEST_ID_REUSED."""

    code = "ALREADY_EXISTS"
    reason = "JOB_ID_TAKEN"


class StaleEtag(LuthierError):
    """The record changed since the caller read it."""

    code = "ABORTED"
    reason = "ETAG_MISMATCH"


class IllegalState(LuthierError):
    """The verb is not possible in the job's state."""

    code = "FAILED_PRECONDITION"
    reason = "ILLEGAL_STATE"


class Retryable(LuthierError):
    """The same call may succeed after `retry_seconds`."""

    def __init__(
        self, message: str, *, reason: str = "", retry_seconds: float = 1.0, fix: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, reason=reason, fix=fix, metadata=metadata)
        self.retry_seconds = retry_seconds


class Exhausted(Retryable):
    """A quota, rate or buffer limit is reached; try again after `retry_seconds`."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RATE_LIMITED"


class TokenExpired(LuthierError):
    """The resume token is older than the retained window: list again."""

    code = "OUT_OF_RANGE"
    reason = "TOKEN_EXPIRED"


class Unauthenticated(LuthierError):
    """No token, or a wrong one."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class Denied(LuthierError):
    """A valid token without the right."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class Unavailable(Retryable):
    """The server cannot answer now; a retry is safe after `retry_seconds`."""

    code = "UNAVAILABLE"
    reason = "DRAINING"


class DeadlineExceeded(LuthierError):
    """The call's deadline has passed."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class NotImplementedYet(LuthierError):
    """A later release fills this call."""

    code = "UNIMPLEMENTED"
    reason = "NOT_IMPLEMENTED"


class ExecutorError(LuthierError):
    """An executor could not do what was asked. `retry` says whether trying again can help."""

    def __init__(self, message: str, *, retry: bool, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.retry = retry


class JobEnd(LuthierError):
    """Raised on a trainer node to end the plan with one of the protocol's exit codes."""

    exit_code = 70


class ConfigurationError(JobEnd):
    """The specification cannot be run here (exit 64)."""

    exit_code = 64


class DataError(JobEnd):
    """The data or the model cannot be used (exit 65)."""

    exit_code = 65


class MethodError(JobEnd):
    """The method broke its contract (exit 70)."""

    exit_code = 70


class PlanDiverged(MethodError):
    """The plan yields another phase than the journal says: the plugin or its inputs changed."""


class OutOfMemory(JobEnd):
    """Host or device memory is exhausted (exit 71)."""

    exit_code = 71


class NonFinite(JobEnd):
    """A loss or gradient is not finite and the policy says stop (exit 73)."""

    exit_code = 73


class StorageError(JobEnd):
    """The store refused or corrupted something (exit 74)."""

    exit_code = 74
