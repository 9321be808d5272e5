"""Checkpoints and journals by place: between the messages of Attach, the launch data of ranks, and what lies in the job's store."""

from __future__ import annotations

from pathlib import Path

from luthier.trainer_node.launch import CheckpointRef, JournalRef
from luthier.v1 import node_service_pb2 as pb

__all__ = ["candidate_of", "checkpoint_ref", "head_of", "journal_ref", "scan_store"]


def checkpoint_ref(message: pb.CheckpointCandidate) -> CheckpointRef:
    """For a rank's launch data."""
    fence = message.fence
    return CheckpointRef(fence.attempt, fence.generation, message.phase_index, message.step, message.digest, message.path)


def journal_ref(message: pb.JournalHead) -> JournalRef:
    """For a rank's launch data."""
    return JournalRef(message.fence.attempt, message.fence.generation, message.index, message.digest, message.path)


def candidate_of(ref: CheckpointRef) -> pb.CheckpointCandidate:
    """For `Ready`."""
    fence = pb.Fence(attempt=ref.attempt, generation=ref.generation)
    return pb.CheckpointCandidate(fence=fence, phase_index=ref.phase_index, step=ref.step, digest=ref.digest, path=ref.path)


def head_of(ref: JournalRef) -> pb.JournalHead:
    """For `Ready`."""
    fence = pb.Fence(attempt=ref.attempt, generation=ref.generation)
    return pb.JournalHead(fence=fence, index=ref.index, digest=ref.digest, path=ref.path)


def scan_store(prefix: Path) -> tuple[list[pb.CheckpointCandidate], list[pb.JournalHead]]:
    """Verified checkpoints and journal heads below the job's prefix."""
    from luthier.trainer_node.lineage import scan_checkpoints, scan_journals

    return [candidate_of(ref) for ref in scan_checkpoints(prefix)], [head_of(ref) for ref in scan_journals(prefix)]
