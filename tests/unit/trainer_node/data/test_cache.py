"""The token cache: published whole, written by one, rid of the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from luthier.errors import DataError, StorageError
from luthier.trainer_node.data import cache
from luthier.trainer_node.data.cache import CacheEntry, CacheWriter, Lease, open_or_build

KEY = "k" * 64


def build(writer: CacheWriter) -> None:
    """Two rows, the second one from raw row 3."""
    writer.append([np.array([1, 2, 3], dtype=np.int32)], [np.array([False, True, True])], [0], [[0.5]])
    writer.append([np.array([4, 5], dtype=np.int32)], [np.array([True, True])], [3], [[1.5]])
    writer.finish(raw_rows=4, column_names=["w"], counts={"ok": 2, "malformed": 2}, offenders=["f:2: malformed"], note="n")


def opened(directory: Path, make: Callable[[CacheWriter], None] = build, *, leader: bool = True, timeout: float = 20.0) -> CacheEntry:
    """The entry of these tests."""
    return open_or_build(directory, KEY, make, leader=leader, timeout_seconds=timeout)


def refuse(_: CacheWriter) -> None:
    """A builder that must not be called."""
    raise AssertionError("built again")


LEADER = """
import os, sys, time
from pathlib import Path
import numpy as np
from luthier.trainer_node.data.cache import open_or_build

folder = Path(sys.argv[1])

def build(writer):
    (folder / f"built-by-{os.getpid()}").touch()
    time.sleep(0.3)  # others meet the lease
    writer.append([np.array([1, 2, 3], dtype=np.int32)], [np.array([False, True, True])], [0], [[]])
    writer.finish(raw_rows=1, column_names=[], counts={"ok": 1}, offenders=[], note="")

print("ready", flush=True)
sys.stdin.readline()
print(open_or_build(folder, "k" * 64, build, leader=True, timeout_seconds=30).tokens.tolist())
"""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Tokens, flags, index, columns and meta data, memory-mapped."""
    entry = opened(tmp_path)

    assert isinstance(entry.tokens, np.memmap)
    assert ([1, 2, 3, 4, 5], [False, True, True, True, True]) == (entry.tokens.tolist(), entry.learned.tolist())
    assert ([3, 2], [0, 3], [0, 3, 5]) == (entry.lengths.tolist(), entry.origins.tolist(), entry.starts.tolist())
    assert [[0.5], [1.5]] == entry.columns.tolist()
    assert (2, 4, ("w",), "n") == (entry.meta.rows, entry.meta.raw_rows, entry.meta.column_names, entry.meta.note)
    assert ({"ok": 2, "malformed": 2}, ("f:2: malformed",)) == (entry.verdicts.counts, entry.verdicts.offenders)


def test_a_published_entry_is_never_built_again(tmp_path: Path) -> None:
    """Nor are leases or drafts left behind."""
    opened(tmp_path)
    opened(tmp_path, refuse)

    assert [KEY] == [path.name for path in (tmp_path / KEY[:2]).iterdir()]


def test_a_build_that_fails_publishes_nothing(tmp_path: Path) -> None:
    """The next one starts anew."""

    def broken(writer: CacheWriter) -> None:
        writer.append([np.array([1], dtype=np.int32)], [np.array([True])], [0], [[]])
        raise DataError("bad row")

    with pytest.raises(DataError, match="bad row"):
        opened(tmp_path, broken)

    assert [] == list((tmp_path / KEY[:2]).iterdir())
    assert 2 == opened(tmp_path).meta.rows


def test_concurrent_leaders_build_once(tmp_path: Path) -> None:
    """Real processes: one writes, the others wait for it and read the same."""
    command = [sys.executable, "-P", "-c", LEADER, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
    answers = [process.communicate("go\n", timeout=60)[0] for process in processes]

    assert ["[1, 2, 3]\n"] * 4 == answers
    assert 1 == len(list(tmp_path.glob("built-by-*")))


def test_the_lease_of_a_dead_process_is_broken(tmp_path: Path) -> None:
    """A writer that was killed leaves its lease; the next leader does not wait for it."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom luthier.trainer_node.data.cache import Lease\n"
        "assert Lease(Path(sys.argv[1])).acquire()\nos.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / KEY[:2] / f"{KEY}.lease"
    path.parent.mkdir()
    subprocess.run([sys.executable, "-P", "-c", program, str(path)], check=False)
    assert path.exists()

    started = time.monotonic()
    assert 2 == opened(tmp_path).meta.rows
    assert time.monotonic() - started < 5


def test_a_lease_of_another_machine_is_broken_when_it_stands_still(tmp_path: Path) -> None:
    """Nobody can ask for its process; it counts as dead after a time without a touch."""
    lease = Lease(tmp_path / "x.lease")
    (tmp_path / "x.lease").write_text(json.dumps({"machine": "elsewhere", "pid": 1, "start": "1"}))

    assert lease.changed(0.0)
    lease.break_if_dead(cache.STALE_SECONDS - 1)
    assert not lease.acquire()
    lease.break_if_dead(cache.STALE_SECONDS + 1)
    assert lease.acquire()


def test_a_touched_lease_is_alive(tmp_path: Path) -> None:
    """Signs of life of the holder restart the clock."""
    path = tmp_path / "x.lease"
    assert Lease(path).acquire()
    watcher = Lease(path)

    assert watcher.changed(0.0)
    assert not watcher.changed(10.0)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    assert watcher.changed(50.0)
    watcher.break_if_dead(50.0 + cache.STALE_SECONDS - 1)
    assert path.exists()


def test_others_wait_for_the_leader(tmp_path: Path) -> None:
    """A rank that does not lead gets the entry as soon as it is published, and shows signs of life meanwhile."""
    beats: list[float] = []
    timer = threading.Timer(0.3, lambda: opened(tmp_path))
    timer.start()
    entry = open_or_build(tmp_path, KEY, refuse, leader=False, timeout_seconds=20, beat=lambda: beats.append(time.monotonic()))
    timer.join()

    assert 2 == entry.meta.rows
    assert beats


def test_waiting_ends_with_what_to_look_at(tmp_path: Path) -> None:
    """Without any sign of a writer the message names node 0 and the folder."""
    with pytest.raises(DataError, match="node 0") as caught:
        opened(tmp_path, refuse, leader=False, timeout=0.1)

    assert "cache folder" in caught.value.fix


def test_a_damaged_entry_is_rebuilt_by_the_leader(tmp_path: Path) -> None:
    """Others refuse it; nothing ever trains on a short file."""
    opened(tmp_path)
    tokens = tmp_path / KEY[:2] / KEY / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-1])

    with pytest.raises(StorageError, match="tokens.bin has 19 bytes, not 20"):
        opened(tmp_path, refuse, leader=False)
    assert [1, 2, 3, 4, 5] == opened(tmp_path).tokens.tolist()


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """The folder is named."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="the token cache cannot be written"):
        opened(tmp_path / "file")
