"""Log bytes from offsets: windows, rates, last lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.trainer_node import logtail
from luthier.trainer_node.logtail import LogTail, last_lines


def test_bytes_are_sent_once_and_again_after_a_new_stream(tmp_path: Path) -> None:
    """Sent bytes are not repeated, until the stream is new: then from what was acknowledged."""
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"abc")
    tail = LogTail()
    tail.follow(0, path)

    assert [(0, 0, b"abc")] == [(p.rank, p.offset, p.data) for p in tail.pieces()]
    path.write_bytes(b"abcdef")
    assert [(3, b"def")] == [(p.offset, p.data) for p in tail.pieces()]
    tail.acknowledge(0, 3)
    tail.restart()
    assert [(3, b"def")] == [(p.offset, p.data) for p in tail.pieces()]
    assert tail.pending()
    tail.acknowledge(0, 6)
    assert not tail.pending()


def test_an_acknowledgement_that_comes_while_bytes_are_being_sent_skips_nothing(tmp_path: Path) -> None:
    """The acknowledgement of a piece may arrive before its sender goes on."""
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"abc")
    tail = LogTail()
    tail.follow(0, path)
    for piece in tail.pieces():
        tail.acknowledge(0, piece.offset + len(piece.data))
    path.write_bytes(b"abcdef")

    assert [(3, b"def")] == [(p.offset, p.data) for p in tail.pieces()]


def test_what_the_controller_has_already_is_not_sent(tmp_path: Path) -> None:
    """An acknowledgement beyond what this incarnation sent moves it forward."""
    path = tmp_path / "agent.log"
    path.write_bytes(b"0123456789")
    tail = LogTail()
    tail.follow(None, path)
    tail.acknowledge(None, 8)

    assert [(None, 8, b"89")] == [(p.rank, p.offset, p.data) for p in tail.pieces()]


def test_a_stream_waits_for_acknowledgements(tmp_path: Path) -> None:
    """No more than a window is under way."""
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"x" * (logtail.WINDOW * 2))
    tail = LogTail()
    tail.follow(0, path)

    assert logtail.WINDOW == sum(len(p.data) for p in tail.pieces())
    assert [] == list(tail.pieces())


def test_a_node_is_limited_in_bytes_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that writes without end does not fill the line."""
    monkeypatch.setattr(logtail, "RATE", 1000)
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"x" * 500_000)
    tail = LogTail()
    tail.follow(0, path)

    assert logtail.CHUNK == sum(len(p.data) for p in tail.pieces())


def test_a_missing_file_has_no_bytes(tmp_path: Path) -> None:
    """A rank that has not written yet is no error."""
    tail = LogTail()
    tail.follow(0, tmp_path / "missing")

    assert [] == list(tail.pieces())
    assert [] == last_lines(tmp_path / "missing", 50)


def test_last_lines_of_a_large_file(tmp_path: Path) -> None:
    """The last lines are whole, also when the file is larger than what is read."""
    path = tmp_path / "rank-0.log"
    path.write_text("".join(f"line {i}\n" for i in range(20_000)))

    assert [f"line {i}" for i in range(19_950, 20_000)] == last_lines(path, 50)
    path.write_text("one\ntwo\n")
    assert ["one", "two"] == last_lines(path, 50)
