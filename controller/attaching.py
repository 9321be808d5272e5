"""What the messages of a node write: its Hello, its Ready and its facts, each as one transaction. Used by `sessions` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.controller.cause import UNKNOWN_CODE
from luthier.controller.facts import apply_fact, candidate_json, head_json
from luthier.controller.store.api import Transaction
from luthier.controller.store.records import AttemptRecord, JobRecord, JobState, NodeRecord, RankEndRecord
from luthier.v1 import node_service_pb2 as pb

__all__ = ["Stored", "Welcome", "say_hello", "store_messages"]


@dataclass(frozen=True)
class Welcome:
    """Answer to a Hello: `fenced` says why the node must go; else `acked` is the newest fact that is stored."""

    fenced: str = ""
    tenant: str = ""
    job_name: str = ""
    acked: int = 0


@dataclass(frozen=True)
class Stored:
    """What became of a batch: `fenced` says why the node must go; else everything up to `acked` is stored."""

    fenced: str = ""
    acked: int = 0
    facts: tuple[pb.Fact, ...] = ()
    """Those that were new."""


def _open_attempt(tx: Transaction, hello: pb.Hello) -> tuple[JobRecord, AttemptRecord] | str:
    """The job and its attempt while nodes of it may speak; else why they may not."""
    job = tx.job(hello.job_uid)
    if job is None:
        return "the job was deleted"
    attempt = tx.attempt(job.uid, hello.attempt)
    if attempt is None or job.attempt != hello.attempt:
        return f"attempt {hello.attempt} is over; the newest is {job.attempt}"
    if attempt.close_time is not None:
        return f"attempt {hello.attempt} is closed"
    return job, attempt


def say_hello(tx: Transaction, hello: pb.Hello) -> Welcome:
    """Take a node in. The newest incarnation wins; one that was replaced is fenced for ever."""
    found = _open_attempt(tx, hello)
    if isinstance(found, str):
        return Welcome(fenced=found)
    job, attempt = found
    node = next((n for n in tx.nodes(job.uid, attempt.number) if n.index == hello.node), None)
    if node is None:
        return Welcome(fenced=f"attempt {attempt.number} has no node {hello.node}")
    if hello.incarnation in node.superseded:
        return Welcome(fenced="a newer incarnation of this node attached")
    announced: dict[str, Any] = {
        "host": hello.host,
        "metrics_port": hello.metrics_port,
        "handle": hello.handle,
        "versions": dict(hello.versions),
    }
    if node.incarnation == hello.incarnation:
        node = tx.update_node(job.uid, attempt.number, node.index, **announced)
        return Welcome(tenant=job.tenant, job_name=job.name, acked=node.acked)
    formed = _lose_ranks(tx, job, attempt, node) if node.incarnation else 0
    superseded = (*node.superseded, node.incarnation) if node.incarnation else node.superseded
    node = tx.put_node(
        NodeRecord(
            job_uid=job.uid,
            attempt=attempt.number,
            index=node.index,
            incarnation=hello.incarnation,
            superseded=superseded,
            state="attached",
            formed=formed,
            **announced,
        )
    )
    tx.append_event(job.uid, "NODE_ATTACHED", f"node {node.index} attached from {hello.host}", node=node.index)
    if job.state == JobState.STARTING and all(n.state not in ("pending", "gone") for n in tx.nodes(job.uid, attempt.number)):
        tx.update_job(job.uid, waiting_reason="PREFLIGHT", waiting_message="nodes check storage, ports and versions")
    return Welcome(tenant=job.tenant, job_name=job.name)


def _lose_ranks(tx: Transaction, job: JobRecord, attempt: AttemptRecord, node: NodeRecord) -> int:
    """A node came back as another process tree: the ranks that it had in the open generation are gone. Returns that generation, which
    the new incarnation must not join; 0 for none."""
    generations = tx.generations(job.uid, attempt.number)
    if not generations or generations[-1].end_time is not None:
        return 0
    generation = generations[-1]
    share = generation.world_size // attempt.num_nodes
    for rank in range(node.index * share, (node.index + 1) * share):
        tx.insert_rank_end(
            RankEndRecord(
                job_uid=job.uid,
                attempt=attempt.number,
                generation=generation.number,
                node=node.index,
                rank=rank,
                code=UNKNOWN_CODE,
                message="its node started again",
                step=generation.last_step,
                phase_index=generation.phase_index,
                time=tx.now,
            )
        )
    return generation.number


def store_messages(tx: Transaction, hello: pb.Hello, requests: Sequence[pb.AttachRequest]) -> Stored:
    """Store facts and readiness in the order in which they came; nothing of an incarnation that is not the newest."""
    acked, facts = 0, []
    for request in requests:
        found = _open_attempt(tx, hello)
        if isinstance(found, str):
            return Stored(fenced=found)
        job, attempt = found
        node = next((n for n in tx.nodes(job.uid, attempt.number) if n.index == hello.node), None)
        if node is None or node.incarnation != hello.incarnation:
            return Stored(fenced="a newer incarnation of this node attached")
        if request.WhichOneof("message") == "ready":
            _store_ready(tx, attempt, node, request.ready)
            continue
        fact = request.fact
        acked = max(acked, fact.sequence, node.acked)
        if fact.sequence <= node.acked:
            continue  # sent again because its acknowledgement was lost
        apply_fact(tx, job, attempt, node, fact)
        tx.update_node(job.uid, attempt.number, node.index, acked=fact.sequence)
        facts.append(fact)
    return Stored(acked=acked, facts=tuple(facts))


def _store_ready(tx: Transaction, attempt: AttemptRecord, node: NodeRecord, ready: pb.Ready) -> None:
    if attempt.end_time is not None:
        return
    after = ready.last_fence.generation if ready.last_fence.attempt in (0, attempt.number) else 0
    content = {
        "address": ready.address,
        "candidates": [candidate_json(c) for c in ready.candidates],
        "journal_heads": [head_json(h) for h in ready.journal_heads],
        "device": ready.device,
        "num_devices": ready.num_devices,
    }
    state = node.state if node.state == "gone" else "ready"
    tx.update_node(node.job_uid, node.attempt, node.index, ready_after=after, ready=content, state=state)
