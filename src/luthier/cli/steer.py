"""`luthier cancel`, `pause`, `resume`, `retry`, `delete`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments
from luthier.cli.values import positive

if TYPE_CHECKING:
    from luthier.client import Client, Job

_DONE = {
    "cancel": "will end without its result",
    "pause": "will save and leave its nodes",
    "resume": "is queued and goes on from its last checkpoint",
    "retry": "is queued again; budgets are reset, checkpoints kept",
}


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`VERB NAME… [--yes] [--nodes N]`."""
    parser.add_argument("name", nargs="+", metavar="NAME", help=f"job to {verb}")
    if verb in ("cancel", "delete"):
        parser.add_argument("-y", "--yes", action="store_true", help="do not ask; needed where there is no terminal")
    if verb == "resume":
        parser.add_argument("--nodes", type=positive, default=None, metavar="N", help="number of nodes, within resources.nodes")
    output_arguments(parser, ("table", "json", "yaml", "name"))
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Steer every named job; all names are checked first."""
    from luthier.cli import output
    from luthier.cli.session import connect

    with connect(arguments) as client:
        found = [client.jobs.get(name) for name in arguments.name]
        if verb in ("cancel", "delete"):
            question = _question(verb, found)
            if question and not messages.confirm(question, yes=arguments.yes):
                messages.note("nothing was changed", quiet=arguments.quiet)
                return exits.ERROR
        before = [job.done for job in found]
        jobs = [_steer(client, verb, job, arguments) for job in found]
    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(job.pb) for job in jobs], single=len(jobs) == 1)
        return exits.OK
    for ended, job in zip(before, jobs, strict=True):
        output.write(f"{job.name}\n")
        if verb == "delete":
            messages.note(f"job {job.name} and what it stored are deleted", quiet=arguments.quiet)
        elif ended and job.done:
            messages.note(f"job {job.name} is {job.state} already; nothing changed", quiet=arguments.quiet)
        elif job.done:
            messages.note(f"job {job.name} is {job.state}", quiet=arguments.quiet)
        else:
            messages.note(f"job {job.name} {_DONE[verb]}; it is {job.state}", quiet=arguments.quiet)
    return exits.OK


def _question(verb: str, jobs: list[Job]) -> str:
    """What to ask before something is lost; empty when nothing is."""
    touched = [job for job in jobs if verb == "delete" or not job.done]
    if not touched:
        return ""
    names = ", ".join(job.name for job in touched)
    if verb == "delete":
        return f"Delete {names} with checkpoints, logs and results?"
    return f"End {names} without a result?"


def _steer(client: Client, verb: str, job: Job, arguments: argparse.Namespace) -> Job:
    if verb == "delete":
        # The etag makes sure that what is deleted is what was shown.
        client.jobs.delete(job.name, etag=job.pb.etag)
        return job
    if verb == "cancel":
        return client.jobs.cancel(job.name)
    if verb == "pause":
        return client.jobs.pause(job.name)
    if verb == "resume":
        return client.jobs.resume(job.name, num_nodes=arguments.nodes)
    return client.jobs.retry(job.name)
