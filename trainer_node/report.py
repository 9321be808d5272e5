"""What ranks say becomes facts, samples and metrics; the agent remembers of it what its own decisions need."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format

from luthier.trainer_node.attach import SampleBuffer
from luthier.trainer_node.hang import HangWatch
from luthier.trainer_node.metrics import NodeMetrics
from luthier.trainer_node.ranks import LocalRank
from luthier.trainer_node.spool import Spool
from luthier.v1 import node_service_pb2 as pb

__all__ = ["Report"]

_log = logging.getLogger(__name__)

SECTION_SECONDS = 30.0
"""A fact about section times is made so often."""

_WALL = {"checkpoint": "checkpoint_stall", "evaluate": "evaluating", "setup": "starting", "waiting": "productive"}
_PHASE = {"evaluate": "evaluating", "generate": "generating"}


class Report:
    """Of one node over its generations. `wake` says that there is something to send."""

    def __init__(self, attempt: int, spool: Spool, samples: SampleBuffer, metrics: NodeMetrics, wake: Callable[[], None]) -> None:
        self.fence = (attempt, 0)
        self.finished = False
        """A PlanFinished of this node is on its way or stored."""
        self.last_save_seconds = 0.0
        """From the request to the manifest; 0 before the first save."""
        self.phase_index = 0
        self._phase_kind = ""
        self._spool = spool
        self._samples = samples
        self._metrics = metrics
        self._wake = wake
        self._hang: HangWatch | None = None
        self._seconds: dict[str, float] = {}
        self._sent_sections = time.monotonic()
        self._charged = time.monotonic()
        self._wall_cause = "starting"
        self._unknown: set[str] = set()

    def start_generation(self, generation: int, hang: HangWatch) -> None:
        """Messages belong to this generation from now on."""
        self.fence = (self.fence[0], generation)
        self._hang = hang
        self._charge("restarting" if generation > 1 else "starting")

    def fact(self, name: str, body: Mapping[str, Any]) -> pb.Fact:
        """Store a fact of the agent or of a rank."""
        try:
            fact = self._spool.add(self.fence, name, body)
        except ValueError as error:
            _log.error("a fact was refused: %s", error)
            fact = self._spool.add(self.fence, "note", {"type": "BAD_FACT", "message": str(error), "severity": "error"})
        self._wake()
        return fact

    def hear(self, rank: LocalRank, message: Mapping[str, Any]) -> None:
        """One message of a rank."""
        kind = message["t"]
        if kind == "beat":
            self._beat(rank, message)
        elif kind == "fact":
            self._rank_fact(rank, str(message["fact"]), message["body"])
        elif kind == "samples":
            for body in message["rows"]:
                try:
                    self._samples.add(self.fence, json_format.ParseDict(body, pb.Samples.Row()))
                except json_format.ParseError as error:
                    self._complain(f"a sample of rank {rank.rank} is malformed: {error}")
            self._wake()
        elif kind == "gauges":
            for name in self._metrics.receive(message["values"]):
                self._complain(f"rank {rank.rank} sent a metric that is not declared: {name}")

    def ended(self, rank: LocalRank, node_lines: list[str]) -> None:
        """A rank is gone: the fact of its end."""
        assert rank.end is not None
        body = {
            "rank": rank.rank,
            "code": rank.end.code,
            "message": rank.end.message,
            "section": rank.section,
            "step": str(rank.step),
            "logLines": node_lines,
            "hung": rank.killed_as == "hung",
            "reaped": rank.killed_as == "reaped",
            "phaseIndex": rank.phase_index,
        }
        self.fact("rank_exited", body)
        if rank.end.code not in (0, 75) and rank.killed_as != "reaped":
            reason = "hung" if rank.killed_as == "hung" else "signal" if rank.end.code < 0 else f"exit_{rank.end.code}"
            self._metrics.record("luthier_train_restarts_total", 1, reason=reason)

    def flush_sections(self, *, force: bool = False) -> None:
        """Seconds by section, every so often and at the end."""
        now = time.monotonic()
        self._charge(self._wall_cause)
        if not self._seconds or not (force or now - self._sent_sections >= SECTION_SECONDS):
            return
        self._sent_sections = now
        self.fact("section_times", {"seconds": {name: round(seconds, 3) for name, seconds in self._seconds.items()}})
        self._seconds = {}

    def _beat(self, rank: LocalRank, message: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if self._hang is not None and rank.alive:
            silence = self._hang.silence(rank.rank, now)
            self._hang.beat(rank.rank, message["section"], now)
            if rank.local_rank == 0:
                self._seconds[rank.section] = self._seconds.get(rank.section, 0.0) + silence
                self._metrics.record("luthier_train_section_seconds_total", silence, section=rank.section)
                if self._phase_kind:
                    self._metrics.record("luthier_train_phase_seconds_total", silence, phase=self._phase_kind)
        rank.section, rank.step, rank.phase_index = message["section"], int(message["step"]), self.phase_index
        if rank.local_rank == 0:
            self._charge(_WALL.get(rank.section) or _PHASE.get(self._phase_kind, "productive"))

    def _rank_fact(self, rank: LocalRank, name: str, body: Mapping[str, Any]) -> None:
        if name == "plan_finished":
            self.flush_sections(force=True)
        fact = self.fact(name, body)
        kind = fact.WhichOneof("fact")
        if kind == "phase_started":
            self.phase_index, self._phase_kind = fact.phase_started.index, fact.phase_started.kind
            rank.phase_index = self.phase_index
        elif kind == "checkpoint_committed":
            committed = fact.checkpoint_committed
            self.last_save_seconds = committed.stall_seconds + committed.persist_seconds
            self._metrics.record("luthier_train_checkpoint_save_seconds", self.last_save_seconds)
            self._metrics.record("luthier_train_checkpoint_last_success_timestamp_seconds", time.time())
            self._metrics.record("luthier_train_checkpoint_bytes", committed.size_bytes)
        elif kind == "plan_finished":
            self.finished = True

    def _charge(self, cause: str) -> None:
        """Charge the time since the last call to the cause that held, and go on with `cause`."""
        now = time.monotonic()
        self._metrics.record("luthier_train_wall_seconds_total", now - self._charged, cause=self._wall_cause)
        self._charged, self._wall_cause = now, cause

    def _complain(self, text: str) -> None:
        if text not in self._unknown and len(self._unknown) < 100:
            self._unknown.add(text)
            _log.warning("%s", text)
