"""Token caches: memory-mapped, keyed by content, written once under a lease and published by a rename.

An entry is a directory: `tokens.bin` (int32), `learned.bin` (one byte per token), `index.bin` (int64 [N, 2]: length and number of the raw
row in its source), `columns.bin` (float64 [N, C]) and `meta.json`. It appears complete or not at all.

The lease is a file made with O_EXCL, which every file system can do. Its holder touches it while it works. It is broken when its
holder is a dead process of this machine, or when it was not touched for `STALE_SECONDS` of the waiter's own clock. Two holders by
accident do the work twice and publish the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from luthier.errors import DataError, StorageError
from luthier.trainer_node.data.api import VerdictReport

__all__ = ["CacheEntry", "CacheWriter", "Lease", "Meta", "open_or_build"]

STALE_SECONDS = 60.0
_POLL_SECONDS = 0.02
_LEFTOVER_SECONDS = 3600.0


@dataclass(frozen=True)
class Meta:
    """What is known of an entry beside its tokens."""

    rows: int
    tokens: int
    raw_rows: int
    """Rows that the source has, the bad ones included."""
    column_names: tuple[str, ...]
    counts: dict[str, int]
    """Raw rows by verdict."""
    offenders: tuple[str, ...]
    note: str
    """What was detected, for the report."""


class CacheEntry:
    """A published entry, memory-mapped. Raises `StorageError` when a file is shorter than its meta data says."""

    def __init__(self, directory: Path, key: str) -> None:
        try:
            data = json.loads((directory / "meta.json").read_text())
            self.meta = Meta(
                rows=data["rows"],
                tokens=data["tokens"],
                raw_rows=data["raw_rows"],
                column_names=tuple(data["column_names"]),
                counts=dict(data["counts"]),
                offenders=tuple(data["offenders"]),
                note=data["note"],
            )
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(f"the token cache entry is damaged: {error}", where=str(directory), fix="delete the entry") from error
        self.key = key
        self.tokens = _mapped(directory / "tokens.bin", np.dtype(np.int32), self.meta.tokens)
        self.learned = _mapped(directory / "learned.bin", np.dtype(np.bool_), self.meta.tokens)
        index = _mapped(directory / "index.bin", np.dtype(np.int64), 2 * self.meta.rows).reshape(-1, 2)
        self.lengths: npt.NDArray[np.int32] = np.ascontiguousarray(index[:, 0]).astype(np.int32)
        self.origins: npt.NDArray[np.int64] = np.ascontiguousarray(index[:, 1])
        self.starts: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(index[:, 0])]).astype(np.int64)
        width = len(self.meta.column_names)
        self.columns = _mapped(directory / "columns.bin", np.dtype(np.float64), width * self.meta.rows).reshape(self.meta.rows, width)

    @property
    def verdicts(self) -> VerdictReport:
        """Raw rows by verdict, with the first offenders."""
        return VerdictReport(self.meta.counts, self.meta.offenders)


class CacheWriter:
    """Writes an entry into a directory of its own; `beat` keeps the lease alive and is called with every append."""

    def __init__(self, directory: Path, beat: Callable[[], None]) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._beat = beat
        names = ("tokens", "learned", "index", "columns")
        self._files: dict[str, BinaryIO] = {name: (directory / f"{name}.bin").open("wb") for name in names}
        self._rows = 0
        self._tokens = 0

    def append(
        self,
        tokens: Sequence[npt.NDArray[np.int32]],
        learned: Sequence[npt.NDArray[np.bool_]],
        origins: Sequence[int],
        columns: Sequence[Sequence[float]],
    ) -> None:
        """Add rows: token ids and flags of each, the number of its raw row, its columns."""
        self._beat()
        if not tokens:
            return
        lengths = [len(row) for row in tokens]
        self._files["tokens"].write(np.concatenate(tokens).astype(np.int32).tobytes())
        self._files["learned"].write(np.concatenate(learned).astype(np.bool_).tobytes())
        self._files["index"].write(np.array([lengths, origins], dtype=np.int64).T.tobytes())
        self._files["columns"].write(np.array(columns, dtype=np.float64).tobytes())
        self._rows += len(lengths)
        self._tokens += sum(lengths)

    def finish(self, *, raw_rows: int, column_names: Sequence[str], counts: dict[str, int], offenders: Sequence[str], note: str) -> None:
        """Make everything durable; the meta data last."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        meta = Meta(self._rows, self._tokens, raw_rows, tuple(column_names), counts, tuple(offenders), note)
        with (self._directory / "meta.json").open("w") as text:
            json.dump(asdict(meta), text)
            text.flush()
            os.fsync(text.fileno())

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()


class Lease:
    """The right to write one entry."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, float] | None = None

    def acquire(self) -> bool:
        """Take the lease if nobody holds it."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            json.dump({"machine": _machine(), "pid": os.getpid(), "start": _start_time(os.getpid())}, file)
        return True

    def beat(self) -> None:
        """Show that the holder works."""
        try:
            os.utime(self._path)
        except FileNotFoundError:
            pass  # broken by a waiter that saw us stand still: both write the same content, so carrying on is right

    def release(self) -> None:
        """Give the lease back."""
        self._path.unlink(missing_ok=True)

    def changed(self, now: float) -> bool:
        """Whether the holder showed a sign of life since the last look; `now` in seconds."""
        try:
            touched = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if self._seen is None or self._seen[0] != touched:
            self._seen = (touched, now)
            return True
        return False

    def break_if_dead(self, now: float) -> None:
        """Remove the lease of a holder that is gone."""
        stale = self._seen is not None and now - self._seen[1] > STALE_SECONDS
        if not stale and not self._holder_is_dead():
            return
        # The rename has one winner; the others find nothing to remove.
        grave = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}.broken")
        try:
            self._path.rename(grave)
        except FileNotFoundError:
            return
        grave.unlink(missing_ok=True)

    def _holder_is_dead(self) -> bool:
        try:
            holder = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return False  # just made, or just released
        return bool(holder["machine"] == _machine() and holder["start"] != _start_time(holder["pid"]))


def open_or_build(
    cache_dir: Path,
    key: str,
    build: Callable[[CacheWriter], None],
    *,
    leader: bool,
    timeout_seconds: float,
    beat: Callable[[], None] = lambda: None,
    what: str = "the data",
) -> CacheEntry:
    """The entry `key`; a leader that does not find it builds it under the lease, others wait for it.

    `beat` is called while waiting and working. `timeout_seconds` limits how long to wait without any sign of life from a writer.
    Raises `DataError` when nobody writes, `StorageError` when the cache cannot be written, and whatever `build` raises.
    """
    final = cache_dir / key[:2] / key
    try:
        return _entry(final, key, cache_dir, build, leader=leader, timeout_seconds=timeout_seconds, beat=beat, what=what)
    except OSError as error:
        raise StorageError(
            f"the token cache cannot be written: {error.strerror or error}", where=str(final), fix="free space or set another cache folder"
        ) from error


def _entry(
    final: Path,
    key: str,
    cache_dir: Path,
    build: Callable[[CacheWriter], None],
    *,
    leader: bool,
    timeout_seconds: float,
    beat: Callable[[], None],
    what: str,
) -> CacheEntry:
    found = _open(final, key, repair=leader)
    if found is not None:
        return found
    final.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease(final.with_name(f"{key}.lease"))
    quiet_since = time.monotonic()
    while True:
        if leader and lease.acquire():
            try:
                # Somebody may have published between our look and our lease.
                return _open(final, key, repair=True) or _build(final, key, build, lease, beat)
            finally:
                lease.release()
        found = _open(final, key, repair=False)
        if found is not None:
            return found
        now = time.monotonic()
        if lease.changed(now):
            quiet_since = now
        if leader:
            lease.break_if_dead(now)
        if now - quiet_since > timeout_seconds:
            who = "its writer" if leader else "the node that tokenises (node 0)"
            raise DataError(
                f"waited {timeout_seconds:.0f} s for {who} without a sign of life while {what} is tokenised",
                where=str(final),
                fix="look at the log of node 0, and check that all nodes see the same cache folder",
            )
        beat()
        time.sleep(_POLL_SECONDS)


def _build(final: Path, key: str, build: Callable[[CacheWriter], None], lease: Lease, beat: Callable[[], None]) -> CacheEntry:
    def work() -> None:
        lease.beat()
        beat()

    for leftover in final.parent.glob(f"{key}.*.tmp"):
        if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    draft = final.with_name(f"{key}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    writer = CacheWriter(draft, work)
    try:
        build(writer)
        try:
            draft.rename(final)
        except OSError:
            if not (final / "meta.json").exists():
                raise
    finally:
        writer.close()
        shutil.rmtree(draft, ignore_errors=True)
    return CacheEntry(final, key)


def _open(final: Path, key: str, *, repair: bool) -> CacheEntry | None:
    if not (final / "meta.json").exists():
        return None
    try:
        return CacheEntry(final, key)
    except StorageError:
        if not repair:
            raise
        shutil.rmtree(final, ignore_errors=True)
        return None


def _mapped(path: Path, dtype: np.dtype[np.generic], count: int) -> npt.NDArray[np.generic]:
    size = path.stat().st_size if path.exists() else -1
    if size != count * dtype.itemsize:
        raise StorageError(
            f"the token cache entry is damaged: {path.name} has {size} bytes, not {count * dtype.itemsize}",
            where=str(path.parent),
            fix="delete the entry",
        )
    if count == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _machine() -> str:
    """This machine and process-id space: two containers may share a host name, never both."""
    return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" when there is none. Tells a process from a later one with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
