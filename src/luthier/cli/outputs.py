"""`luthier checkpoints`, `artifacts`, `pull`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments

if TYPE_CHECKING:
    from luthier.client import Client


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of the three verbs."""
    parser.add_argument("name", metavar="NAME", help="job")
    if verb == "pull":
        parser.add_argument("directory", metavar="DIR", help="directory to write into; files that are there and whole are kept")
        parser.add_argument("--artifact", default="result", metavar="A", help="artifact (default: result)")
        parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    else:
        output_arguments(parser)
    if verb == "checkpoints":
        parser.add_argument("--all", action="store_true", help="also those that retention has removed")
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """One of the three verbs."""
    from luthier.cli.session import connect

    with connect(arguments) as client:
        client.jobs.get(arguments.name)  # an unknown job is told as such, with the nearest name
        if verb == "pull":
            return _pull(client, arguments)
        return _checkpoints(client, arguments) if verb == "checkpoints" else _artifacts(client, arguments)


def _checkpoints(client: Client, arguments: argparse.Namespace) -> int:
    from luthier.cli import output

    found = [c for c in client.jobs.checkpoints(arguments.name) if arguments.all or not c.removed]
    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(c) for c in found])
    elif arguments.output == "name" or arguments.quiet:
        for c in found:
            output.write(f"{c.name.rpartition('/')[2]}\n")
    else:
        now, wide = time.time(), arguments.output == "wide"
        header = ["NAME", "STEP", "PHASE", "SIZE", "HELD-OUT LOSS", "AGE", *(["DIGEST", "PATH", "REMOVED"] if wide else [])]
        rows = []
        for c in found:
            row = [c.name.rpartition("/")[2], str(c.step), str(c.phase_index), output.size(c.size_bytes)]
            row += [output.number(c.eval_loss if c.HasField("eval_loss") else None), output.age(c.create_time, now)]
            rows.append(row + ([c.digest, c.path, "yes" if c.removed else "no"] if wide else []))
        output.print_rows(header, rows)
    if not found:
        messages.hint("there are no checkpoints yet; the first comes after faults.checkpoint.every", quiet=arguments.quiet)
    return exits.OK


def _artifacts(client: Client, arguments: argparse.Namespace) -> int:
    from luthier.cli import output

    found = list(client.artifacts.list(arguments.name))
    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(a) for a in found])
    elif arguments.output == "name" or arguments.quiet:
        for a in found:
            output.write(f"{a.name.rpartition('/')[2]}\n")
    else:
        now, wide = time.time(), arguments.output == "wide"
        header = ["NAME", "KIND", "FILES", "SIZE", "AGE", *(["DIGEST", "PATH"] if wide else [])]
        rows = []
        for a in found:
            row = [a.name.rpartition("/")[2], a.kind, str(len(a.files)), output.size(a.size_bytes), output.age(a.create_time, now)]
            rows.append(row + ([a.digest, a.local_path] if wide else []))
        output.print_rows(header, rows)
    if not found:
        messages.hint("there are no artifacts yet; the result appears when the job has succeeded", quiet=arguments.quiet)
    return exits.OK


def _pull(client: Client, arguments: argparse.Namespace) -> int:
    from luthier.cli import output

    live = messages.coloured(sys.stderr) and not arguments.quiet

    def show(name: str, done: int, total: int) -> None:
        sys.stderr.write(f"\r{name}: {done * 100 // max(total, 1)} %" + ("\n" if done >= total else ""))
        sys.stderr.flush()

    files = client.artifacts.pull(arguments.name, arguments.directory, artifact=arguments.artifact, progress=show if live else None)
    for path in files:
        output.write(f"{path}\n")
    messages.note(f"{len(files)} files of {arguments.name}/{arguments.artifact}, every digest verified", quiet=arguments.quiet)
    return exits.OK
