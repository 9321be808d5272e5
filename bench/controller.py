"""How much a controller takes: a real `luthier up` with its embedded store, measured over gRPC.

    python -P bench/controller.py [--out DIR] [--clients N] [--submits N] [--jobs N] [--reads N]

Measures durable submits/s from N clients at once (each acknowledged after its transaction is on disk), GetJob and ListJobs at 10,000 jobs,
events/s of a replaying watcher, and resident memory idle and full. The controller has no slots, so every job stays QUEUED and nothing
but the control plane works. Load and controller share the machine's cores, as they do on a laptop. Writes `controller.json` and
`controller.txt` into the results folder and prints the table; aims that are missed are marked, the exit code stays 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.client import AsyncClient
from luthier.v1 import job_pb2

JOB = {"name": "bench", "method": "pretrain", "data": {"sources": ["cwd:rows.jsonl"]}}


@dataclass(frozen=True)
class Figure:
    """One line of the result: a measured value and what it should reach."""

    name: str
    value: float
    unit: str
    aim: str = ""
    met: bool | None = None
    note: str = ""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--clients", type=int, default=16, help="clients that submit at once")
    parser.add_argument("--submits", type=int, default=3000, help="jobs submitted while measuring")
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs in the store while reading")
    parser.add_argument("--reads", type=int, default=1000, help="calls of each kind of read")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text('{"text": "never read"}\n')
        with _controller(folder) as process:
            figures = asyncio.run(_measure(process.pid, folder / "state", arguments))
    _report("controller", figures, arguments.out, vars(arguments))
    return 0


async def _measure(pid: int, state: Path, arguments: argparse.Namespace) -> list[Figure]:
    await asyncio.sleep(3.0)  # what a start does beside serving (loading, first passes) is over
    idle = _resident(pid)
    figures = [Figure("idle memory", idle, "MB", "< 120", idle < 120)]

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(state_dir=state)) for _ in range(arguments.clients)]
        [template] = await clients[0].jobs.submit(JOB, validate_only=True)
        job = job_pb2.Job(spec=template.pb.spec)
        await _together(clients, 50, lambda client, n: client.jobs.create(job, job_id=f"warm-{n}"))

        processor = _processor_seconds(pid)
        wall, latencies = await _together(clients, arguments.submits, lambda client, n: client.jobs.create(job, job_id=f"job-{n}"))
        processor = _processor_seconds(pid) - processor
        rate = arguments.submits / wall
        figures += [
            Figure("durable submits", rate, "/s", "≥ 300", rate >= 300, f"{arguments.clients} clients, {arguments.submits} jobs"),
            Figure("submit, median", _percentile(latencies, 50), "ms"),
            Figure("submit, p99", _percentile(latencies, 99), "ms"),
            Figure("controller's processor time per submit", 1e3 * processor / arguments.submits, "ms"),
        ]
        alone, _ = await _together(clients[:1], 200, lambda client, n: client.jobs.create(job, job_id=f"alone-{n}"))
        figures.append(Figure("durable submits, one client", 200 / alone, "/s"))

        missing = max(0, arguments.jobs - arguments.submits - 250)
        await _together(clients, missing, lambda client, n: client.jobs.create(job, job_id=f"fill-{n}"))
        count = 50 + arguments.submits + 200 + missing
        await asyncio.sleep(2.0)

        _, latencies = await _together(clients[:1], arguments.reads, lambda client, n: client.jobs.get(f"job-{n % arguments.submits}"))
        figures.append(
            Figure("GetJob, p99", _percentile(latencies, 99), "ms", note=f"at {count} jobs; median {_percentile(latencies, 50):.1f}")
        )
        kinds = {"": {}, " by name": {"order_by": "name"}, " with a filter": {"filter": 'state = "QUEUED" AND method = "pretrain"'}}
        for kind, options in kinds.items():
            _, latencies = await _together(clients[:1], arguments.reads, functools.partial(_page, options))
            p99, note = _percentile(latencies, 99), f"at {count} jobs; median {_percentile(latencies, 50):.1f}"
            figures.append(Figure(f"ListJobs of 50{kind}, p99", p99, "ms", "< 50", p99 < 50, note))
        _, latencies = await _together(clients[:8], arguments.reads, functools.partial(_page, {}))
        figures.append(Figure("ListJobs of 50, 8 clients at once, p99", _percentile(latencies, 99), "ms"))

        seen, wall = await _replay(clients[0], count)
        figures.append(Figure("events to a watcher that replays", seen / wall, "/s", note=f"{seen} events"))
        figures.append(Figure(f"memory with {count} jobs", _resident(pid), "MB"))
    return figures


@contextlib.contextmanager
def _controller(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A controller without slots on free ports; ended afterwards."""
    state = folder / "state"
    log = folder / "controller.log"
    command = [sys.executable, "-P", "-m", "luthier.cli", "up", "--listen", "127.0.0.1:0", "--state-dir", str(state)]
    command += ["--slots", "0", "--no-prewarm", "--root", f"cwd={folder}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (state / "endpoint.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the controller did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _together(
    clients: Sequence[AsyncClient], count: int, call: Callable[[AsyncClient, int], Awaitable[Any]]
) -> tuple[float, list[float]]:
    """`count` calls, each client one after another; wall seconds and the latencies in milliseconds."""
    numbers = iter(range(count))
    latencies: list[float] = []

    async def work(client: AsyncClient) -> None:
        for number in numbers:
            started = time.perf_counter()
            await call(client, number)
            latencies.append(1e3 * (time.perf_counter() - started))

    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    return time.perf_counter() - started, latencies


async def _page(options: Mapping[str, str], client: AsyncClient, number: int) -> None:
    count = 0
    async for _ in client.jobs.list(limit=50, **options):
        count += 1
    assert count == 50, f"a page of {count} jobs"


async def _replay(client: AsyncClient, count: int) -> tuple[int, float]:
    """All creation events from the beginning; (events, seconds)."""
    seen = 0
    started = time.perf_counter()
    async with contextlib.aclosing(client.jobs.watch(after_revision=0, timeout_seconds=300)) as messages:
        async for message in messages:
            seen += message.HasField("event")
            if seen >= count:
                break
    return seen, time.perf_counter() - started


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _resident(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} has no VmRSS")


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _report(name: str, figures: Sequence[Figure], out: Path, settings: dict[str, Any]) -> None:
    width = max(len(figure.name) for figure in figures)
    lines = [f"{'':{width}}  {'measured':>14}  {'aim':>7}"]
    for figure in figures:
        verdict = "" if figure.met is None else "met" if figure.met else "MISSED"
        lines.append(f"{figure.name:{width}}  {figure.value:>9.1f} {figure.unit:<4}  {figure.aim:>7}  {verdict:<6}  {figure.note}".rstrip())
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    text = "\n".join([*lines, "", machine, ""])
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.txt").write_text(text, encoding="utf-8")
    body = {"machine": machine, "settings": {k: str(v) for k, v in settings.items()}, "figures": [asdict(figure) for figure in figures]}
    (out / f"{name}.json").write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
