"""Runs a whole plan, as a rank does, with a recording channel.

Arguments: spec (JobSpec as JSON), inputs, store, attempt, generation, resume_from, fallbacks, journal_head (as JSON, or absent),
poison_step (the loss of that step is infinite), write_in_background,
die_at ({"rank", "step", "section"}: kill -9 of that rank when it begins that step, or that section after it),
say ({"rank", "step", "word", "grace"}: control word at a step).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.methods.api import Loss, Term
from luthier.methods.objectives.nll import Nll
from luthier.spec.models import JobSpec
from luthier.trainer_node import checkpoint
from luthier.trainer_node.context import LeaveRequested, RankContext
from luthier.trainer_node.launch import CheckpointRef, JournalRef, NodeLaunch, RankLaunch
from luthier.trainer_node.plan import run_plan


class Recorder:
    """A channel that remembers, and acts at a chosen step."""

    def __init__(self, rank: int, arguments: Mapping[str, Any]) -> None:
        self.rank = rank
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.rows: list[dict[str, Any]] = []
        self.first_step: float | None = None
        self.step = -1
        self._die, self._say = arguments.get("die_at"), arguments.get("say")
        self._word, self._said, self._grace = 0, False, None

    def beat(self, section: str, step: int) -> None:
        if self._die and self._die["rank"] == self.rank and step == self._die["step"] and section == self._die.get("section", "step"):
            os.kill(os.getpid(), signal.SIGKILL)
        if section != "step":
            return
        self.step = step
        if step == 1 and self.first_step is None:
            self.first_step = time.monotonic()
        if self._say and self._say["rank"] == self.rank and step >= self._say["step"] and not self._said:
            self._said, self._word, self._grace = True, self._say["word"], self._say.get("grace")

    def fact(self, name: str, body: Mapping[str, Any]) -> None:
        self.facts.append((name, dict(body)))

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows += [dict(row) for row in rows]

    def gauges(self, values: Mapping[str, float]) -> None:
        pass

    def control(self) -> Any:
        word, self._word = self._word, 0
        return word

    def grace(self) -> float | None:
        return self._grace


def poison(channel: Recorder, step: int) -> None:
    """Make the training loss of one step infinite."""
    plain = Nll.__call__

    def poisoned(self: Nll, models: Any, batch: Any) -> Loss:
        loss = plain(self, models, batch)
        if channel.step != step:
            return loss
        return Loss({name: Term(term.sum * float("inf"), term.count) for name, term in loss.terms.items()})

    Nll.__call__ = poisoned  # type: ignore[method-assign]


def main(group: Any, arguments: dict[str, Any], directory: Path) -> dict[str, Any]:
    started = time.monotonic()
    spec = JobSpec.model_validate(arguments["spec"])
    node = NodeLaunch(
        job_uid="job", job_name="toy", tenant="t", attempt=arguments.get("attempt", 1), node=0, num_nodes=1, processes=group.world_size,
        controller="", token="", store_root=arguments["store"], spec=arguments["spec"], inputs=arguments["inputs"],
        cache_dir=str(Path(arguments["store"]) / "cache"),
    )  # fmt: skip
    resume, head = arguments.get("resume_from"), arguments.get("journal_head")
    launch = RankLaunch(
        node=node, generation=arguments.get("generation", 1), rank=group.rank, local_rank=group.rank, world_size=group.world_size,
        address="", node_dir=str(directory), resume_from=CheckpointRef(**resume) if resume else None,
        fallbacks=tuple(CheckpointRef(**ref) for ref in arguments.get("fallbacks", ())),
        journal_head=JournalRef(**head) if head else None,
    )  # fmt: skip
    channel = Recorder(group.rank, arguments)
    if arguments.get("write_in_background"):
        checkpoint._WRITE_AT_ONCE_BYTES = 0  # a toy state is small enough to be written at once otherwise
    if "poison_step" in arguments:
        poison(channel, arguments["poison_step"])
    outcome: dict[str, Any] = {}
    try:
        outcome["result"] = run_plan(RankContext(launch, spec, channel, group, "cpu"))
    except LeaveRequested as leave:
        outcome["left"] = {"saved": leave.saved}
    outcome["seconds"] = time.monotonic() - started
    outcome["first_step_seconds"] = (channel.first_step or started) - started
    return {**outcome, "facts": channel.facts, "rows": channel.rows}
