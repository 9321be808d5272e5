"""The plan's journal: one file per finished phase, each naming its predecessor, so that a restart replays the plan without redoing it.

An entry `journal/<n>.a<k>g<g>.json` holds the phase's fingerprint and its result. Rank 0 writes it after every rank is done and the
outputs are durable. The chain is followed from the head that the controller named; what lies off the chain is never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.errors import PlanDiverged, StorageError
from luthier.methods.api import Artifact, ModelRef
from luthier.trainer_node.artifacts import artifact_from_json, artifact_to_json
from luthier.trainer_node.launch import JournalRef
from luthier.trainer_node.lineage import journal_path, write_durably

__all__ = ["Entry", "check_fingerprint", "read_chain", "result_from_json", "result_to_json", "write_entry"]

PhaseResult = ModelRef | Artifact


@dataclass(frozen=True)
class Entry:
    """One finished phase."""

    index: int
    kind: str
    title: str
    fingerprint: str
    result: Mapping[str, Any]
    plan_steps: int
    """Optimiser steps of all Train phases up to and including this one."""
    previous: Mapping[str, Any] | None
    """The entry before it as a `JournalRef`, None for the first."""


def result_to_json(result: PhaseResult) -> dict[str, Any]:
    """A phase's result as it travels through the journal and between ranks."""
    if isinstance(result, ModelRef):
        state = artifact_to_json(result.state) if result.state else None
        return {"type": "model", "base": result.base, "digest": result.digest, "state": state}
    return {"type": "artifact", **artifact_to_json(result)}


def result_from_json(data: Mapping[str, Any]) -> PhaseResult:
    """What `result_to_json` gave."""
    if data["type"] == "model":
        state = artifact_from_json(data["state"]) if data["state"] else None
        return ModelRef(data["base"], data["digest"], state)
    return artifact_from_json(data)


def write_entry(prefix: Path, attempt: int, generation: int, entry: Entry) -> JournalRef:
    """Put an entry into the journal; from then on the phase is done."""
    path = journal_path(f"a{attempt}g{generation}", entry.index)
    digest = write_durably(prefix / path, json.dumps(asdict(entry), sort_keys=True).encode())
    return JournalRef(attempt, generation, entry.index, digest, path)


def read_chain(prefix: Path, head: JournalRef | None) -> list[Entry]:
    """Entries from the first phase to the head. Raises `StorageError` when one is missing or is not the recorded one."""
    entries: list[Entry] = []
    wanted = head
    while wanted is not None:
        path = prefix / wanted.path
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != wanted.digest:
                raise ValueError("its content is not the recorded one")
            entry = Entry(**json.loads(data))
            if entry.index != wanted.index:
                raise ValueError(f"it is the entry of phase {entry.index}, not {wanted.index}")
            previous = JournalRef(**entry.previous) if entry.previous else None
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(f"journal entry {wanted.index} cannot be used: {error}", where=str(path)) from error
        if (previous.index if previous else -1) != entry.index - 1:
            raise StorageError(f"the journal has a gap before phase {entry.index}", where=str(path))
        entries.append(entry)
        wanted = previous
    return entries[::-1]


def check_fingerprint(entries: Sequence[Entry], index: int, kind: str, title: str, fingerprint: str) -> Entry | None:
    """The journalled entry of phase `index`, None when it has to run. Raises `PlanDiverged` when it is another phase."""
    if index >= len(entries):
        return None
    entry = entries[index]
    if entry.fingerprint != fingerprint:
        raise PlanDiverged(
            f"the plan yields {kind} {title!r} (fingerprint {fingerprint[:12]}) as phase {index}, but the journal says {entry.kind} "
            f"{entry.title!r} (fingerprint {entry.fingerprint[:12]})",
            where=f"phase {index}",
            fix="run the job with the version of the method that began it, or retry it from the beginning as a new job",
        )
    return entry
