"""`luthier get`."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import TYPE_CHECKING

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments
from luthier.cli.values import positive

if TYPE_CHECKING:
    from luthier.client import Job

_STATES = ("QUEUED", "STARTING", "RUNNING", "PAUSING", "PAUSED", "CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED")


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`get [NAME…] [--state S] [--filter F] [--limit N]`."""
    parser.add_argument("name", nargs="*", metavar="NAME", help="job to show; without a name all jobs are listed, newest first")
    parser.add_argument("--state", type=str.upper, choices=_STATES, metavar="STATE", help="only jobs in this state")
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="only jobs that match, for example 'state = FAILED AND labels.team = \"x\"'"
    )
    parser.add_argument("--order-by", default="", metavar="TEXT", help='"create_time desc" (default), "create_time", "name" or "name desc"')
    parser.add_argument("--limit", type=positive, default=200, metavar="N", help="list at most N jobs (default: 200)")
    output_arguments(parser)
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """List or show jobs."""
    from luthier.cli import output
    from luthier.cli.session import connect

    with connect(arguments) as client:
        if arguments.name:
            jobs = [client.jobs.get(name) for name in arguments.name]
            more = False
        else:
            condition = f"({arguments.filter})" if arguments.filter and arguments.state else arguments.filter
            if arguments.state:
                condition = f"state = {arguments.state}" + (f" AND {condition}" if condition else "")
            found = client.jobs.list(filter=condition, order_by=arguments.order_by, limit=arguments.limit + 1)
            jobs = list(itertools.islice(found, arguments.limit + 1))
            more = len(jobs) > arguments.limit
            jobs = jobs[: arguments.limit]
    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(job.pb) for job in jobs], single=len(arguments.name) == 1)
    elif arguments.output == "name" or arguments.quiet:
        for job in jobs:
            output.write(f"{job.name}\n")
    else:
        _table(jobs, wide=arguments.output == "wide")
    if not jobs:
        which = "no job matches" if arguments.filter or arguments.state else "there are no jobs"
        messages.hint(f"{which}; submit one with `luthier submit FILE`", quiet=arguments.quiet)
    elif more:
        messages.hint(f"only the first {arguments.limit} are shown; raise --limit or narrow with --filter", quiet=arguments.quiet)
    return exits.OK


def _table(jobs: list[Job], *, wide: bool) -> None:
    from luthier.cli import output
    from luthier.cli.progress import line_of

    now = time.time()
    header = ["NAME", "STATE", "METHOD", "STEP", "LOSS", "AGE"]
    if wide:
        header += ["QUEUE", "PRIORITY", "ATTEMPT", "NODES", "UID"]
    header.append("DETAIL")
    rows = []
    for job in jobs:
        pb = job.pb
        progress = pb.progress
        step = f"{progress.step}/{progress.total_steps}" if progress.step else "-"
        row = [job.name, job.state, pb.spec.method.name, step]
        row += [output.number(progress.loss if progress.HasField("loss") else None), output.age(pb.create_time, now)]
        if wide:
            nodes = f"{pb.num_nodes}" if pb.num_nodes else f"{pb.spec.resources.nodes.min}-{pb.spec.resources.nodes.max}"
            row += [pb.spec.scheduling.queue, str(pb.spec.scheduling.priority), f"a{pb.attempt}g{pb.generation}", nodes, pb.uid]
        detail = line_of(pb).removeprefix(job.state).strip() if job.state in ("QUEUED", "STARTING", "FAILED") else ""
        rows.append([*row, detail if wide or len(detail) <= 60 else detail[:57] + "..."])
    output.print_rows(header, rows)
