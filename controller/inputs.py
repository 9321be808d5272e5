"""Addresses of a specification -> local paths. Everything here reads files: call it from a worker thread.

* `upload://<sha256>/<name>` and `upload://<sha256>/` (a directory) lie in the content store.
* `<root>:<relative/path>` lies below a configured root. Text is never trusted: the file is opened, and its descriptor tells where it
  really is; what is not below the root is refused, whatever links there are.
* `job://NAME[/ARTIFACT]` was pinned to (uid, digest, path) at admission.

The controller never fetches: other schemes are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.controller.config import ControllerConfig
from luthier.controller.contents import ContentStore
from luthier.controller.service.submit import addresses
from luthier.errors import FieldViolation, LuthierError, SpecError
from luthier.spec.address import Address, parse_address
from luthier.spec.models import JobSpec

__all__ = ["Inputs"]


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
                address = parse_address(uri)
                if address.kind != "job":
                    self.locate(address)
            except LuthierError as error:
                found.append(FieldViolation(field, error.message, error.fix))
        if spec.output.uri:
            try:
                self.output(parse_address(spec.output.uri))
            except LuthierError as error:
                found.append(FieldViolation("spec.output.uri", error.message, error.fix))
        return found

    def resolve(self, spec: JobSpec, tenant: str, dependencies: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """Every address -> local path; `dependencies` are pinned. Raises `SpecError` naming the field."""
        paths: dict[str, str] = {}
        for field, uri in addresses(spec):
            try:
                address = parse_address(uri)
                paths[uri] = str(self._result(address, tenant, dependencies) if address.kind == "job" else self.locate(address))
            except LuthierError as error:
                raise SpecError(f"{field}: {error.message}", fix=error.fix, reason=error.reason) from error
        if spec.output.uri:
            paths[spec.output.uri] = str(self.output(parse_address(spec.output.uri)))
        return paths

    def locate(self, address: Address) -> Path:
        """The local path of an upload or of a path below a root. Raises `SpecError`."""
        if address.kind == "upload":
            return self._upload(address)
        if address.kind == "root":
            return self._below(address.name, address.path, address)
        raise SpecError(
            f"{address} cannot be fetched by this controller",
            reason="FORBIDDEN_URI",
            fix="download it yourself and give the local path to the command line",
        )

    def output(self, address: Address) -> Path:
        """Directory that `output.uri` names: its nearest existing parent must lie below the root. Raises `SpecError`."""
        if address.kind != "root":
            raise SpecError(f"{address} is not below a root of this controller", reason="FORBIDDEN_URI", fix=f"use {self._root_hint()}")
        parts = address.path.split("/")
        root = self._root(address)
        there = 0
        while there < len(parts) and os.path.lexists(root.joinpath(*parts[: there + 1])):
            there += 1
        base = self._below(address.name, "/".join(parts[:there]), address)
        return base.joinpath(*parts[there:])

    def _root_hint(self) -> str:
        names = ", ".join(f"{name}:PATH" for name in sorted(self.roots))
        return f"one of {names}" if names else "an upload (this controller has no roots)"

    def _root(self, address: Address) -> Path:
        root = self.roots.get(address.name)
        if root is None:
            raise SpecError(f"{address} names no root of this controller", reason="FORBIDDEN_URI", fix=f"use {self._root_hint()}")
        return root

    def _upload(self, address: Address) -> Path:
        tree = not address.path
        if missing := self.contents.missing(address.name, tree=tree):
            raise SpecError(
                f"content {missing[0]} was not uploaded" + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
                reason="CONTENT_MISSING",
                fix="submit with the command line or the SDK, which upload what is missing",
            )
        return self.contents.materialise_tree(address.name) if tree else self.contents.path(address.name)

    def _below(self, name: str, relative: str, address: Address) -> Path:
        """The real path of `relative` below a root, told by the descriptor of what was opened."""
        root = self._root(address)
        try:
            top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SpecError(f"the root {name} cannot be opened: {error.strerror}", fix=f"the operator must provide {root}") from error
        try:
            found = os.open(relative or ".", os.O_PATH | os.O_CLOEXEC, dir_fd=top)
            real, real_root = _place(found), _place(top)
            os.close(found)
        except (FileNotFoundError, NotADirectoryError):
            raise SpecError(f"{address} does not exist ({root / relative})", fix="check the path; it is relative to the root") from None
        except OSError as error:
            raise SpecError(f"{address} cannot be opened: {error.strerror}", fix="check the rights of the path") from error
        finally:
            os.close(top)
        if real != real_root and real_root not in real.parents:
            fix = "copy the file below the root, or upload it"
            raise SpecError(f"{address} leads out of the root {name}", reason="FORBIDDEN_URI", fix=fix)
        if not os.access(real, os.R_OK):
            raise SpecError(f"{address} cannot be read", fix=f"give the controller's user the right to read {real}")
        return real

    def _result(self, address: Address, tenant: str, dependencies: Sequence[Mapping[str, str]]) -> Path:
        for pinned in dependencies:
            if pinned.get("job") == address.name and pinned.get("artifact", "") == address.path and pinned.get("path"):
                path = self.store_root / tenant / pinned["uid"] / pinned["path"]
                if not path.exists():
                    raise SpecError(f"the result of job {address.name} is gone from {path}", fix=f"run {address.name} again, then this job")
                return path
        raise SpecError(f"{address} was not pinned", fix="retry the job")


def _place(descriptor: int) -> Path:
    """Where an opened file really is."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
