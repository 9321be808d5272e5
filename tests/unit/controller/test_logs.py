"""Log files: idempotent appends, whole lines, and followers that are woken."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.controller import logs as module
from luthier.controller.logs import LogQuery, LogStore


def append(store: LogStore, offset: int, data: bytes, *, rank: int | None = None) -> int:
    return store.append("t", "u", 1, 0, rank, offset, data)


async def read(store: LogStore, query: LogQuery, ended: bool = True) -> bytes:
    """All bytes of all streams."""

    async def over() -> bool:
        return ended

    return b"".join([piece.data async for piece in store.stream("t", "u", query, over)])


def test_appends_are_idempotent_by_offset(tmp_path: Path) -> None:
    """Repeated and overlapping chunks change nothing; a gap is refused with the place to go on."""
    store = LogStore(tmp_path)
    answers = [append(store, 0, b"hello "), append(store, 0, b"hello "), append(store, 3, b"lo world"), append(store, 50, b"gap")]

    assert [6, 6, 11, 11] == answers
    assert b"hello world" == (tmp_path / "t" / "u" / "logs" / "a1" / "n0.log").read_bytes()
    assert (11, 0) == (store.end("t", "u", 1, 0, None), store.end("t", "u", 1, 7, 3))


def test_ranks_have_files_of_their_own(tmp_path: Path) -> None:
    """Names carry node and global rank."""
    store = LogStore(tmp_path)
    store.append("t", "u", 2, 1, 3, 0, b"x")

    assert ["logs/a2/n1-r3.log"] == [str(p.relative_to(tmp_path / "t" / "u")) for p in tmp_path.rglob("*.log")]


@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=1, max_size=300), seed=st.integers(0, 10_000))
def test_any_order_of_chunks_ends_in_the_stream(tmp_path_factory: pytest.TempPathFactory, data: bytes, seed: int) -> None:
    """A sender that always goes on where it is told delivers every byte once, whatever was sent twice."""
    store, rng = LogStore(tmp_path_factory.mktemp("logs")), random.Random(seed)
    end = 0
    while end < len(data):
        start = rng.randint(max(0, end - 20), min(end + 3, len(data)))
        end = append(store, start, data[start : start + rng.randint(1, 60)])

    assert data == (store.folder("t", "u") / "a1" / "n0.log").read_bytes()


def test_concurrent_appends_of_one_stream(tmp_path: Path) -> None:
    """Two sessions that send the same bytes at once write them once."""
    store, data = LogStore(tmp_path), b"".join(b"line %d\n" % n for n in range(2000))

    def send() -> None:
        for start in range(0, len(data), 97):
            append(store, start, data[start : start + 97])

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert data == (store.folder("t", "u") / "a1" / "n0.log").read_bytes()


@pytest.mark.asyncio
async def test_chunks_hold_whole_lines_and_whole_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks end at line ends; a line longer than a chunk is cut between characters."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    store = LogStore(tmp_path)
    text = "short\nlonger line\n" + "é€😀" * 20 + "\nend"
    append(store, 0, text.encode())

    async def over() -> bool:
        return True

    pieces = [piece.data async for piece in store.stream("t", "u", LogQuery(attempt=1), over)]

    assert text.encode() == b"".join(pieces)
    assert all(len(piece) <= 16 for piece in pieces)
    assert text == "".join(piece.decode() for piece in pieces)


@pytest.mark.parametrize("lines", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("text", ["a\nb\nc\n", "a\nb\nc", "\n\n\n", "one", "x" * 50 + "\ny\n" + "z" * 40], ids=range(5))
def test_tails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int, text: str) -> None:
    """The last lines are what `tail -n` prints, also where a line spans blocks."""
    monkeypatch.setattr(module, "_TAIL_BLOCK", 8)
    path = tmp_path / "log"
    path.write_text(text)

    assert "".join(text.splitlines(keepends=True)[-lines:]) == text[module._tail(path, lines) :]


@pytest.mark.asyncio
async def test_followers_are_woken_by_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower gets bytes as soon as they are written, from any thread, without looking periodically."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 3600.0)
    store, over = LogStore(tmp_path), False

    async def ended() -> bool:
        return over

    stream = store.stream("t", "u", LogQuery(attempt=1, follow=True), ended)
    async with asyncio.timeout(10):
        for n in range(5):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            await asyncio.to_thread(append, store, n * 2, b"%d\n" % n)
            assert b"%d\n" % n == (await waiting).data
        over = True
        last = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        store.notify("u")

        assert None is await last
    assert {} == dict(store._followers)


@pytest.mark.asyncio
async def test_nothing_but_log_files_is_read(tmp_path: Path) -> None:
    """Other files in the folder, and attempts that were not asked for, stay out."""
    store = LogStore(tmp_path)
    append(store, 0, b"yes\n")
    folder = store.folder("t", "u")
    (folder / "a1" / "notes.txt").write_text("no")
    (folder / "a2").mkdir()
    (folder / "a2" / "n0.log").write_text("later\n")
    (folder / "b1").mkdir()

    assert b"yes\n" == await read(store, LogQuery(attempt=1))
    assert b"yes\nlater\n" == await read(store, LogQuery(attempt=1, later=True))
    assert b"" == await read(store, LogQuery(attempt=3))
