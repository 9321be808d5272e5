"""Addresses of models and data: where a job's inputs are and where its result goes.

Four forms, checked here by their text alone; who resolves them checks again at the time of use, by file descriptor:

* `upload://<sha256>/<file name>`: an uploaded file; `upload://<sha256>/`: an uploaded directory
* `ROOT:relative/path`: below a root that the operator configured under the name ROOT
* `job://NAME`: the result of a job of the same tenant; `job://NAME/ARTIFACT`: one of its artifacts
* `hf://org/name@revision`: a public repository, where the operator allows it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from luthier.errors import FieldViolation, SpecError
from luthier.spec.violations import nearest

__all__ = ["JOB_ID", "Address", "is_local_path", "parse_address"]

JOB_ID = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROOT = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HF = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)

_SCHEMES = ("hf", "job", "upload")


@dataclass(frozen=True)
class Address:
    """A parsed address. `str()` gives the canonical text."""

    kind: Literal["upload", "root", "job", "hf"]
    name: str
    """Digest, root name, job id, or `org/name`."""
    path: str = ""
    """File name of an upload ("" for a directory), path below a root, artifact of a job, or revision."""

    def __str__(self) -> str:
        if self.kind == "root":
            return f"{self.name}:{self.path}"
        if self.kind == "upload":
            return f"upload://{self.name}/{self.path}"
        if self.kind == "hf":
            return f"hf://{self.name}@{self.path}" if self.path else f"hf://{self.name}"
        return f"job://{self.name}/{self.path}" if self.path else f"job://{self.name}"


def _refuse(field: str, description: str, fix: str, *, forbidden: bool = False) -> SpecError:
    return SpecError(
        f"{field}: {description}" if field else description,
        reason="FORBIDDEN_URI" if forbidden else "INVALID_FIELD",
        fix=fix,
        violations=[FieldViolation(field, description, fix)],
    )


def is_local_path(text: str) -> bool:
    """True for what is neither `scheme://…` nor `root:path`: a path that the CLI or the SDK uploads."""
    if _SCHEME.fullmatch(text):
        return False
    head, colon, _ = text.partition(":")
    return not (colon and _ROOT.fullmatch(head))


def _check_path(text: str, shown: str, field: str) -> str:
    """A relative path without tricks. What looks harmless after decoding is refused before it: nothing here decodes."""
    if "\\" in text or "\0" in text or "%" in text or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise _refuse(
            field,
            f"{shown!r} contains a backslash, a percent sign or a control character",
            "rename the file, or upload it by giving its local path to the CLI",
            forbidden=True,
        )
    parts = text.split("/")
    if text.startswith("/") or ".." in parts:
        raise _refuse(field, f"{shown!r} leaves its root", "give a path below the root, without '..' and leading '/'", forbidden=True)
    if len(text) > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise _refuse(field, f"{shown[:60]!r}… is too long", "use at most 1024 characters, and 255 bytes in a name")
    return "/".join(part for part in parts if part not in ("", "."))


def parse_address(text: str, field: str = "") -> Address:
    """Parse one address. Raises `SpecError` (INVALID_FIELD for a wrong form, FORBIDDEN_URI for what is not allowed anywhere)."""
    match = _SCHEME.fullmatch(text)
    if match is None:
        return _parse_root(text, field)
    scheme, rest = match.groups()
    if scheme == "upload":
        digest, _, name = rest.partition("/")
        if not _DIGEST.fullmatch(digest):
            raise _refuse(field, f"{text!r} does not name a SHA-256 digest", "write upload://<64 hex digits>/<file name>")
        if "/" in name or name in (".", ".."):
            raise _refuse(field, f"{text!r} names a path, not a file", "write upload://DIGEST/NAME", forbidden=True)
        return Address("upload", digest, _check_path(name, text, field))
    if scheme == "job":
        job, slash, artifact = rest.partition("/")
        if not JOB_ID.fullmatch(job):
            raise _refuse(field, f"{text!r} does not name a job", "write job://NAME; names match [a-z]([-a-z0-9]{0,61}[a-z0-9])?")
        if slash and not _ARTIFACT.fullmatch(artifact):
            raise _refuse(field, f"{text!r} does not name an artifact", "write job://NAME/ARTIFACT, or job://NAME for the result")
        return Address("job", job, artifact)
    if scheme == "hf":
        name, at, revision = rest.partition("@")
        if not _HF.fullmatch(name) or (at and not _REVISION.fullmatch(revision)) or ".." in revision.split("/"):
            raise _refuse(field, f"{text!r} does not name a repository", "write hf://org/name@revision")
        return Address("hf", name, revision)
    hint = nearest(scheme.lower(), _SCHEMES)
    fix = hint if hint.startswith("did") else "use upload://, job://, hf:// or ROOT:path; the CLI uploads local paths"
    raise _refuse(field, f"{text!r}: addresses with {scheme}:// are not allowed here", fix, forbidden=True)


def _parse_root(text: str, field: str) -> Address:
    root, colon, path = text.partition(":")
    if not colon or not _ROOT.fullmatch(root):
        if "\\" in text or "\0" in text:
            _check_path(text, text, field)
        raise _refuse(
            field,
            f"{text!r} is a local path, which the server cannot see",
            "submit with `luthier submit` or Client.jobs.submit, which upload it; or write ROOT:relative/path under a configured root",
        )
    clean = _check_path(path, text, field)
    if not clean:
        raise _refuse(field, f"{text!r} names no file below the root", "write ROOT:relative/path")
    return Address("root", root, clean)
