"""Facts wait here until the controller has stored them: on disk, so that they survive the agent.

A fact's time is kept on the monotonic clock of the machine (equal for all processes of one boot) and sent as an age. A new incarnation
of the node sends what an earlier one could not, under its own sequence numbers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from luthier.v1 import node_service_pb2 as pb

__all__ = ["Spool"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_COMPACT_LINES = 500
_NAMES = frozenset(f.name for f in pb.Fact.DESCRIPTOR.oneofs_by_name["fact"].fields)


@dataclass(frozen=True)
class _Entry:
    sequence: int
    time: float
    fact: pb.Fact


class Spool:
    """Facts of one node in order. Not thread-safe: it belongs to the agent's loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        self._entries: list[_Entry] = []
        self._sequence = 0
        self.acknowledged = 0
        for record in self._load():
            self._append(record)
        self._rewrite()
        self._file = path.open("a")
        self._lines = len(self._entries)

    def add(self, fence: tuple[int, int], name: str, body: Mapping[str, Any]) -> pb.Fact:
        """Store a fact (field name of the oneof, message as proto JSON).

        Raises ValueError when the fact is not one of `luthier.v1.Fact`.
        """
        record = {"fence": list(fence), "time": time.monotonic(), "boot": self._boot, "fact": name, "body": dict(body)}
        entry = self._append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._lines += 1
        return entry.fact

    def acknowledge(self, sequence: int) -> None:
        """Facts up to `sequence` are stored by the controller."""
        if sequence <= self.acknowledged:
            return
        self.acknowledged = min(sequence, self._sequence)
        self._entries = [e for e in self._entries if e.sequence > sequence]
        if not self._entries or self._lines - len(self._entries) > _COMPACT_LINES:
            self._file.close()
            self._rewrite()
            self._file = self._path.open("a")
            self._lines = len(self._entries)

    def after(self, sequence: int) -> list[pb.Fact]:
        """Facts with a larger sequence number, with their present age."""
        now = time.monotonic()
        facts = []
        for entry in self._entries:
            if entry.sequence > sequence:
                entry.fact.age.FromNanoseconds(max(0, int((now - entry.time) * 1e9)))
                facts.append(entry.fact)
        return facts

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        self._file.close()

    def _append(self, record: Mapping[str, Any]) -> _Entry:
        fact = pb.Fact()
        if record["fact"] not in _NAMES:
            raise ValueError(f"{record['fact']!r} is not a fact")
        try:
            json_format.ParseDict({record["fact"]: record["body"]}, fact)
        except json_format.ParseError as error:
            raise ValueError(f"the fact {record['fact']!r} is malformed: {error}") from error
        self._sequence += 1
        fact.sequence = self._sequence
        fact.fence.attempt, fact.fence.generation = record["fence"]
        entry = _Entry(self._sequence, record["time"] if record["boot"] == self._boot else time.monotonic(), fact)
        self._entries.append(entry)
        return entry

    def _load(self) -> list[dict[str, Any]]:
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:  # the machine stopped in the middle of the last line
                break
        return records

    def _rewrite(self) -> None:
        records = [
            {
                "fence": [e.fact.fence.attempt, e.fact.fence.generation],
                "time": e.time,
                "boot": self._boot,
                "fact": (name := str(e.fact.WhichOneof("fact"))),
                "body": json_format.MessageToDict(getattr(e.fact, name)),
            }
            for e in self._entries
        ]
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(json.dumps(record) + "\n" for record in records))
        fresh.rename(self._path)
