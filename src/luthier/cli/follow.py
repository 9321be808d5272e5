"""`luthier logs`, `events`, `wait`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments
from luthier.cli.values import seconds, whole

if TYPE_CHECKING:
    from luthier.client import Client

_STATES = ("QUEUED", "STARTING", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED")


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of the three verbs."""
    if verb == "wait":
        parser.add_argument("name", nargs="+", metavar="NAME", help="job to wait for")
        parser.add_argument(
            "--for", dest="state", type=str.upper, choices=_STATES, metavar="STATE", help="also return in this state, for example RUNNING"
        )
        parser.add_argument("--timeout", type=seconds, metavar="TIME", help="give up after this time (30s, 5m, 2h) with exit code 124")
        output_arguments(parser, ("table", "json", "yaml", "name"))
    elif verb == "logs":
        parser.add_argument("name", metavar="NAME", help="job whose logs to print")
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
        parser.add_argument("--tail", type=whole, default=0, metavar="N", help="start with the last N lines of each stream")
        parser.add_argument("--attempt", type=whole, default=0, metavar="K", help="attempt (default: the newest)")
        parser.add_argument("--node", type=whole, default=None, metavar="I", help="only this node")
        parser.add_argument("--rank", type=whole, default=None, metavar="R", help="only this rank of the group")
        parser.add_argument("--no-prefix", action="store_true", help="leave out node and rank at the start of each line")
    else:
        parser.add_argument("name", metavar="NAME", help="job whose events to print")
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
        output_arguments(parser, ("table", "wide", "json", "yaml"))
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """One of the three verbs."""
    from luthier.cli.session import connect

    with connect(arguments) as client:
        if verb == "wait":
            return _wait(client, arguments)
        if verb == "logs":
            return _logs(client, arguments)
        return _events(client, arguments)


def _wait(client: Client, arguments: argparse.Namespace) -> int:
    from luthier.cli import output, progress

    states = (arguments.state,) if arguments.state else ()
    jobs = progress.follow(client, arguments.name, states=states, timeout_seconds=arguments.timeout, quiet=arguments.quiet)
    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(job.pb) for job in jobs.values()], single=True)
    else:
        for job in jobs.values():
            output.write(f"{job.name}\n" if arguments.output == "name" or arguments.quiet else f"{job.name} {job.state}\n")
    reached = [job for job in jobs.values() if job.state not in states]
    progress.report(reached, quiet=arguments.quiet)
    code = next((code for job in reached if (code := exits.of_state(job.state))), exits.OK)
    missed = [job for job in reached if states and not code]
    if missed:
        messages.problem(
            f"job {missed[0].name} did not become {arguments.state}",
            why=f"it ended as {missed[0].state} first",
            fix="wait for a state that comes before its end",
        )
        return exits.ERROR
    return code


def print_logs(
    client: Client,
    name: str,
    *,
    follow: bool,
    tail_lines: int = 0,
    attempt: int = 0,
    node: int | None = None,
    rank: int | None = None,
    prefix: bool = True,
) -> bool:
    """Print log chunks to stdout; True when there was something."""
    any_line = False
    # A chunk holds whole lines, unless a line is longer than a chunk: then the next chunk of that stream goes on with it.
    open_lines: set[tuple[int, int, int]] = set()
    for chunk in client.jobs.logs(name, attempt=attempt, node=node, rank=rank, follow=follow, tail_lines=tail_lines):
        any_line = True
        source = (chunk.attempt, chunk.node, chunk.rank if chunk.HasField("rank") else -1)
        if not prefix:
            sys.stdout.buffer.write(chunk.data)
            sys.stdout.buffer.flush()
            continue
        mark = f"n{chunk.node}/{'agent' if source[2] < 0 else f'r{source[2]}'}| "
        text = chunk.data.decode("utf-8", "replace")
        for i, line in enumerate(text.splitlines(keepends=True)):
            sys.stdout.write(line if i == 0 and source in open_lines else mark + line)
        (open_lines.discard if text.endswith("\n") else open_lines.add)(source)
        sys.stdout.flush()
    return any_line


def _logs(client: Client, arguments: argparse.Namespace) -> int:
    something = print_logs(
        client,
        arguments.name,
        follow=arguments.follow,
        tail_lines=arguments.tail,
        attempt=arguments.attempt,
        node=arguments.node,
        rank=arguments.rank,
        prefix=not arguments.no_prefix,
    )
    if not something:
        job = client.jobs.get(arguments.name)
        messages.hint(f"job {job.name} has no logs yet; it is {job.state}" if not job.done else f"job {job.name} wrote no logs there")
    return exits.OK


def _events(client: Client, arguments: argparse.Namespace) -> int:
    import datetime as dt

    from luthier.cli import output

    events = list(client.jobs.events(arguments.name))
    if arguments.output in ("json", "yaml") and not arguments.follow:
        output.print_messages(arguments.output, [output.plain(event) for event in events])
        return exits.OK

    def line(event: object) -> list[str]:
        from luthier.v1 import job_pb2

        assert isinstance(event, job_pb2.Event)
        time = event.create_time.ToDatetime(dt.UTC).astimezone().strftime("%H:%M:%S")
        where = f"a{event.attempt}g{event.generation}" if event.attempt else "-"
        row = [time, event.type, where, event.message]
        if arguments.output == "wide":
            row = [str(event.sequence), str(event.revision), event.severity, f"n{event.node}" if event.HasField("node") else "-", *row]
        return row

    header = ["TIME", "TYPE", "RUN", "MESSAGE"]
    if arguments.output == "wide":
        header = ["SEQ", "REVISION", "SEVERITY", "NODE", *header]
    if arguments.output in ("json", "yaml"):
        import json

        for event in events:
            output.write(json.dumps(output.plain(event), ensure_ascii=False) + "\n")
    else:
        output.print_rows(header, [line(event) for event in events])
    if not arguments.follow:
        if not events:
            messages.hint("the job has no events", quiet=arguments.quiet)
        return exits.OK
    sys.stdout.flush()
    last = events[-1].revision if events else None
    for message in client.jobs.watch(arguments.name, after_revision=last, until_terminal=True):
        if message.HasField("event"):
            if arguments.output in ("json", "yaml"):
                import json

                output.write(json.dumps(output.plain(message.event), ensure_ascii=False) + "\n")
            else:
                output.write("  ".join(line(message.event)) + "\n")
            sys.stdout.flush()
    return exits.OK
