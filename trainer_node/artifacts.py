"""Outputs of phases: directories below the job's prefix whose manifest is written last.

`phases/a<k>g<g>/<n>-<name>/` holds the files; `manifest.json` names every one with size and SHA-256, and its own SHA-256 is the
artifact's digest. Only rank 0 writes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from luthier.errors import StorageError
from luthier.methods.api import Artifact
from luthier.trainer_node.lineage import MANIFEST, file_digest, read_manifest, sync_directory, write_durably

__all__ = ["ArtifactDirectory", "Artifacts", "artifact_from_json", "artifact_to_json", "seal"]

_SLUG = re.compile(r"[^a-z0-9]+")


def _slug(name: str) -> str:
    return _SLUG.sub("-", name.lower()).strip("-") or "output"


@dataclass(frozen=True)
class ArtifactDirectory:
    """Where a phase writes (`methods.api.ArtifactWriter`)."""

    path: Path


class Artifacts:
    """The artifacts of one job, written under one fence and read from any."""

    def __init__(self, prefix: Path, fence: str) -> None:
        self._prefix = prefix
        self._fence = fence

    def place(self, index: int, name: str) -> Path:
        """Directory of the output of phase `index`."""
        return self._prefix / "phases" / self._fence / f"{index}-{_slug(name)}"

    def begin(self, index: int, name: str) -> ArtifactDirectory:
        """An empty directory for phase `index`."""
        path = self.place(index, name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return ArtifactDirectory(path)

    def commit(
        self, directory: Path, name: str, kind: str, metrics: Mapping[str, float], samples: Sequence[Mapping[str, str]] = ()
    ) -> Artifact:
        """Make the directory durable and name it, so that the name can stand in `job://JOB/NAME`. Raises `StorageError`."""
        name = _slug(name)
        digest = seal(directory, {"name": name, "kind": kind, "metrics": dict(metrics)})
        return Artifact(name, kind, digest, str(directory.relative_to(self._prefix)), dict(metrics), tuple(dict(s) for s in samples))

    def path(self, artifact: Artifact) -> Path:
        """Local directory of an artifact whose manifest is the recorded one. Raises `StorageError`."""
        directory = (self._prefix / artifact.path).resolve()
        if not directory.is_relative_to(self._prefix.resolve()):
            raise StorageError(f"artifact {artifact.name!r} lies outside the job's prefix", where=artifact.path)
        read_manifest(directory, artifact.digest).check_sizes()
        return directory


def seal(directory: Path, about: Mapping[str, Any]) -> str:
    """Hash and sync every file, then write the manifest; returns its SHA-256."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        files.append({"path": path.relative_to(directory).as_posix(), "size": size, "sha256": file_digest(path)})
    for folder in sorted({directory, *(p for p in directory.rglob("*") if p.is_dir())}):
        sync_directory(folder)
    return write_durably(directory / MANIFEST, json.dumps({**about, "files": files}, sort_keys=True).encode())


def artifact_to_json(artifact: Artifact) -> dict[str, Any]:
    """Plain JSON of an artifact."""
    return {**asdict(artifact), "metrics": dict(artifact.metrics), "samples": [dict(s) for s in artifact.samples]}


def artifact_from_json(data: Mapping[str, Any]) -> Artifact:
    """What `artifact_to_json` gave."""
    known = {field.name for field in fields(Artifact)}
    values = {name: value for name, value in data.items() if name in known}
    values["samples"] = tuple(values.get("samples", ()))
    return Artifact(**values)
