"""`luthier submit`."""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments

if TYPE_CHECKING:
    from luthier.client import Client, Job
    from luthier.client.submit import Pipeline


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`submit FILE… [--wait|--follow] [--dry-run] …`."""
    parser.add_argument("file", nargs="+", metavar="FILE", help="YAML file with one or several documents; - reads standard input")
    parser.add_argument("--name", dest="rename", metavar="NAME", help="name of the job, for a file with one document")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--suffix", metavar="TEXT", help="append -TEXT to every name; job:// addresses inside the file follow")
    group.add_argument("--generate-name", action="store_true", help="append a short random suffix to every name")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="[NAME:]KEY=VALUE",
        help="replace a field, for example training.steps=10, or tune:training.steps=10 for one document",
    )
    parser.add_argument("--dry-run", action="store_true", help="do all checks, change nothing, print the jobs as they would be stored")
    follow = parser.add_mutually_exclusive_group()
    follow.add_argument(
        "--wait", action="store_true", help="wait for the jobs with a progress bar; exit 6 or 7 when one failed or was cancelled"
    )
    follow.add_argument(
        "--follow", action="store_true", help="print the jobs' logs while they run, one after the other; then as with --wait"
    )
    output_arguments(parser, ("table", "json", "yaml", "name"))
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Check everything, upload, create, and follow when asked."""
    from luthier.cli.session import connect

    pipeline = _load(arguments)
    with connect(arguments) as client:
        checked = _explained(client, lambda: client.jobs.check(pipeline), pipeline)
        if arguments.dry_run:
            _print(arguments, checked)
            messages.note(f"{len(checked)} job(s) checked; nothing was changed", quiet=arguments.quiet)
            return exits.OK
        jobs = _explained(client, lambda: client.jobs.start(pipeline, progress=_upload_progress(arguments.quiet)), pipeline)
        _print(arguments, jobs)
        sys.stdout.flush()
        names = [job.name for job in jobs]
        if not (arguments.wait or arguments.follow):
            messages.hint(f"follow with `luthier wait {' '.join(names)}` or `luthier logs -f {names[-1]}`", quiet=arguments.quiet)
            return exits.OK
        arguments.name = names
        return _follow(client, arguments, names)


def _load(arguments: argparse.Namespace) -> Pipeline:
    from luthier.client.submit import Pipeline
    from luthier.errors import SpecError
    from luthier.spec.yaml import load_file, load_text

    documents = []
    for file in arguments.file:
        if file == "-":
            documents += load_text(sys.stdin.read(), file="<stdin>", overrides=arguments.overrides)
        else:
            documents += load_file(file, overrides=arguments.overrides)
    pipeline = Pipeline(documents)
    names = [d.job_id for d in documents if d.job_id]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SpecError(f"two files use the name {twice!r}", fix="rename one of them, or submit them apart")
    if arguments.rename:
        pipeline.rename_only(arguments.rename)
    suffix = arguments.suffix or (_random_suffix() if arguments.generate_name else "")
    if suffix:
        pipeline.append_suffix(suffix)
    return pipeline


def _random_suffix() -> str:
    return "".join(secrets.choice("bcdfghjkmnpqrstvwxz23456789") for _ in range(5))


def _explained(client: Client, call: Callable[[], list[Job]], pipeline: Pipeline) -> list[Job]:
    """Run a call; a taken name is told with its line and the ways out."""
    from luthier.errors import Conflict

    try:
        return call()
    except Conflict as error:
        taken = next((d for d in pipeline.documents if d.job_id and d.job_id == error.metadata.get("job")), None)
        if error.reason == "JOB_ID_TAKEN" and taken is not None:
            error.where = taken.where("job_id")
            free = f"--suffix {_free_suffix(client, pipeline)}"
            other = f"{free} or --generate-name" if len(pipeline.documents) > 1 else f"{free}, --name OTHER or --generate-name"
            error.fix = f"submit with {other}, or remove the old job with `luthier delete {taken.job_id}`"
        raise


def _free_suffix(client: Client, pipeline: Pipeline) -> int:
    """The smallest number that makes every name of the pipeline free."""
    used = {job.name for job in client.jobs.list(limit=5000)}
    return next(n for n in itertools.count(2) if not any(f"{d.job_id}-{n}" in used for d in pipeline.documents))


def _upload_progress(quiet: bool) -> Callable[[str, int, int], None] | None:
    """Tells about uploads that take a while; None where nobody looks."""
    if quiet or not messages.coloured(sys.stderr):
        return None

    def show(name: str, done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\ruploading {name}: {done * 100 // max(total, 1)} %{end}")
        sys.stderr.flush()

    return show


def _print(arguments: argparse.Namespace, jobs: list[Job]) -> None:
    from luthier.cli import output

    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(job.pb) for job in jobs], single=True)
        return
    for job in jobs:
        output.write(f"{job.name}\n")


def _follow(client: Client, arguments: argparse.Namespace, names: list[str]) -> int:
    from luthier.cli import progress

    if arguments.follow:
        from luthier.cli.follow import print_logs

        for name in names:
            print_logs(client, name, follow=True, prefix=len(names) > 1)
    ended = progress.follow(client, names, quiet=arguments.quiet)
    progress.report(ended.values(), quiet=arguments.quiet)
    return next((code for job in ended.values() if (code := exits.of_state(job.state))), exits.OK)
