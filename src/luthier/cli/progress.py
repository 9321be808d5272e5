"""Following jobs: a live bar per job on a terminal, plain lines elsewhere. Used by `wait`, `submit --wait` and the demo."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from luthier.cli import messages
from luthier.cli.output import duration, number
from luthier.client.record import ENDED

if TYPE_CHECKING:
    from luthier.client import Client, Job
    from luthier.v1 import job_pb2

__all__ = ["follow", "line_of", "report", "short"]

_LINE_SECONDS = 10.0
"""Where bars are not welcome, a line about steps is printed this often."""


class _View(Protocol):
    def update(self, job: job_pb2.Job) -> None: ...
    def close(self) -> None: ...


def _state(job: job_pb2.Job) -> str:
    return str(type(job).State.Name(job.state))


def _waiting(job: job_pb2.Job) -> str:
    if not job.HasField("waiting") or not job.waiting.reason:
        return ""
    text = job.waiting.message or type(job.waiting).Reason.Name(job.waiting.reason).lower()
    return f"{text} (place {job.waiting.position} in the queue)" if job.waiting.position else text


def short(message: str, width: int = 120) -> str:
    """The start of a message, without how to fix it: the report tells that."""
    text = " ".join(message.partition(" Fix: ")[0].split())
    return text if len(text) <= width else text[: width - 1] + "…"


def line_of(job: job_pb2.Job) -> str:
    """One line: state, phase, step of total, loss, tokens/s, time left; or why it waits, failed, or what came out."""
    state = _state(job)
    parts = [state]
    progress = job.progress
    if state in ("QUEUED", "STARTING"):
        parts.append(_waiting(job))
    elif state == "FAILED":
        parts.append(short(job.failure.message))
    elif state == "SUCCEEDED":
        parts += [f"{name} {number(value)}" for name, value in sorted(job.result.metrics.items())][:6]
    elif job.HasField("progress"):
        parts.append(progress.phase)
        if progress.step or (progress.total_steps and not progress.HasField("loss")):
            parts.append(f"step {progress.step}/{progress.total_steps or '?'}")
        if progress.HasField("loss"):
            parts.append(f"loss {number(progress.loss)}")
        if progress.HasField("tokens_per_second"):
            parts.append(f"{number(progress.tokens_per_second)} tokens/s")
        if progress.HasField("eta"):
            parts.append(f"{duration(progress.eta.seconds + progress.eta.nanos / 1e9)} left")
    return "  ".join(part for part in parts if part)


class _Lines:
    """Changes of state and phase at once, steps now and then."""

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max(map(len, names), default=0)
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._printed: dict[str, float] = {}
        self._lines: dict[str, str] = {}

    def update(self, job: job_pb2.Job) -> None:
        name = job.name.rpartition("/")[2]
        key = (job.state, job.waiting.reason, job.progress.phase, job.progress.phase_index)
        now, line = time.monotonic(), line_of(job)
        settled = key == self._seen.get(name) and (_state(job) in ENDED or now - self._printed[name] < _LINE_SECONDS)
        if settled or line == self._lines.get(name):
            return
        self._seen[name], self._printed[name], self._lines[name] = key, now, line
        messages.note(f"{name:<{self._width}}  {line}")

    def close(self) -> None:
        return


class _Bars:
    """One live line per job, drawn by rich on stderr."""

    def __init__(self, names: Sequence[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.fields[job]}"),
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=sys.stderr),
            transient=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        width = max(map(len, names), default=0)
        self._tasks = {
            name: self._progress.add_task("", total=None, start=True, job=name.ljust(width), state="…".ljust(10), text="") for name in names
        }
        self._progress.start()

    def update(self, job: job_pb2.Job) -> None:
        name = job.name.rpartition("/")[2]
        if name not in self._tasks:
            return
        state = _state(job)
        total, done = job.progress.total_steps, job.progress.step
        if state == "SUCCEEDED":
            total = done = max(1, total)
        text = line_of(job).removeprefix(state).strip()
        self._progress.update(
            self._tasks[name], total=total or (1 if state in ("FAILED", "CANCELLED", "PAUSED") else None), completed=done,
            state=state.ljust(10), text=text,
        )  # fmt: skip

    def close(self) -> None:
        self._progress.stop()


class _Silent:
    def update(self, job: job_pb2.Job) -> None:
        return

    def close(self) -> None:
        return


def _view(names: Sequence[str], quiet: bool) -> _View:
    if quiet:
        return _Silent()
    return _Bars(names) if messages.coloured(sys.stderr) else _Lines(names)


def follow(
    client: Client, names: Sequence[str], *, states: Iterable[str] = (), timeout_seconds: float | None = None, quiet: bool = False
) -> dict[str, Job]:
    """Show the jobs on stderr until each ended or is in one of `states`; the jobs by name.

    A live bar per job on a terminal; lines elsewhere; nothing when `quiet`. Raises `DeadlineExceeded` after `timeout_seconds`,
    `JobNotFound`, and what the connection raises once it is broken for longer than the client's patience.
    """
    import contextlib

    from luthier.client.record import job_id_of
    from luthier.errors import DeadlineExceeded, JobNotFound

    wanted = ENDED | set(states)
    names = list(dict.fromkeys(job_id_of(name) for name in names))
    pending = set(names)
    last: dict[str, str] = {}
    view = _view(names, quiet)
    stream = client.jobs.watch(*names, timeout_seconds=timeout_seconds)
    try:
        with contextlib.closing(stream):
            for message in stream:
                if not message.HasField("job"):
                    gone = job_id_of(message.event.job)
                    if gone in pending:
                        raise JobNotFound(f"job {gone} was deleted")
                    continue
                view.update(message.job)
                last[job_id_of(message.job.name)] = _state(message.job)
                if _state(message.job) in wanted:
                    pending.discard(job_id_of(message.job.name))
                    if not pending:
                        break
        jobs = {name: client.jobs.get(name) for name in names}
        for job in jobs.values():
            view.update(job.pb)
        return jobs
    except DeadlineExceeded:
        if timeout_seconds is None:
            raise
        late = ", ".join(f"{name} is {last.get(name, 'not seen yet')}" for name in names if name in pending)
        fix = f"wait longer, or look with `luthier describe {next(n for n in names if n in pending)}`"
        raise DeadlineExceeded(f"{timeout_seconds:g} s are over and {late}", fix=fix) from None
    finally:
        view.close()


def report(jobs: Iterable[Job], *, quiet: bool = False) -> None:
    """What to know of ended jobs: why one failed, with its last log lines."""
    for job in jobs:
        if job.failure is not None:
            lines = "\n".join(f"    {line}" for line in job.failure.log_lines[-8:])
            rank = f" (node {job.failure.node}, rank {job.failure.rank})" if job.failure.HasField("rank") else ""
            why, _, fix = job.failure.message.partition(" Fix: ")
            story = f"`luthier describe {job.name}` tells the story"
            messages.problem(f"job {job.name} failed{rank}", why=why, fix=f"{fix}; {story}" if fix else story)
            if lines and not quiet:
                messages.note(f"  last log lines:\n{lines}")
        elif job.state == "CANCELLED":
            messages.note(f"job {job.name} was cancelled", quiet=quiet)
