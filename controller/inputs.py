"""Addresses of a specification -> local paths. Everything here reads files: call it from a worker thread.

* `upload://<sha256>/<name>` and `upload://<sha256>/` (a directory) lie in the content store.
* `<root>:<relative/path>` lies below a configured root. Text is never trusted: the file is opened, and its descriptor tells where it
  really is; what is not below the root is refused, whatever links there are.
* `job://NAME[/ARTIFACT]` was pinned to (uid, digest, path) at admission.

The controller never fetches: other schemes are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.controller.config import ControllerConfig
from luthier.controller.contents import ContentStore, is_digest
from luthier.errors import FieldViolation, LuthierError, SpecError
from luthier.spec.models import JobSpec

__all__ = ["Inputs", "addresses", "job_address"]

_JOB = re.compile(r"job://([a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)(?:/([A-Za-z0-9][-A-Za-z0-9._]{0,127}))?")
_UPLOAD = re.compile(r"upload://([^/]*)(?:/(.*))?", re.DOTALL)
_ROOTED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):(?!//)(.*)", re.DOTALL)


def addresses(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Every address of a specification with its field path. The output's is not among them: nothing lies there yet."""
    if spec.model is not None:
        yield "spec.model.uri", spec.model.uri
        if spec.model.tokenizer_uri:
            yield "spec.model.tokenizer_uri", spec.model.tokenizer_uri
        for role, uri in spec.model.roles.items():
            yield f"spec.model.roles.{role}", uri
    for part in ("sources", "validation"):
        for index, source in enumerate(getattr(spec.data, part)):
            yield f"spec.data.{part}[{index}].uri", source.uri


def job_address(uri: str) -> tuple[str, str] | None:
    """(job name, artifact or "" for the result) of a `job://` address; None for other addresses. Raises `SpecError`."""
    if not uri.startswith("job://"):
        return None
    match = _JOB.fullmatch(uri)
    if match is None:
        raise SpecError(f"{uri!r} does not name a job", fix="write job://NAME or job://NAME/ARTIFACT")
    return match[1], match[2] or ""


@dataclass(frozen=True)
class Inputs:
    """Finds what addresses mean on this machine."""

    roots: Mapping[str, Path]
    contents: ContentStore
    store_root: Path

    @classmethod
    def of(cls, config: ControllerConfig, contents: ContentStore) -> Inputs:
        return cls(dict(config.roots), contents, config.store_root)

    def check(self, spec: JobSpec) -> list[FieldViolation]:
        """What can be known at submit: every address of another kind than `job://` exists. All violations together."""
        found = []
        for field, uri in addresses(spec):
            try:
                if job_address(uri) is None:
                    self.locate(uri)
            except LuthierError as error:
                found.append(FieldViolation(field, error.message, error.fix))
        if spec.output.uri:
            try:
                self.output(spec.output.uri)
            except LuthierError as error:
                found.append(FieldViolation("spec.output.uri", error.message, error.fix))
        return found

    def resolve(self, spec: JobSpec, tenant: str, dependencies: tuple[Mapping[str, str], ...]) -> dict[str, str]:
        """Every address -> local path; `dependencies` are pinned. Raises `SpecError` naming the field."""
        paths: dict[str, str] = {}
        for field, uri in addresses(spec):
            try:
                job = job_address(uri)
                paths[uri] = str(self.locate(uri) if job is None else self._result(uri, job, tenant, dependencies))
            except LuthierError as error:
                raise SpecError(f"{field}: {error.message}", fix=error.fix, reason=error.reason) from error
        if spec.output.uri:
            paths[spec.output.uri] = str(self.output(spec.output.uri))
        return paths

    def locate(self, uri: str) -> Path:
        """The local path of an `upload://` or `root:` address. Raises `SpecError`."""
        upload = _UPLOAD.fullmatch(uri)
        if upload is not None:
            return self._upload(uri, upload[1], upload[2])
        rooted = _ROOTED.fullmatch(uri)
        if rooted is not None:
            return self._below(rooted[1], rooted[2], uri)
        if "://" in uri:
            scheme = uri.partition("://")[0]
            raise SpecError(
                f"addresses of the kind {scheme}:// are not allowed on this controller",
                reason="FORBIDDEN_URI",
                fix="download it yourself and give the local path, or ask the operator",
            )
        raise SpecError(
            f"{uri!r} is not an address",
            reason="FORBIDDEN_URI",
            fix=f"give a local path to the command line (it is uploaded), {self._root_hint()} or job://NAME",
        )

    def output(self, uri: str) -> Path:
        """Directory that an `output.uri` names: its nearest existing parent must lie below the root. Raises `SpecError`."""
        rooted = _ROOTED.fullmatch(uri)
        if rooted is None:
            raise SpecError(f"{uri!r} is not below a root of this controller", reason="FORBIDDEN_URI", fix=f"use {self._root_hint()}")
        parts = _parts(rooted[2], uri)
        root = self._root(rooted[1], uri)
        there = 0
        while there < len(parts) and os.path.lexists(root.joinpath(*parts[: there + 1])):
            there += 1
        base = self._below(rooted[1], "/".join(parts[:there]), uri) if there else root.resolve()
        return base.joinpath(*parts[there:])

    def _root_hint(self) -> str:
        names = ", ".join(f"{name}:PATH" for name in sorted(self.roots))
        return f"one of {names}" if names else "an upload (this controller has no roots)"

    def _root(self, name: str, uri: str) -> Path:
        root = self.roots.get(name)
        if root is None:
            raise SpecError(f"{uri!r} names no root of this controller", reason="FORBIDDEN_URI", fix=f"use {self._root_hint()}")
        return root

    def _upload(self, uri: str, digest: str, name: str | None) -> Path:
        if not is_digest(digest):
            raise SpecError(f"{uri!r} has no SHA-256 digest", fix="write upload://<64 hex digits>/<file name>")
        if name is None or (name and _parts(name, uri) != [name]):
            raise SpecError(
                f"{uri!r} names neither a file nor a directory",
                fix="write upload://<digest>/<file name>, or upload://<digest>/ for a directory",
            )
        tree = not name
        if missing := self.contents.missing(digest, tree=tree):
            raise SpecError(
                f"content {missing[0]} was not uploaded" + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
                reason="CONTENT_MISSING",
                fix="submit with the command line or the SDK, which upload what is missing",
            )
        return self.contents.materialise_tree(digest) if tree else self.contents.path(digest)

    def _below(self, name: str, relative: str, uri: str) -> Path:
        """The real path of `relative` below a root, told by the descriptor of what was opened."""
        root = self._root(name, uri)
        parts = _parts(relative, uri)
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.open("/".join(parts) or ".", os.O_PATH | os.O_CLOEXEC, dir_fd=top)
            real, real_root = _place(found), _place(top)
            os.close(found)
        except (FileNotFoundError, NotADirectoryError):
            raise SpecError(f"{uri} does not exist ({root.joinpath(*parts)})", fix="check the path; it is relative to the root") from None
        except OSError as error:
            raise SpecError(f"{uri} cannot be opened: {error.strerror}", fix="check the rights of the path") from error
        finally:
            os.close(top)
        if real != real_root and real_root not in real.parents:
            raise SpecError(f"{uri} leads out of the root {name}", reason="FORBIDDEN_URI", fix="copy the file below the root, or upload it")
        if not os.access(real, os.R_OK):
            raise SpecError(f"{uri} cannot be read", fix=f"give the controller's user the right to read {real}")
        return real

    def _result(self, uri: str, job: tuple[str, str], tenant: str, dependencies: tuple[Mapping[str, str], ...]) -> Path:
        name, artifact = job
        for pinned in dependencies:
            if pinned.get("job", "").removeprefix("jobs/") == name and pinned.get("artifact", "") == artifact and pinned.get("path"):
                path = self.store_root / tenant / str(pinned["uid"]) / str(pinned["path"])
                if not path.exists():
                    raise SpecError(f"the result of job {name} is gone from {path}", fix=f"run {name} again, then retry this job")
                return path
        raise SpecError(f"{uri} was not pinned", fix="retry the job")


def _place(descriptor: int) -> Path:
    """Where an opened file really is."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def _parts(relative: str, uri: str) -> list[str]:
    """Components of a relative path, or `SpecError` for anything that could mean another place."""
    wrong = ""
    if relative.startswith("/"):
        wrong = "is absolute"
    elif any(ord(c) < 32 or ord(c) == 127 for c in relative):
        wrong = "contains a control character"
    elif "\\" in relative:
        wrong = "contains a backslash"
    elif re.search(r"%[0-9A-Fa-f]{2}", relative):
        wrong = "is percent-encoded"
    parts = [p for p in relative.split("/") if p not in ("", ".")]
    if ".." in parts:
        wrong = "contains .."
    if wrong:
        raise SpecError(f"the path of {uri!r} {wrong}", reason="FORBIDDEN_URI", fix="give a plain path relative to the root")
    return parts
