"""Files in and out: uploads addressed by content, downloads verified by digest, both resumable."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from luthier.client.channel import Wire
from luthier.errors import LuthierError, NotFound, SpecError, Unavailable
from luthier.v1 import artifact_service_pb2 as pb
from luthier.v1 import artifact_service_pb2_grpc as rpc

__all__ = ["AsyncArtifacts", "Progress", "Upload", "digest_of", "plan_upload"]

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes done, bytes in all)."""

_CHUNK = 512 << 10
_MAX_FILES = 10_000
_ATTEMPTS = 5


@dataclass(frozen=True)
class Upload:
    """A local path as the server will know it: its address, and the contents behind it by digest."""

    uri: str
    contents: dict[str, Path | bytes] = field(default_factory=dict)
    """SHA-256 -> file, or the bytes of a directory's manifest."""


def digest_of(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree(directory: Path) -> dict[str, Path]:
    """Files below a directory by `/`-separated path. Links to files are followed, links to directories are refused."""
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(directory):
        for name in sorted(folders):
            if (Path(parent) / name).is_symlink():
                raise SpecError(f"{Path(parent) / name} is a link to a directory", fix="replace the link by the directory, or leave it out")
        for name in sorted(files):
            path = Path(parent) / name
            if not path.is_file():
                raise SpecError(f"{path} is not a regular file", fix="remove it from the directory")
            found[path.relative_to(directory).as_posix()] = path
            if len(found) > _MAX_FILES:
                raise SpecError(
                    f"{directory} holds more than {_MAX_FILES} files", fix="name the directory that holds only the data or model"
                )
    if not found:
        raise SpecError(f"the directory {directory} holds no files", fix="name a directory with data or a model")
    return found


def plan_upload(path: Path) -> Upload:
    """Hash a file or directory. Raises `SpecError` for what cannot be uploaded."""
    try:
        if path.is_dir():
            tree = _tree(path)
            digests = {name: digest_of(file) for name, file in tree.items()}
            manifest = json.dumps({"files": digests}, sort_keys=True, separators=(",", ":")).encode()
            digest = hashlib.sha256(manifest).hexdigest()
            contents: dict[str, Path | bytes] = {digests[name]: file for name, file in tree.items()}
            return Upload(f"upload://{digest}/", {**contents, digest: manifest})
        digest = digest_of(path)
        return Upload(f"upload://{digest}/{path.name}", {digest: path})
    except OSError as error:
        raise SpecError(f"{error.filename or path} cannot be read: {error.strerror}", fix="check the path and its permissions") from None


def _size_of(path: Path) -> int:
    return path.stat().st_size


def _prepare(path: Path, part: Path, file: pb.Artifact.File) -> int | None:
    """Bytes of `part` that an earlier pull left; None when `path` is whole already."""
    if path.is_file() and digest_of(path) == file.digest:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    offset = part.stat().st_size if part.is_file() else 0
    if offset > file.size_bytes:
        part.unlink()
        return 0
    return offset


class AsyncArtifacts:
    """Uploads of inputs and downloads of outputs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def _stub(self) -> rpc.ArtifactServiceAsyncStub:
        return self._wire.stub(rpc.ArtifactServiceStub)

    # --- in ----------------------------------------------------------------------------------------------------------

    async def upload(self, path: str | Path, *, progress: Progress | None = None) -> str:
        """Upload a file or directory, skipping what the server has, and return its `upload://…` address."""
        planned = await asyncio.to_thread(plan_upload, Path(path))
        await self.send(planned, progress=progress)
        return planned.uri

    async def send(self, upload: Upload, *, progress: Progress | None = None) -> int:
        """Send the contents that the server lacks; the number of bytes sent."""
        digests = list(upload.contents)
        sent = 0
        for start in range(0, len(digests), 1000):
            request = pb.StatContentsRequest(digests=digests[start : start + 1000])
            answer = await self._wire.unary(self._stub.StatContents, request)
            for content in answer.contents:
                if not content.present:
                    sent += await self._send_one(content.digest, upload.contents[content.digest], content.received_bytes, progress)
        return sent

    async def _send_one(self, digest: str, source: Path | bytes, offset: int, progress: Progress | None) -> int:
        """Send one content from `offset` on; after a break, from what the server received."""
        size = len(source) if isinstance(source, bytes) else await asyncio.to_thread(_size_of, source)
        name = "manifest" if isinstance(source, bytes) else source.name
        first = offset
        for attempt in range(_ATTEMPTS):
            try:
                await self._send_stream(digest, source, offset, size, name, progress)
                return size - first
            except Unavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
            await asyncio.sleep(0.2 * 2**attempt)
            request = pb.StatContentsRequest(digests=[digest])
            answer = await self._wire.unary(self._stub.StatContents, request)
            if answer.contents[0].present:
                return size - first
            offset = answer.contents[0].received_bytes
        raise AssertionError("the loop returns or raises")

    async def _send_stream(self, digest: str, source: Path | bytes, offset: int, size: int, name: str, progress: Progress | None) -> None:
        async def messages() -> AsyncIterator[pb.UploadContentRequest]:
            yield pb.UploadContentRequest(header=pb.UploadContentRequest.Header(digest=digest, size_bytes=size, offset=offset))
            done = offset
            if isinstance(source, bytes):
                yield pb.UploadContentRequest(data=source[offset:])
                return
            with source.open("rb") as file:
                file.seek(offset)
                while data := await asyncio.to_thread(file.read, _CHUNK):
                    yield pb.UploadContentRequest(data=data)
                    done += len(data)
                    if progress is not None:
                        progress(name, done, size)

        await self._wire.upload(self._stub.UploadContent, messages())

    # --- out ---------------------------------------------------------------------------------------------------------

    async def list(self, job: str) -> AsyncGenerator[pb.Artifact]:
        """A job's artifacts, the result included."""
        request = pb.ListArtifactsRequest(parent=job if job.startswith("jobs/") else f"jobs/{job}", page_size=1000)
        while True:
            answer = await self._wire.unary(self._stub.ListArtifacts, request)
            for artifact in answer.artifacts:
                yield artifact
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def download(self, artifact: str, path: str, *, offset: int = 0) -> AsyncGenerator[bytes]:
        """The bytes of one file of `jobs/{job}/artifacts/{artifact}`, from `offset` on; resumed when the server goes away."""
        position = offset

        def reopen() -> AsyncGenerator[pb.DownloadArtifactResponse]:
            return self._wire.stream(self._stub.DownloadArtifact, pb.DownloadArtifactRequest(name=artifact, path=path, offset=position))

        async for chunk in self._wire.resuming(reopen):
            position = chunk.offset + len(chunk.data)
            yield chunk.data

    async def pull(
        self, job: str, directory: str | Path, *, artifact: str = "result", progress: Progress | None = None
    ) -> tuple[Path, ...]:
        """Download an artifact's files into a directory and verify every digest. Files that are there already are kept.

        `job` is a job's name, or the resource name of an artifact, `jobs/{job}/artifacts/{artifact}`.
        Raises `NotFound` when the job has no such artifact, `LuthierError` when a file does not match its digest.
        """
        job, _, named = job.partition("/artifacts/")
        artifact = named or artifact
        found = None
        names = []
        async for candidate in self.list(job):
            names.append(candidate.name.rpartition("/")[2])
            if names[-1] == artifact:
                found = candidate
        if found is None:
            has = f"it has {', '.join(names)}" if names else "it has none yet; a job's result appears when it has succeeded"
            raise NotFound(f"job {job.removeprefix('jobs/')} has no artifact {artifact!r}", fix=has)
        target = Path(directory)
        written = []
        for file in found.files:
            relative = PurePosixPath(file.path)
            if relative.is_absolute() or ".." in relative.parts or "\\" in file.path or not relative.parts:
                raise LuthierError(f"the artifact names a file outside of itself: {file.path!r}", fix="tell the operator of the server")
            path = target.joinpath(*relative.parts)
            await self._pull_one(found.name, file, path, progress)
            written.append(path)
        return tuple(written)

    async def _pull_one(self, artifact: str, file: pb.Artifact.File, path: Path, progress: Progress | None) -> None:
        part = path.with_name(path.name + ".part")
        offset = await asyncio.to_thread(_prepare, path, part, file)
        if offset is None:
            return
        done = offset
        with part.open("ab") as out:
            if offset < file.size_bytes:
                async for data in self.download(artifact, file.path, offset=offset):
                    await asyncio.to_thread(out.write, data)
                    done += len(data)
                    if progress is not None:
                        progress(file.path, done, file.size_bytes)
        digest = await asyncio.to_thread(digest_of, part)
        if digest != file.digest:
            part.unlink()
            raise LuthierError(
                f"{file.path} arrived with digest {digest[:12]}… instead of {file.digest[:12]}…",
                fix="pull again; if it happens twice, the server's store is damaged",
            )
        part.replace(path)
