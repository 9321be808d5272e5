"""What a node must be told now, derived from what is stored: R1's way down. Pure.

Nothing here is remembered: after every Hello the same message follows again, until a fact shows that it was obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import duration_pb2

from luthier.controller.store.records import GenerationRecord, JobState
from luthier.controller.view import View
from luthier.v1 import node_service_pb2 as pb

__all__ = ["Down", "candidate_proto", "downlink", "head_proto"]


@dataclass(frozen=True)
class Down:
    """A message and what tells it from others: the same key is not sent twice on one stream."""

    key: tuple[Any, ...]
    message: pb.AttachResponse


def candidate_proto(entry: Mapping[str, Any]) -> pb.CheckpointCandidate:
    """A stored checkpoint candidate as proto."""
    return pb.CheckpointCandidate(
        fence=_fence(entry),
        phase_index=int(entry.get("phase_index", 0)),
        step=int(entry.get("step", 0)),
        digest=str(entry.get("digest", "")),
        path=str(entry.get("path", "")),
    )


def head_proto(entry: Mapping[str, Any]) -> pb.JournalHead:
    """A stored journal head as proto."""
    return pb.JournalHead(
        fence=_fence(entry), index=int(entry.get("index", 0)), digest=str(entry.get("digest", "")), path=str(entry.get("path", ""))
    )


def _fence(entry: Mapping[str, Any]) -> pb.Fence:
    fence = entry.get("fence") or {}
    return pb.Fence(attempt=int(fence.get("attempt", 0)), generation=int(fence.get("generation", 0)))


def _directive(kind: pb.Directive.Kind, attempt: int, generation: int, grace_seconds: float | None = None) -> pb.AttachResponse:
    grace = None
    if grace_seconds is not None:
        grace = duration_pb2.Duration()
        grace.FromMilliseconds(int(grace_seconds * 1000))
    directive = pb.Directive(kind=kind, fence=pb.Fence(attempt=attempt, generation=generation), grace=grace)
    return pb.AttachResponse(directive=directive)


def downlink(view: View, index: int) -> Down | None:
    """The message for node `index` of the newest attempt; None when it has nothing to do but go on."""
    attempt, node, generation = view.attempt, view.node(index), view.generation
    if attempt is None or node is None:
        return None
    if attempt.close_time is not None:
        return Down(("fenced",), pb.AttachResponse(fenced=pb.Fenced(message=f"attempt {attempt.number} is closed")))
    current = generation.number if generation else 0
    if attempt.end_time is not None:
        if attempt.end_cause == "FINISHED":
            return None
        stop = _directive(pb.Directive.STOP, attempt.number, current, 2 * view.timers.stop_grace)
        return Down(("stop", attempt.number), stop)
    if view.job.plan_finished:
        return None
    if generation is not None and generation.end_time is None:
        return _in_generation(view, index, generation)
    if view.job.state not in (JobState.STARTING, JobState.RUNNING):
        return None  # PAUSING and CANCELLING: `decide` ends the attempt, and the stop follows from that
    if generation is not None and node.ready_after < generation.number:
        return Down(("reap", generation.number), _directive(pb.Directive.REAP, attempt.number, generation.number))
    ready = sum(n.ready_after >= current and n.state != "gone" for n in view.nodes)
    waiting = pb.AttachResponse(waiting=pb.AttachResponse.Waiting(ready=ready, total=attempt.num_nodes))
    return Down(("waiting", current, ready, attempt.num_nodes), waiting)


def _in_generation(view: View, index: int, generation: GenerationRecord) -> Down | None:
    node = view.node(index)
    assert node is not None
    if view.job.state == JobState.PAUSING:
        if node.left:
            return None
        return Down(("save_and_leave", generation.number), _directive(pb.Directive.SAVE_AND_LEAVE, generation.attempt, generation.number))
    if view.job.state not in (JobState.STARTING, JobState.RUNNING) or node.formed >= generation.number:
        return None
    return Down(("formed", generation.number), pb.AttachResponse(formed=_formed(view, index, generation)))


def _formed(view: View, index: int, generation: GenerationRecord) -> pb.Formed:
    assert view.attempt is not None
    processes = generation.world_size // view.attempt.num_nodes
    launch_nodes = view.attempt.launch.get("nodes") or [{}]
    return pb.Formed(
        fence=pb.Fence(attempt=generation.attempt, generation=generation.number),
        first_rank=index * processes,
        local_size=processes,
        world_size=generation.world_size,
        address=generation.address,
        resume_from=candidate_proto(generation.resume_from) if generation.resume_from else None,
        journal_head=head_proto(generation.journal_head) if generation.journal_head else None,
        fallbacks=[candidate_proto(f) for f in generation.fallbacks],
        micro_batch_size=view.job.micro_batch_size,
        device=str((launch_nodes[0].get("config") or {}).get("device") or "cpu"),
    )
