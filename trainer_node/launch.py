"""What a node and a rank are told, and the messages between agent, zygote and rank: plain JSON, no torch.

* The executor writes `NodeLaunch` to `launch.json` (mode 0600) in the node's folder and starts the agent on that folder.
* The agent asks the zygote for ranks over a unix socket: one JSON line `{"op": "fork", "launch": RankLaunch}` with four descriptors
  (channel, lifeline, log file, listener or /dev/null); the zygote answers `{"pid": n}` and later `{"pid": n, "status": waitpid status}`.
* Agent and rank talk over the channel (a socket pair) in JSON lines; see `RankMessage` and `AgentMessage`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

__all__ = ["AgentMessage", "CheckpointRef", "JournalRef", "NodeLaunch", "RankDescriptors", "RankLaunch", "RankMessage", "Section"]

Section = Literal["setup", "step", "checkpoint", "shard", "evaluate", "waiting"]
"""What a rank is doing; each has its own hang time-out."""


@dataclass(frozen=True)
class NodeLaunch:
    """One node of one attempt."""

    job_uid: str
    job_name: str
    tenant: str
    attempt: int
    node: int
    num_nodes: int
    processes: int
    """Ranks on this node."""
    controller: str
    """host:port of the controller's gRPC endpoint."""
    token: str
    """Token of the attempt."""
    store_root: str
    """Root of the store; the job's prefix is `<store_root>/<tenant>/<job_uid>`."""
    spec: Mapping[str, Any]
    """Resolved `JobSpec` as plain JSON (`JobSpec.model_validate` reads it)."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Every address of the spec -> local path."""
    host: str = "127.0.0.1"
    """Address that other nodes reach this one by."""
    device: str = "cpu"
    devices: tuple[int, ...] = ()
    """Accelerator indices of this node."""
    threads_per_rank: int = 1
    zygote_dir: str = ""
    """Folder of the shared zygote's socket and lock; empty: the agent owns a zygote of its own."""
    zygote_idle_seconds: float = 600.0
    cache_dir: str = ""
    """Shared folder for token caches."""
    local: bool = True
    """All nodes share this machine."""

    @property
    def prefix(self) -> Path:
        """The job's prefix in the store."""
        return Path(self.store_root) / self.tenant / self.job_uid

    def write(self, path: Path) -> None:
        """Write as JSON with mode 0600."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, path: Path) -> NodeLaunch:
        """Read what `write` wrote."""
        data = json.loads(path.read_text())
        data["devices"] = tuple(data["devices"])
        return cls(**data)


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint by its place: fence, phase, step, manifest digest and path below the job's prefix."""

    attempt: int
    generation: int
    phase_index: int
    step: int
    digest: str
    path: str


@dataclass(frozen=True)
class JournalRef:
    """The newest journal entry to replay: fence, index of the phase, digest and path below the job's prefix."""

    attempt: int
    generation: int
    index: int
    digest: str
    path: str


@dataclass(frozen=True)
class RankLaunch:
    """One rank of one generation."""

    node: NodeLaunch
    generation: int
    rank: int
    local_rank: int
    world_size: int
    address: str
    """host:port of the group's store; rank 0 is handed the listening descriptor."""
    node_dir: str
    resume_from: CheckpointRef | None = None
    fallbacks: tuple[CheckpointRef, ...] = ()
    journal_head: JournalRef | None = None
    micro_batch_size: int = 0
    """Chosen after a memory error; 0: as planned."""
    device: str = "cpu"
    group_timeout_seconds: float = 600.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RankLaunch:
        node = dict(data["node"])
        node["devices"] = tuple(node["devices"])
        resume, head = data.get("resume_from"), data.get("journal_head")
        return cls(
            **{
                **data,
                "node": NodeLaunch(**node),
                "resume_from": CheckpointRef(**resume) if resume else None,
                "fallbacks": tuple(CheckpointRef(**f) for f in data.get("fallbacks", ())),
                "journal_head": JournalRef(**head) if head else None,
            }
        )

    @property
    def fence(self) -> str:
        """`a<attempt>g<generation>`: the folder that everything of this generation lies under."""
        return f"a{self.node.attempt}g{self.generation}"


@dataclass(frozen=True)
class RankDescriptors:
    """What a rank is handed by its agent; `listener` is None except for rank 0 of a group."""

    channel: int
    lifeline: int
    log: int
    listener: int | None


class RankMessage(TypedDict, total=False):
    """Rank to agent, one JSON object a line.

    `beat`: section, step. `fact`: fact = field name of the oneof in `luthier.v1.Fact`, body = that message in proto JSON.
    `samples`: rows = list of `luthier.v1.Samples.Row` in proto JSON. `exit`: code, message (last line before the rank leaves).
    `gauges`: values = metric name -> number for the exporter.
    """

    t: Literal["beat", "fact", "samples", "exit", "gauges"]
    section: Section
    step: int
    fact: str
    body: dict[str, Any]
    rows: list[dict[str, Any]]
    code: int
    message: str
    values: dict[str, float]


class AgentMessage(TypedDict, total=False):
    """Agent to rank: the control word to contribute from now on. `grace` in seconds, None for unlimited."""

    t: Literal["control"]
    word: Literal["none", "save", "save_and_leave", "stop"]
    grace: float | None
