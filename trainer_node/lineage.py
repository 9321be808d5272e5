"""What a job's store holds of checkpoints and journal entries, found and checked without torch.

The agent of node 0 lists candidates with this; ranks use it for manifests and retention. A checkpoint is a directory whose
`manifest.json` was written last; a journal entry is one file. Both name their predecessor. Full hashes are checked by the ranks while
reading; here it is checked that the manifest is whole and that every file is there with its size.

Layout below the job's prefix: `checkpoints/a<k>g<g>/p<phase>/step-<n>/`, `journal/<n>.a<k>g<g>.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import StorageError
from luthier.trainer_node.launch import CheckpointRef, JournalRef

__all__ = [
    "MANIFEST", "checkpoint_path", "file_digest", "journal_path", "read_manifest", "scan_checkpoints", "scan_journals", "write_durably",
]  # fmt: skip

MANIFEST = "manifest.json"
_FENCE = re.compile(r"a(\d+)g(\d+)")
_STEP = re.compile(r"step-(\d+)")
_PHASE = re.compile(r"p(\d+)")
_ENTRY = re.compile(r"(\d+)\.a(\d+)g(\d+)\.json")


def checkpoint_path(fence: str, phase_index: int, step: int) -> str:
    """Place of a checkpoint below the job's prefix."""
    return f"checkpoints/{fence}/p{phase_index}/step-{step}"


def journal_path(fence: str, index: int) -> str:
    """Place of a journal entry below the job's prefix."""
    return f"journal/{index}.{fence}.json"


def write_durably(path: Path, data: bytes) -> str:
    """Write a file so that it is there whole or not at all, also after a power loss; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)
    return hashlib.sha256(data).hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A directory's manifest: its content and the digest that names it."""

    directory: Path
    digest: str
    content: Mapping[str, Any]

    @property
    def files(self) -> list[Mapping[str, Any]]:
        """{"path", "size", "sha256"} of every file."""
        return list(self.content["files"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(int(file["size"]) for file in self.files)

    def check_sizes(self) -> None:
        """Raise `StorageError` when a file is missing or has another size."""
        for file in self.files:
            path = self.directory / str(file["path"])
            size = path.stat().st_size if path.is_file() else -1
            if size != file["size"]:
                found = "is missing" if size < 0 else f"has {size} bytes instead of {file['size']}"
                raise StorageError(f"{file['path']} {found}", where=str(self.directory), fix="restore the file, or use another checkpoint")


def read_manifest(directory: Path, digest: str = "") -> Manifest:
    """Read a manifest and check it against `digest` (empty: any). Raises `StorageError`."""
    where = str(directory / MANIFEST)
    try:
        data = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise StorageError(f"there is no manifest: {error.strerror}", where=where) from error
    found = hashlib.sha256(data).hexdigest()
    if digest and found != digest:
        raise StorageError(f"the manifest is not the recorded one (digest {found[:12]}, recorded {digest[:12]})", where=where)
    try:
        content = json.loads(data)
        manifest = Manifest(directory, found, content)
        names = [str(file["path"]) for file in manifest.files]
        if not all(isinstance(file["size"], int) and isinstance(file["sha256"], str) for file in manifest.files):
            raise ValueError("file entries lack size or sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"the manifest is damaged: {error}", where=where) from error
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise StorageError("the manifest names files outside its directory", where=where)
    return manifest


def scan_checkpoints(prefix: Path) -> list[CheckpointRef]:
    """Committed checkpoints whose files are all there with their sizes, oldest first by (attempt, generation, phase, step)."""
    found = []
    for directory in (prefix / "checkpoints").glob("a*g*/p*/step-*"):
        fence, phase, step = (_FENCE.fullmatch(directory.parts[-3]), _PHASE.fullmatch(directory.parts[-2]), _STEP.fullmatch(directory.name))
        if not (fence and phase and step):
            continue
        try:
            manifest = read_manifest(directory)
            manifest.check_sizes()
        except StorageError:
            continue  # not committed, or broken: no candidate
        found.append(
            CheckpointRef(
                attempt=int(fence[1]), generation=int(fence[2]), phase_index=int(phase[1]), step=int(step[1]),
                digest=manifest.digest, path=str(directory.relative_to(prefix)),
            )
        )  # fmt: skip
    return sorted(found, key=lambda c: (c.attempt, c.generation, c.phase_index, c.step))


def scan_journals(prefix: Path) -> list[JournalRef]:
    """The newest journal entry written under each fence, oldest fence first."""
    heads: dict[tuple[int, int], JournalRef] = {}
    for path in (prefix / "journal").glob("*.json"):
        match = _ENTRY.fullmatch(path.name)
        if not match:
            continue
        index, attempt, generation = (int(part) for part in match.groups())
        old = heads.get((attempt, generation))
        if old is None or old.index < index:
            heads[attempt, generation] = JournalRef(attempt, generation, index, file_digest(path), str(path.relative_to(prefix)))
    return [heads[fence] for fence in sorted(heads)]
