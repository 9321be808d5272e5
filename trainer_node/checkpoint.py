"""Checkpoints of a Train phase: copied at a step, written in the background, committed by rank 0 when every rank is done.

Nothing here blocks a step but the copy. Each rank writes its fragments in a thread; whether all are done travels with the loop's
per-step all-reduce; then rank 0 writes the manifest, which is the commit. States below a megabyte are written at once: a thread would
cost more. One save is in flight at a time, and it is in flight on every rank or on none.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.errors import StorageError
from luthier.trainer_node.context import RankContext
from luthier.trainer_node.engine.api import Engine
from luthier.trainer_node.fragments import FragmentReader, HostCopy
from luthier.trainer_node.launch import CheckpointRef
from luthier.trainer_node.lineage import MANIFEST, Manifest, checkpoint_path, file_digest, read_manifest, write_durably

__all__ = ["Checkpoints", "Kept", "Resumed", "candidate_message", "kept_from", "open_newest"]

FORMAT = 1
_WRITE_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True)
class Kept:
    """A committed checkpoint of this job."""

    ref: CheckpointRef
    eval_loss: float | None


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that every rank found whole."""

    ref: CheckpointRef
    state: FragmentReader
    content: Mapping[str, Any]
    """Its manifest."""


def candidate_message(ref: CheckpointRef) -> dict[str, Any]:
    """`luthier.v1.CheckpointCandidate` in proto JSON."""
    return {
        "fence": {"attempt": ref.attempt, "generation": ref.generation},
        "phase_index": ref.phase_index, "step": ref.step, "digest": ref.digest, "path": ref.path,
    }  # fmt: skip


def open_newest(context: RankContext, phase_index: int) -> tuple[Resumed | None, list[str]]:
    """The newest checkpoint of the phase that all ranks can read, among those the controller named, and why newer ones were rejected.

    Every file's hash is checked, the files shared out over the ranks; all ranks go on to the next older one together. Collective.
    """
    launch, group = context.launch, context.group
    named = [ref for ref in (launch.resume_from, *launch.fallbacks) if ref is not None and ref.phase_index == phase_index]
    rejected: list[str] = []
    for ref in named:
        problem = ""
        resumed: Resumed | None = None
        try:
            manifest = read_manifest(launch.node.prefix / ref.path, ref.digest)
            manifest.check_sizes()
            _check_hashes(manifest, context)
            reader = FragmentReader(manifest.directory, int(manifest.content["optimizer_steps"]))
            resumed = Resumed(ref, reader, manifest.content)
        except (StorageError, KeyError, ValueError) as error:
            problem = str(error)
        problems = [text for text in group.gather_json(problem) if text]
        if not problems and resumed is not None:
            return resumed, rejected
        rejected.append(f"{ref.path}: {problems[0]}")
    return None, rejected


def _check_hashes(manifest: Manifest, context: RankContext) -> None:
    for number, file in enumerate(manifest.files):
        if number % context.group.world_size == context.group.rank:
            context.channel.beat("checkpoint", int(manifest.content["step"]))
            if file_digest(manifest.directory / str(file["path"])) != file["sha256"]:
                raise StorageError(f"{file['path']} is damaged: its SHA-256 is not the recorded one", where=str(manifest.directory))


@dataclass
class _InFlight:
    """One save between copy and commit."""

    step: int
    directory: Path
    about: dict[str, Any]
    eval_loss: float | None
    started: float
    stall_seconds: float = 0.0
    done: bool = False
    problem: str = ""
    thread: threading.Thread | None = None


@dataclass
class Checkpoints:
    """Makes, commits and prunes the checkpoints of one Train phase. All ranks call the same methods at the same steps."""

    context: RankContext
    phase_index: int
    about: Mapping[str, Any]
    """What every manifest of this phase says: versions, world size, stage, threads, micro-batch, ...."""
    base: Callable[[], str] | None = None
    """Rank 0: hash of the frozen base model, None when nothing is frozen. The base itself is never stored."""
    kept: list[Kept] = field(default_factory=list)
    """Oldest first: what retention works on, older generations included. Used on rank 0."""
    keep_last: int = 2
    clock: Callable[[], float] = time.monotonic
    _host: HostCopy = field(default_factory=HostCopy)
    _saving: _InFlight | None = None
    _last_begin: float | None = None
    last_save_seconds: float = 0.0
    """Copy to manifest of the newest save."""
    problem: str = ""
    """Why the newest save failed."""
    begun_step: int = -1
    """Step of the newest save that was begun."""
    committed_step: int = -1
    """Step of the newest checkpoint of this phase that every rank knows to be committed."""

    def __post_init__(self) -> None:
        self._last_begin = self.clock()

    @property
    def in_flight(self) -> bool:
        """True between `begin` and the commit; equal on every rank."""
        return self._saving is not None

    def seconds_since_begin(self) -> float:
        """Since the last save began, or since the phase did."""
        return self.clock() - (self._last_begin or 0.0)

    def begin(self, engine: Engine, step: int, loop_state: Mapping[str, Any], eval_loss: float | None) -> None:
        """Copy the state of this rank and start writing it. Every rank, after the same step."""
        assert self._saving is None, "one save is in flight at a time"
        context = self.context
        context.channel.beat("checkpoint", step)
        started = self.clock()
        directory = context.launch.node.prefix / checkpoint_path(context.launch.fence, self.phase_index, step)
        about = {
            **self.about, "format": FORMAT, "attempt": context.launch.node.attempt, "generation": context.launch.generation,
            "phase_index": self.phase_index, "step": step, "optimizer_steps": engine.optimizer_steps, "loop": dict(loop_state),
            "eval_loss": eval_loss, "parent": asdict(self.kept[-1].ref) if self.kept else None,
        }  # fmt: skip
        saving = _InFlight(step, directory, about, eval_loss, started)
        size = 0
        try:
            (directory / MANIFEST).unlink(missing_ok=True)  # a save of the same step before a rewind
            size = self._host.take(engine.fragments())
        except OSError as error:
            saving.done, saving.problem = True, str(error)
        if not saving.done and size < _WRITE_AT_ONCE_BYTES:
            self._write(saving)
        elif not saving.done:
            saving.thread = threading.Thread(target=self._write, args=(saving,), name=f"save-{step}")
            saving.thread.start()
        saving.stall_seconds = self.clock() - started
        self._saving, self._last_begin, self.begun_step = saving, started, step

    def _write(self, saving: _InFlight) -> None:
        try:
            self._host.write(saving.directory, self.context.group.rank)
        except (OSError, StorageError) as error:
            saving.problem = str(error) or type(error).__name__
        saving.done = True

    def votes(self) -> tuple[int, int]:
        """(written, failed) of this rank, to be summed over ranks by the loop's all-reduce."""
        saving = self._saving
        if saving is None or not saving.done:
            return 0, 0
        return (0, 1) if saving.problem else (1, 0)

    def advance(self, written: int, failed: int) -> bool | None:
        """Act on the sums of all ranks' votes: commit, give up, or wait on. True: committed (rank 0 knows), False: failed, None: wait."""
        saving = self._saving
        if saving is None or written + failed < self.context.group.world_size:
            return None
        self._saving = None
        if saving.thread is not None:
            saving.thread.join()
        if failed:
            self._give_up(saving, saving.problem or f"{failed} of {self.context.group.world_size} ranks could not write, see their logs")
            return False
        if self.context.group.rank != 0:
            return True
        try:
            self._commit(saving)
        except (OSError, StorageError, ValueError, KeyError) as error:
            self._give_up(saving, str(error))
            return False
        return True

    def finish(self) -> bool:
        """Wait for the save in flight on every rank and commit it; True when it is committed (or there was none). Collective."""
        group, channel = self.context.group, self.context.channel
        saving = self._saving
        if saving is None:
            return True
        while saving.thread is not None and saving.thread.is_alive():
            saving.thread.join(0.5)
            channel.beat("checkpoint", saving.step)
        written, failed = group.sum_ints(self.votes())
        committed = self.advance(written, failed)
        # Only rank 0 knows whether the manifest could be written.
        everywhere = group.sum_ints([int(committed is not True)])[0] == 0
        if everywhere:
            self.committed_step = saving.step
        return everywhere

    def _commit(self, saving: _InFlight) -> None:
        files: list[dict[str, Any]] = []
        for rank in range(self.context.group.world_size):
            index = saving.directory / f"rank-{rank}.json"
            data = index.read_bytes()
            files += json.loads(data)["files"]
            files.append({"path": index.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        content = {**saving.about, "files": files, "base": self.base() if self.base is not None else None}
        digest = write_durably(saving.directory / MANIFEST, json.dumps(content, sort_keys=True).encode())
        launch = self.context.launch
        path = checkpoint_path(launch.fence, self.phase_index, saving.step)
        ref = CheckpointRef(launch.node.attempt, launch.generation, self.phase_index, saving.step, digest, path)
        self.kept.append(Kept(ref, saving.eval_loss))
        removed = self._prune()
        size = sum(int(f["size"]) for f in files)
        self.last_save_seconds = self.clock() - saving.started
        self.context.channel.fact(
            "checkpoint_committed",
            {
                "checkpoint": candidate_message(ref), "size_bytes": size, "stall_seconds": saving.stall_seconds,
                "persist_seconds": self.last_save_seconds, "removed": removed,
                **({"eval_loss": saving.eval_loss} if saving.eval_loss is not None else {}),
            },
        )  # fmt: skip
        self.context.channel.gauges(
            {
                "luthier_train_checkpoint_save_seconds": self.last_save_seconds,
                "luthier_train_checkpoint_last_success_timestamp_seconds": time.time(),
                "luthier_train_checkpoint_bytes": float(size),
            }
        )

    def _prune(self) -> list[str]:
        """Keep the newest `keep_last` and the best by held-out loss; returns the paths removed. The manifest goes first."""
        measured = [k for k in self.kept if k.eval_loss is not None]
        best = min(measured, key=lambda k: k.eval_loss or 0.0, default=None)
        gone = [k for k in self.kept[: -self.keep_last] if k is not best]
        self.kept = [k for k in self.kept if k not in gone]
        for old in gone:
            directory = self.context.launch.node.prefix / old.ref.path
            try:
                (directory / MANIFEST).unlink(missing_ok=True)
            except OSError:
                continue  # it stays a candidate, which is harmless
            shutil.rmtree(directory, ignore_errors=True)
        return [old.ref.path for old in gone]

    def _give_up(self, saving: _InFlight, problem: str) -> None:
        self.problem = problem
        print(f"checkpoint at step {saving.step} failed: {problem}", file=sys.stderr)
        if self.context.group.rank == 0:
            shutil.rmtree(saving.directory, ignore_errors=True)

    def report_failure(self, step: int, *, training_on: bool) -> None:
        """Tell the controller that a save failed; `training_on` when it was a save-and-leave and nobody leaves. Rank 0 speaks."""
        if self.context.group.rank == 0:
            self.context.channel.fact("save_failed", {"step": step, "message": self.problem, "training_on": training_on})


def kept_from(context: RankContext) -> list[Kept]:
    """What retention starts with: the checkpoints on the lineage that the controller named, oldest first."""
    launch = context.launch
    found = []
    for ref in reversed([ref for ref in (launch.resume_from, *launch.fallbacks) if ref is not None]):
        try:
            manifest = read_manifest(launch.node.prefix / ref.path, ref.digest)
        except StorageError:
            continue
        found.append(Kept(replace(ref), manifest.content.get("eval_loss")))
    return found
