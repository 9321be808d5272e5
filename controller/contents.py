"""Uploaded contents, addressed by SHA-256.

`<root>/<first 2 digits>/<sha256>` is a whole, verified content; `<root>/partial/<sha256>` an unfinished one, which an upload
continues; `<root>/trees/<sha256>/` an uploaded directory, made of hard links from its manifest
`{"files": {"relative/path": "<sha256>"}}`. Nothing is visible under its digest before its bytes were hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from luthier.errors import Exhausted, FieldViolation, NotFound, SpecError

__all__ = ["ContentStore", "ContentUpload", "is_digest"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1024 * 1024
LARGEST_MANIFEST = 16 * 1024 * 1024
LARGEST_CONTENT = 1024**4
_SPARE_BYTES = 256 * 1024 * 1024
"""Kept free on the disk: a full disk stops the database, too."""


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256 digest in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


class ContentStore:
    """All methods read or write files; call them from a worker thread."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, digest: str) -> Path:
        """Where the content lies, whether it is there or not."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is not a SHA-256 digest")
        return self.root / digest[:2] / digest

    def _partial(self, digest: str) -> Path:
        return self.root / "partial" / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def stat(self, digest: str) -> tuple[bool, int]:
        """(whole and verified, bytes received of an unfinished upload)."""
        if self.has(digest):
            return True, 0
        try:
            return False, self._partial(digest).stat().st_size
        except FileNotFoundError:
            return False, 0

    def begin(self, digest: str, size_bytes: int, offset: int) -> ContentUpload:
        """Open an upload at `offset`. The caller makes sure that one content has one writer.

        Raises `SpecError` for an offset beyond what was received and `Exhausted` when the disk has no room.
        """
        if not 0 <= size_bytes <= LARGEST_CONTENT:
            raise _wrong("header.size_bytes", f"{size_bytes} is out of range", f"give 0 to {LARGEST_CONTENT}")
        received = self.stat(digest)[1]
        if not 0 <= offset <= min(received, size_bytes):
            fix = f"continue at {min(received, size_bytes)} (StatContents tells), or start at 0"
            raise _wrong("header.offset", f"{offset} is not where this upload can continue", fix)
        partial = self._partial(digest)
        partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.parent).free
        if size_bytes - received + _SPARE_BYTES > free:
            raise Exhausted(
                f"the server's disk has {free} bytes left, which is too little for {size_bytes} bytes",
                reason="QUOTA_EXCEEDED",
                retry_seconds=60.0,
                fix="free space in the server's state directory",
                metadata={"free_bytes": str(free), "size_bytes": str(size_bytes)},
            )
        return ContentUpload(self, digest, size_bytes, offset)

    def missing(self, digest: str, *, tree: bool) -> list[str]:
        """Digests that must still be uploaded before the content (`tree`: the directory) can be used.

        Raises `SpecError` for a bad manifest.
        """
        if not self.has(digest):
            return [digest]
        if not tree:
            return []
        return sorted({d for d in self.manifest(digest).values() if not self.has(d)})

    def manifest(self, digest: str) -> Mapping[str, str]:
        """Files of an uploaded directory: relative path -> digest. Raises `NotFound` or `SpecError`."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
            text = path.read_bytes() if size <= LARGEST_MANIFEST else b""
        except FileNotFoundError:
            raise NotFound(f"content {digest} was not uploaded", fix="upload it first", metadata={"digest": digest}) from None
        try:
            files = json.loads(text)["files"]
            if not isinstance(files, dict) or not files:
                raise ValueError("`files` must be a mapping with at least one entry")
            check_tree(files)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SpecError(
                f"upload://{digest}/ is not the manifest of a directory: {error}",
                fix='upload JSON of the form {"files": {"relative/path": "<sha256>"}}, or leave the trailing slash out for a file',
                metadata={"digest": digest},
            ) from error
        return files

    def materialise_tree(self, digest: str) -> Path:
        """The uploaded directory as files (hard links); made once. Raises `NotFound` when a content is missing."""
        target = self.root / "trees" / digest
        if target.is_dir():
            return target
        files = self.manifest(digest)
        making = target.with_name(f"{digest}.{secrets.token_hex(8)}")
        try:
            for relative, content in files.items():
                place = making / relative
                place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                if not self.has(content):
                    raise NotFound(
                        f"content {content} ({relative}) of the directory {digest} was not uploaded",
                        fix="upload the directory again; what is present is skipped",
                        metadata={"digest": content, "path": relative},
                    )
                _link(self.path(content), place)
            try:
                making.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                # Somebody else made it in the meantime: equal by construction.
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return target

    def drop_stale_partials(self, older_than_seconds: float, now: float | None = None) -> int:
        """Remove unfinished uploads that nobody continued; returns how many."""
        limit = (time.time() if now is None else now) - older_than_seconds
        dropped = 0
        for path in (self.root / "partial").glob("*"):
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                dropped += 1
        return dropped


class ContentUpload:
    """One upload under way: `write` bytes in order, then `finish`. Closing without `finish` keeps what came for a later continuation."""

    def __init__(self, store: ContentStore, digest: str, size_bytes: int, offset: int) -> None:
        self._store, self._digest, self._size = store, digest, size_bytes
        self._path = store._partial(digest)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO = os.fdopen(descriptor, "r+b")
        self._file.truncate(offset)
        self._file.seek(offset)
        self.received = offset
        # A continuation hashes from the start at the end; an upload in one go hashes as it comes.
        self._hash = hashlib.sha256() if offset == 0 else None

    def write(self, data: bytes) -> None:
        """Raises `SpecError` when more comes than was announced."""
        if self.received + len(data) > self._size:
            raise _wrong("data", f"more than the announced {self._size} bytes came", "announce the real size in the header")
        self._file.write(data)
        self.received += len(data)
        if self._hash is not None:
            self._hash.update(data)

    def finish(self) -> int:
        """Verify and publish; returns the size. Raises `SpecError` (DIGEST_MISMATCH) and drops the bytes when they are others."""
        if self.received != self._size:
            fix = f"continue at {self.received}"
            raise _wrong("data", f"{self.received} of {self._size} bytes came", fix)
        self._file.flush()
        os.fsync(self._file.fileno())
        digest = self._hash.hexdigest() if self._hash is not None else self._hash_all()
        if digest != self._digest:
            self._file.close()
            self._path.unlink(missing_ok=True)
            raise SpecError(
                f"the uploaded bytes have the digest {digest}, not {self._digest}",
                reason="DIGEST_MISMATCH",
                violations=[FieldViolation("header.digest", f"the bytes have the digest {digest}", "upload the file again from the start")],
                fix="upload the file again from the start; did it change meanwhile?",
                metadata={"expected": self._digest, "actual": digest},
            )
        os.fchmod(self._file.fileno(), 0o444)  # nodes get hard links: nobody may write into everybody's copy
        target = self._store.path(self._digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.replace(target)
        _sync_folder(target.parent)
        return self._size

    def _hash_all(self) -> str:
        whole = hashlib.sha256()
        self._file.seek(0)
        for block in iter(lambda: self._file.read(_BLOCK), b""):
            whole.update(block)
        return whole.hexdigest()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_tree(files: Mapping[str, Any]) -> None:
    """Raise ValueError unless every path is relative, plain and unambiguous, and every content a digest."""
    for path, digest in files.items():
        if not isinstance(digest, str) or not is_digest(digest):
            raise ValueError(f"{path!r} has no SHA-256 digest")
        parts = path.split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or len(path) > 1024:
            raise ValueError(f"{path!r} is not a plain relative path")
        if "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
            raise ValueError(f"{path!r} contains a backslash or a control character")
    for path in files:
        for end in _parents(path):
            if end in files:
                raise ValueError(f"{end!r} is a file and a folder")


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:n]) for n in range(1, len(parts)))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)  # another file system, or too many links


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wrong(field: str, what: str, fix: str) -> SpecError:
    return SpecError(f"{field}: {what}", violations=[FieldViolation(field, what, fix)], fix=fix)
