"""`make demo`: pretrain a tiny model and tune it on two nodes, through the real controller, executor and trainer nodes.

`python -m luthier.demo [--seed S] [--state-dir DIR]` generates a world, starts `luthier up` on a state directory of its own, submits a
pipeline of two jobs, follows both, prints what the tuning changed, and ends everything that it started. Exit codes: 0 the tuned model
does what it should, 1 it does not or something failed (the message says how to fix it), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from luthier.demo_controller import Controller
from luthier.demo_pipeline import write_pipeline
from luthier.demo_report import render, shortcomings
from luthier.errors import LuthierError
from luthier.world import World, write_world

if TYPE_CHECKING:
    from luthier.client import Client, Job

__all__ = ["main"]

_STOP_SECONDS = 45.0
"""How long cancelled jobs may take to leave before the controller is ended anyway."""
_RUN_SECONDS = 900.0
"""A demo takes one to three minutes; after this long something hangs."""


class _Ended(Exception):
    """A signal asked the demo to end."""

    def __init__(self, code: int) -> None:
        super().__init__(f"signal {code - 128}")
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m luthier.demo", description="Pretrain a tiny model and tune it on two nodes.")
    parser.add_argument("--seed", type=int, default=0, help="which generated world (default 0)")
    parser.add_argument("--state-dir", type=Path, default=Path(".demo"), help="state directory of the demo's controller (default .demo)")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        with _signals():
            return _run(options.seed, options.state_dir.expanduser().absolute(), started)
    except _Ended as ended:
        print("\nThe demo was interrupted; its jobs, nodes and controller have ended. Run it again at any time.", file=sys.stderr)
        return ended.code
    except LuthierError as error:
        from luthier.cli import messages

        messages.failure("the demo did not finish", error)
        return 1
    except OSError as error:
        from luthier.cli import messages

        messages.problem(
            "the demo did not finish",
            where=str(error.filename or options.state_dir),
            why=error.strerror or str(error),
            fix="choose a directory that you may write, with some free space: --state-dir DIR",
        )
        return 1


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `_Ended` once; what comes during the clean-up is ignored, so that nothing is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(seed: int, state_dir: Path, started: float) -> int:
    from luthier.cli import progress
    from luthier.client import Client

    print("Luthier demo: a tiny language model from nothing, then a new skill with LoRA on two nodes.\n")
    print(f"  state    {state_dir}", flush=True)
    with Controller.start(state_dir) as controller:
        print(f"  service  {controller.address}, log {controller.log}", flush=True)
        with Client(controller.address, token=controller.token, state_dir=state_dir) as client:
            number = _free_number(client, state_dir)
            directory = state_dir / f"run-{number}"
            world = write_world(seed, directory / "data")
            pipeline = write_pipeline(directory)
            print(f"  world    seed {seed}: {world.num_facts} facts about {len(world.people)} people; {pipeline}", flush=True)
            print(f"  device   {_device(client)}\n", flush=True)
            jobs = client.jobs.submit(pipeline, suffix=str(number))
            try:
                ended = progress.follow(client, [job.name for job in jobs], timeout_seconds=_RUN_SECONDS)
            except BaseException:
                _cancel(client, jobs)
                raise
            return _report(client, list(ended.values()), world, directory, started)


def _free_number(client: Client, state_dir: Path) -> int:
    """The first number that no earlier run in this state directory used, for a job or for a folder."""
    used = [name.rpartition("-")[2] for name in (*(job.name for job in client.jobs.list()), *(p.name for p in state_dir.glob("run-*")))]
    return 1 + max((int(text) for text in used if text.isdecimal()), default=0)


def _device(client: Client) -> str:
    gpus = client.queues.get("default").capacity.accelerators
    if gpus >= 2:
        return f"{gpus} GPUs, NCCL between the two ranks of the tuning"
    found = "no GPU" if not gpus else "1 GPU"
    return f"CPU, gloo between the two ranks of the tuning: {found} was found, and every rank would need one of its own"


def _report(client: Client, jobs: Sequence[Job], world: World, directory: Path, started: float) -> int:
    from luthier.cli import messages, progress

    failed = [job for job in jobs if job.state != "SUCCEEDED"]
    if failed:
        progress.report(failed[:1])  # a second one failed because of the first
        messages.hint(f"look around with `luthier up --state-dir {directory.parent}`, then `luthier describe {failed[0].name}`")
        return 1
    tune = jobs[-1]
    adapter = directory / "adapter"
    client.artifacts.pull(tune.name, adapter)
    picture = _plot(client, tune.name, directory)
    print(render(tune, world, directory=directory, adapter=adapter, picture=picture, seconds=time.monotonic() - started), flush=True)
    missed = shortcomings(tune)
    for why in missed:
        messages.problem(
            "the tuned model is not what it should be",
            why=why,
            fix=f"compare with seed 0 (python -m luthier.demo --seed 0); if that misses too, report it with {directory / 'sft.yaml'}",
        )
    return 1 if missed else 0


def _plot(client: Client, name: str, directory: Path) -> Path:
    from luthier.cli import series

    path = directory / "loss.png"
    series.draw(path, name, client.jobs.metrics(name, ("loss", "eval_loss")))
    return path


def _cancel(client: Client, jobs: Sequence[Job]) -> None:
    """End the jobs and wait until their nodes are gone; the first error is the one to tell."""
    print("\nending the demo's jobs ...", file=sys.stderr, flush=True)
    with contextlib.suppress(LuthierError):
        for job in reversed(jobs):
            client.jobs.cancel(job.name)
        for job in jobs:
            client.jobs.wait(job.name, timeout_seconds=_STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
