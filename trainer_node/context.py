"""What a rank's plan runs in: its launch data, the channel to its agent, and the process group. No torch at import.

`rank.py` makes the context; `plan.run(context)` uses it and returns the job's result as plain JSON (`luthier.v1.Result`), or raises
`LeaveRequested` (75), a `JobEnd` with its exit code, or any other exception (70; 72 when a collective raised it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from luthier.spec.models import JobSpec
from luthier.trainer_node.launch import RankLaunch, Section

__all__ = ["ControlWord", "Group", "LeaveRequested", "PeerLost", "RankChannel", "RankContext"]

ControlWord = Literal[0, 1, 2, 3]
"""none < save < save-and-leave < stop; the maximum over ranks holds for all."""

NONE: ControlWord = 0
SAVE: ControlWord = 1
SAVE_AND_LEAVE: ControlWord = 2
STOP: ControlWord = 3


class LeaveRequested(Exception):
    """All ranks agreed to leave (exit 75). `saved` tells whether a checkpoint was committed first."""

    def __init__(self, saved: bool) -> None:
        super().__init__("left on request")
        self.saved = saved


class PeerLost(Exception):
    """A collective raised: a consequence of another rank's end, never a cause (exit 72)."""


class RankChannel(Protocol):
    """The line to the agent. Writing never blocks training; a lost agent ends the rank through its lifeline."""

    def beat(self, section: Section, step: int) -> None:
        """A sign of life; also names what the rank does from now on."""
        ...

    def fact(self, name: str, body: Mapping[str, Any]) -> None:
        """A fact: field name of the oneof in `luthier.v1.Fact`, and the message as proto JSON."""
        ...

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of `luthier.v1.Samples.Row` as proto JSON."""
        ...

    def gauges(self, values: Mapping[str, float]) -> None:
        """Numbers for the node's exporter by metric name, see `luthier.trainer_node.metrics`."""
        ...

    def control(self) -> ControlWord:
        """The word this rank contributes now; never blocks."""
        ...

    def grace(self) -> float | None:
        """Seconds left to leave, None for unlimited."""
        ...


class Group(Protocol):
    """The process group of a generation; for one rank everything is the identity. Collectives raise `PeerLost`."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def backend(self) -> str:
        """ "gloo", "nccl" or "none"."""
        ...

    def sum_ints(self, values: Sequence[int]) -> list[int]: ...
    def max_ints(self, values: Sequence[int]) -> list[int]: ...
    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """In float64."""
        ...

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        ...

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        ...

    def barrier(self) -> None: ...


@dataclass(frozen=True)
class RankContext:
    """Everything a plan may use of its surroundings."""

    launch: RankLaunch
    spec: JobSpec
    channel: RankChannel
    group: Group
    device: str
    """torch device of this rank, "cpu" or "cuda:<n>"."""
