"""What nodes are told follows from what is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.controller.builders import NOW, attempt, generation, job, node, view

from luthier.controller.directives import downlink
from luthier.controller.store.records import JobState
from luthier.controller.view import View
from luthier.v1 import node_service_pb2 as pb

S = JobState


def told(seen: View, index: int = 1) -> str:
    """Kind of the message for a node, with the kind of a directive."""
    down = downlink(seen, index)
    if down is None:
        return ""
    kind = str(down.message.WhichOneof("message"))
    return pb.Directive.Kind.Name(down.message.directive.kind) if kind == "directive" else kind


CASES: list[Any] = [
    pytest.param(view(), "", id="it trains"),
    pytest.param(view(nodes=(node(0), node(1, formed=0))), "formed", id="it does not run the generation yet"),
    pytest.param(view(job=job(S.PAUSING), nodes=(node(0), node(1, formed=0))), "SAVE_AND_LEAVE", id="pause while it starts"),
    pytest.param(view(job=job(S.PAUSING)), "SAVE_AND_LEAVE", id="pause"),
    pytest.param(view(job=job(S.PAUSING), nodes=(node(0), node(1, left=True))), "", id="it has left"),
    pytest.param(view(generations=(generation(end_time=NOW),)), "REAP", id="the generation is over"),
    pytest.param(view(generations=(generation(end_time=NOW),), nodes=(node(0), node(1, ready_after=1))), "waiting", id="it was reaped"),
    pytest.param(view(generations=(), nodes=(node(0), node(1, ready_after=-1))), "waiting", id="no generation yet"),
    pytest.param(view(generations=(), job=job(S.PAUSING)), "", id="pause without ranks: the attempt ends next"),
    pytest.param(view(attempt=attempt(end_time=NOW, end_cause="METHOD")), "STOP", id="the attempt ended"),
    pytest.param(view(attempt=attempt(end_time=NOW, end_cause="FINISHED")), "", id="the plan finished: it leaves by itself"),
    pytest.param(view(job=job(plan_finished=True), generations=(generation(end_time=NOW),)), "", id="the plan was accepted"),
    pytest.param(view(attempt=attempt(end_time=NOW, close_time=NOW)), "fenced", id="the attempt is closed"),
    pytest.param(view(job=job(S.CANCELLING)), "", id="cancel: the attempt ends next"),
]


@pytest.mark.parametrize(("seen", "message"), CASES)
def test_the_message_follows_from_the_state(seen: View, message: str) -> None:
    """R1's way down, for every situation of a node."""
    assert told(seen) == message


def test_formed_carries_ranks_and_lineage() -> None:
    """Each node gets its own ranks of the group, and all get the same start."""
    start = {"fence": {"attempt": 1, "generation": 1}, "phase_index": 2, "step": 7, "digest": "d", "path": "p"}
    head = {"fence": {"attempt": 1, "generation": 1}, "index": 1, "digest": "h", "path": "q"}
    formed = generation(2, world_size=4, resume_from=start, journal_head=head, fallbacks=({**start, "step": 5},), address="10.0.0.1:9")
    seen = view(generations=(generation(end_time=NOW), formed), job=job(micro_batch_size=2))
    down = downlink(seen, 1)
    assert down is not None
    message = down.message.formed

    assert (message.fence.attempt, message.fence.generation, message.first_rank, message.local_size, message.world_size) == (1, 2, 2, 2, 4)
    assert (message.resume_from.step, message.resume_from.phase_index, message.fallbacks[0].step) == (7, 2, 5)
    assert (message.journal_head.index, message.address, message.micro_batch_size, message.device) == (1, "10.0.0.1:9", 2, "cpu")


def test_the_key_changes_with_what_is_asked() -> None:
    """A message is sent once per stream and meaning: another generation, or another number of ready nodes, is another meaning."""
    forming = view(generations=(), nodes=(node(0), node(1, ready_after=-1)))
    first, second = downlink(forming, 1), downlink(replace(forming, nodes=(node(0), node(1))), 1)
    assert first is not None
    assert second is not None

    assert first.key != second.key
    assert downlink(forming, 1) == first
