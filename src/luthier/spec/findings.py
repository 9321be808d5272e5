"""Collects what is wrong with a specification, so that all violations come back together."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.errors import FieldViolation, SpecError
from luthier.spec.convert import invalid

__all__ = ["Findings"]


@dataclass
class Findings:
    """Violations with the reason of each."""

    violations: list[FieldViolation] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, description: str, fix: str = "", *, reason: str = "INVALID_FIELD", **metadata: str) -> None:
        self.violations.append(FieldViolation(path, description, fix))
        self.reasons.append(reason)
        for key, value in metadata.items():
            self.metadata.setdefault(key, value)

    def unmet(self, need: str, path: str, description: str, fix: str) -> None:
        self.add(path, description, fix, reason="UNMET_NEED", need=need)

    def take(self, error: SpecError, path: str) -> None:
        """The violations of another check, at `path` where it names none."""
        for violation in error.violations or (FieldViolation(path, error.message, error.fix),):
            self.add(violation.field or path, violation.description, violation.fix, reason=error.reason, **error.metadata)

    def raise_if_any(self) -> None:
        if not self.violations:
            return
        # One machine word per answer: a mixture is plainly a wrong specification.
        same = len(set(self.reasons)) == 1
        raise invalid(self.violations, reason=self.reasons[0] if same else "INVALID_FIELD", metadata=self.metadata)
