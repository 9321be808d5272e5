"""The transition table: every pair of states, and what time is charged to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from luthier.controller.store import states
from luthier.controller.store.records import TERMINAL, JobState
from luthier.errors import IllegalState
from luthier.v1 import job_pb2

# protocol.md, "Job states", one line per source.
LEGAL = {
    "QUEUED": "STARTING PAUSED CANCELLED FAILED",
    "STARTING": "RUNNING QUEUED PAUSING CANCELLING FAILED",
    "RUNNING": "QUEUED PAUSING CANCELLING SUCCEEDED FAILED",
    "PAUSING": "PAUSED QUEUED RUNNING FAILED CANCELLING SUCCEEDED",
    "PAUSED": "QUEUED CANCELLED",
    "CANCELLING": "CANCELLED",
    "SUCCEEDED": "",
    "FAILED": "QUEUED",
    "CANCELLED": "QUEUED",
}
PAIRS = list(itertools.product(JobState, JobState))


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[f"{s}-{t}" for s, t in PAIRS])
def test_every_pair_is_legal_or_refused(source: JobState, target: JobState, job: Any) -> None:
    """Exactly the edges of the protocol's table are legal; all others raise ILLEGAL_STATE with the state."""
    expected = target in LEGAL[source].split()

    assert expected == states.is_legal(source, target)
    if expected:
        states.check(job(state=source), target)
    else:
        with pytest.raises(IllegalState) as caught:
            states.check(job(state=source), target)
        assert "ILLEGAL_STATE" == caught.value.reason
        assert str(source) == caught.value.metadata["state"]


def test_every_edge_says_who_and_when() -> None:
    """Each edge names its writers and its reason, and none is listed twice."""
    pairs = [(edge.source, edge.target) for edge in states.EDGES]

    assert len(pairs) == len(set(pairs))
    assert all(edge.by and edge.when for edge in states.EDGES)


def test_terminal_states_end_but_for_a_retry() -> None:
    """SUCCEEDED has no way out; FAILED and CANCELLED lead to QUEUED only, by a verb."""
    assert frozenset() == states.targets(JobState.SUCCEEDED)
    assert {JobState.QUEUED} == states.targets(JobState.FAILED) == states.targets(JobState.CANCELLED)
    assert {("verb",)} == {edge.by for edge in states.EDGES if edge.source in TERMINAL}


def test_names_are_those_of_the_api() -> None:
    """States and causes are spelled like the proto's enums, and every state has a default cause."""
    assert {str(state) for state in JobState} == set(job_pb2.Job.State.keys()) - {"STATE_UNSPECIFIED"}
    assert list(states.CAUSES) == job_pb2.CauseTime.Cause.keys()[1:]
    assert set(JobState) == set(states.DEFAULT_CAUSE)
    assert set(states.DEFAULT_CAUSE.values()) <= set(states.CAUSES)
