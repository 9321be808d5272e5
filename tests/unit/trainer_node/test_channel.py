"""The rank's end of the channel: never blocking, words that count once, nothing lost that matters."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.trainer_node.channel import BACKLOG, JsonChannel
from luthier.trainer_node.context import NONE, SAVE, SAVE_AND_LEAVE, STOP


@pytest.fixture
def pair() -> Iterator[tuple[JsonChannel, socket.socket]]:
    """A channel and the agent's socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield JsonChannel(ours), theirs


def read_lines(sock: socket.socket, until: str, channel: JsonChannel | None = None) -> list[dict[str, Any]]:
    """Everything up to a message of this kind."""
    data = b""
    while True:
        data += sock.recv(1 << 20)
        if channel is not None:
            channel.flush()
        lines = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
        if lines and lines[-1]["t"] == until:
            return lines


def test_messages_arrive_in_order(pair: tuple[JsonChannel, socket.socket]) -> None:
    """Beats, facts, samples, gauges and the last words."""
    channel, agent = pair
    channel.beat("step", 3)
    channel.fact("phase_started", {"index": 1})
    channel.samples([{"step": 3, "values": {"loss": 0.5}}])
    channel.gauges({"luthier_train_loss": 0.5})
    channel.exit(65, "bad rows")

    assert [
        {"t": "beat", "section": "step", "step": 3},
        {"t": "fact", "fact": "phase_started", "body": {"index": 1}},
        {"t": "samples", "rows": [{"step": 3, "values": {"loss": 0.5}}]},
        {"t": "gauges", "values": {"luthier_train_loss": 0.5}},
        {"t": "exit", "code": 65, "message": "bad rows"},
    ] == read_lines(agent, "exit")


def test_an_agent_that_does_not_read_never_blocks_and_loses_only_what_may_be_lost(pair: tuple[JsonChannel, socket.socket]) -> None:
    """Facts are kept beyond the backlog, samples are dropped."""
    channel, agent = pair
    row = {"step": 1, "values": {"loss": 1.0}, "pad": "x" * 1000}
    for _ in range(10 * BACKLOG // 1000):
        channel.samples([row])
    for index in range(100):
        channel.fact("phase_started", {"index": index})
    channel._send({"t": "exit", "code": 0, "message": ""}, lossy=False)
    lines = read_lines(agent, "exit", channel)

    assert list(range(100)) == [line["body"]["index"] for line in lines if line["t"] == "fact"]
    assert sum(line["t"] == "samples" for line in lines) < 5 * BACKLOG // 1000


def say(agent: socket.socket, word: str, grace: float | None = None) -> None:
    agent.sendall(json.dumps({"t": "control", "word": word, "grace": grace}).encode() + b"\n")


def test_a_word_counts_once_and_the_strongest_wins(pair: tuple[JsonChannel, socket.socket]) -> None:
    """Save is made at one step; two words before a look are their maximum; stop stays."""
    channel, agent = pair

    assert NONE == channel.control()
    say(agent, "save")
    assert [SAVE, NONE] == [channel.control(), channel.control()]
    say(agent, "save_and_leave")
    say(agent, "save")
    assert [SAVE_AND_LEAVE, NONE] == [channel.control(), channel.control()]
    say(agent, "stop")
    assert [STOP, STOP] == [channel.control(), channel.control()]


def test_grace_runs_down(pair: tuple[JsonChannel, socket.socket]) -> None:
    """Unlimited until said; then at most what was said."""
    channel, agent = pair

    assert channel.grace() is None
    say(agent, "save_and_leave", 30.0)
    grace = channel.grace()
    assert grace is not None and 29.0 < grace <= 30.0


def test_a_word_in_pieces_is_read_when_it_is_whole(pair: tuple[JsonChannel, socket.socket]) -> None:
    """Half a line is no word."""
    channel, agent = pair
    agent.sendall(b'{"t": "control", "wo')
    assert NONE == channel.control()
    agent.sendall(b'rd": "save", "grace": null}\n')

    assert SAVE == channel.control()


def test_a_lost_agent_is_no_error(pair: tuple[JsonChannel, socket.socket]) -> None:
    """The lifeline ends the rank, not an exception of the channel."""
    channel, agent = pair
    agent.close()
    channel.fact("note", {"type": "X"})
    channel.beat("step", 1)

    assert NONE == channel.control()
    assert 0 == channel.flush()
