"""ArtifactService: uploads of contents, and the outputs of jobs.

Everything that touches files runs in worker threads. Which files an artifact has is what its manifest says; bytes are read from an
open descriptor that was reached without following a link.
"""

# ruff: noqa: N802  methods are named like the RPCs

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.controller.contents import ContentStore, ContentUpload, is_digest
from luthier.controller.service.convert import to_timestamp
from luthier.controller.service.interceptors import current_tenant
from luthier.controller.service.names import artifact_of, job_of, wrong_field
from luthier.controller.store.api import Store
from luthier.controller.store.pages import page_limit, scope_of, token_for, token_key
from luthier.controller.store.records import ArtifactRecord, JobRecord
from luthier.errors import JobNotFound, NotFound, Unavailable
from luthier.v1 import artifact_service_pb2, artifact_service_pb2_grpc

__all__ = ["ArtifactService"]

pb = artifact_service_pb2

_CHUNK = 1024 * 1024
_MOST_DIGESTS = 1000
_MOST_FILES = 10_000
_LOCK_SECONDS = 30.0
_MANIFEST = "manifest.json"


class ArtifactService(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Uploads inputs and serves outputs. `local_paths`: tell callers where artifacts lie, because they share this file system."""

    def __init__(self, store: Store, contents: ContentStore, store_root: Path, *, local_paths: bool) -> None:
        self._store = store
        self._contents = contents
        self._store_root = store_root
        self._local_paths = local_paths
        self._uploads: dict[str, asyncio.Lock] = {}

    # --- in ---

    async def StatContents(self, request: pb.StatContentsRequest, context: Any) -> pb.StatContentsResponse:
        digests = list(request.digests)
        if len(digests) > _MOST_DIGESTS:
            raise wrong_field("digests", f"there are {len(digests)}", f"ask for at most {_MOST_DIGESTS} at once")
        for number, digest in enumerate(digests):
            _check_digest(digest, f"digests[{number}]")
        found = await asyncio.to_thread(lambda: [self._contents.stat(digest) for digest in digests])
        content = pb.StatContentsResponse.Content
        return pb.StatContentsResponse(
            contents=[content(digest=d, present=p, received_bytes=n) for d, (p, n) in zip(digests, found, strict=True)]
        )

    async def UploadContent(self, request_iterator: AsyncIterator[pb.UploadContentRequest], context: Any) -> pb.UploadContentResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("header"):
            raise wrong_field("header", "the first message must carry it", "send the header, then the data in order")
        header = first.header
        _check_digest(header.digest, "header.digest")
        async with self._one_writer(header.digest):
            if await asyncio.to_thread(self._contents.has, header.digest):
                # Somebody was faster, or an answer was lost: what the caller still sends is not needed.
                return pb.UploadContentResponse(digest=header.digest, size_bytes=header.size_bytes)
            upload = await asyncio.to_thread(self._contents.begin, header.digest, header.size_bytes, header.offset)
            try:
                await _receive(request_iterator, upload)
                size = await asyncio.to_thread(upload.finish)
            finally:
                await asyncio.to_thread(upload.close)
        return pb.UploadContentResponse(digest=header.digest, size_bytes=size)

    @contextlib.asynccontextmanager
    async def _one_writer(self, digest: str) -> AsyncIterator[None]:
        """Two callers with one file: the second waits, and then finds it present."""
        lock = self._uploads.setdefault(digest, asyncio.Lock())
        try:
            async with asyncio.timeout(_LOCK_SECONDS):
                await lock.acquire()
        except TimeoutError:
            raise Unavailable(
                f"another upload of {digest} is under way",
                reason="STORE_BUSY",
                fix="try again; what the other upload finishes is skipped",
                retry_seconds=5.0,
            ) from None
        try:
            yield
        finally:
            lock.release()
            if not lock.locked() and not getattr(lock, "_waiters", None):
                self._uploads.pop(digest, None)

    # --- out ---

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:
        limit = page_limit(request.page_size)
        job, artifacts = await self._find(job_of(request.parent, "parent"))
        scope = scope_of("artifacts", job.uid)
        after = token_key(request.page_token, scope, (str,))[0] if request.page_token else ""
        found = [artifact for artifact in artifacts if artifact.name > after]
        token = token_for(scope, [found[limit - 1].name]) if len(found) > limit else ""
        shown = await asyncio.to_thread(lambda: [self._show(job, artifact) for artifact in found[:limit]])
        return pb.ListArtifactsResponse(artifacts=shown, next_page_token=token)

    async def DownloadArtifact(self, request: pb.DownloadArtifactRequest, context: Any) -> AsyncIterator[pb.DownloadArtifactResponse]:
        job_id, name = artifact_of(request.name)
        if request.offset < 0:
            raise wrong_field("offset", f"{request.offset} is negative", "give 0 for the beginning")
        job, artifacts = await self._find(job_id)
        artifact = next((a for a in artifacts if a.name == name), None)
        if artifact is None:
            names = ", ".join(a.name for a in artifacts) or "none yet"
            raise NotFound(f"job {job_id!r} has no artifact {name!r}", fix=f"it has: {names}", metadata={"artifact": name, "job": job_id})
        descriptor = await asyncio.to_thread(self._open, job, artifact, request.path)
        try:
            offset = request.offset
            while data := await asyncio.to_thread(os.pread, descriptor, _CHUNK, offset):
                yield pb.DownloadArtifactResponse(offset=offset, data=data)
                offset += len(data)
        finally:
            os.close(descriptor)

    async def _find(self, job_id: str) -> tuple[JobRecord, list[ArtifactRecord]]:
        tenant = current_tenant()

        def find(reader: Any) -> tuple[JobRecord, list[ArtifactRecord]]:
            job = reader.job_named(tenant, job_id)
            if job is None:
                raise JobNotFound(f"there is no job {job_id!r}", fix="list jobs with `luthier get`", metadata={"job": job_id})
            return job, reader.artifacts(job.uid)

        return await self._store.read(find)

    def _folder(self, job: JobRecord, artifact: ArtifactRecord) -> Path:
        """Where the artifact lies. Paths in records come from nodes, so they are checked like any other."""
        _plain_parts(artifact.path, "path")
        return self._store_root / job.tenant / job.uid / artifact.path

    def _show(self, job: JobRecord, artifact: ArtifactRecord) -> pb.Artifact:
        folder = self._folder(job, artifact)
        return pb.Artifact(
            name=f"jobs/{job.name}/artifacts/{artifact.name}",
            kind=artifact.kind,
            digest=artifact.digest,
            size_bytes=artifact.size_bytes,
            files=[pb.Artifact.File(path=f.path, size_bytes=f.size_bytes, digest=f.digest) for f in _files(folder)],
            create_time=to_timestamp(artifact.time),
            local_path=str(folder.absolute()) if self._local_paths else "",
        )

    def _open(self, job: JobRecord, artifact: ArtifactRecord, path: str) -> int:
        """A descriptor of one file of the artifact, reached without following links."""
        parts = _plain_parts(path, "path")
        folder = self._folder(job, artifact)
        if folder.is_file():
            parts, folder = [folder.name], folder.parent
        try:
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for part in parts[:-1]:
                    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
                    os.close(place)
                    place = inner
                descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
            finally:
                os.close(place)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        except OSError:
            pass  # whatever stands in the way, the caller's file is not there
        files = [file.path for file in _files(self._folder(job, artifact))]
        shown = ", ".join(files[:10]) or "none"
        metadata = {"artifact": artifact.name, "path": path}
        raise NotFound(f"artifact {artifact.name!r} has no file {path!r}", fix=f"its files: {shown}", metadata=metadata)


@dataclass(frozen=True)
class _File:
    path: str
    size_bytes: int
    digest: str


def _files(folder: Path) -> list[_File]:
    """Files of an artifact: what its manifest names, or, without one, what is there."""
    if folder.is_file():
        return [_hashed(folder, folder.name)]
    manifest = folder / _MANIFEST
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _from_manifest(json.loads(manifest.read_bytes()))
    # Without a usable manifest: what lies there, hashed now.
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [_hashed(path, path.relative_to(folder).as_posix()) for path in found[:_MOST_FILES]]


def _from_manifest(content: Mapping[str, Any]) -> list[_File]:
    return sorted((_File(f["path"], int(f["size"]), f["sha256"]) for f in content["files"]), key=lambda file: file.path)


def _hashed(path: Path, name: str) -> _File:
    with path.open("rb") as file:
        return _File(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


async def _receive(messages: AsyncIterator[pb.UploadContentRequest], upload: ContentUpload) -> None:
    async for message in messages:
        if message.HasField("header"):
            raise wrong_field("header", "it came twice", "send one content per call")
        if len(message.data) > _CHUNK:
            raise wrong_field("data", f"a message carries {len(message.data)} bytes", f"send at most {_CHUNK} bytes in one message")
        await asyncio.to_thread(upload.write, message.data)


def _check_digest(digest: str, field: str) -> None:
    if not is_digest(digest):
        raise wrong_field(field, f"{digest[:80]!r} is not a SHA-256 digest", "give 64 lower-case hex digits")


def _plain_parts(path: str, field: str) -> list[str]:
    """The parts of a relative path without tricks."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path or len(path) > 4096:
        raise wrong_field(field, f"{path[:200]!r} is not a plain relative path", "give the path of a file as ListArtifacts tells it")
    return parts
