"""The command line: the table of verbs, parsing, and what happens when a verb fails."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from luthier.cli import exits, messages

__all__ = ["VERBS", "run"]

# verb -> (module, one line, what did not happen when it fails)
VERBS: dict[str, tuple[str, str, str]] = {
    "up": ("up", "start a controller on this machine", "the controller did not start"),
    "submit": ("submit", "submit the jobs of a YAML file", "nothing was submitted"),
    "get": ("show", "list jobs, or show some", "the jobs cannot be shown"),
    "describe": ("describe", "tell the story of a job", "the job cannot be described"),
    "logs": ("follow", "print the logs of a job's nodes and ranks", "the logs cannot be shown"),
    "events": ("follow", "print what happened to a job", "the events cannot be shown"),
    "wait": ("follow", "wait for jobs with a live progress bar", "waiting ended early"),
    "cancel": ("steer", "end jobs without their result", "the job was not cancelled"),
    "pause": ("steer", "save jobs and free their nodes", "the job was not paused"),
    "resume": ("steer", "go on with paused jobs", "the job was not resumed"),
    "retry": ("steer", "queue failed or cancelled jobs again", "the job was not queued again"),
    "delete": ("steer", "delete ended jobs and what they stored", "the job was not deleted"),
    "checkpoints": ("outputs", "list a job's checkpoints", "the checkpoints cannot be shown"),
    "artifacts": ("outputs", "list a job's artifacts", "the artifacts cannot be shown"),
    "pull": ("outputs", "download an artifact and verify it", "the artifact was not downloaded"),
    "metrics": ("series", "show a job's step series", "the metrics cannot be shown"),
    "plot": ("series", "draw a job's loss curve", "the plot was not drawn"),
    "methods": ("catalog", "list methods, objectives and adapters, or show one", "the methods cannot be shown"),
    "version": ("catalog", "print the versions of client and server", "the version cannot be shown"),
}

_EPILOG = (
    "`luthier VERB --help` explains a verb. Exit codes: 0 ok, 1 error, 2 usage, 4 not found, 5 denied, 6 job failed, 7 job cancelled, \
8 server unavailable, 124 timeout, 130 interrupted."
)


class Parser(argparse.ArgumentParser):
    """argparse with our error messages and near names."""

    def error(self, message: str) -> NoReturn:
        fix = f"see `{self.prog} --help`"
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized arguments") and unknown and unknown[0].startswith("-"):
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
            fix = f"did you mean {near[0]}?" if near else fix
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            options = [word.strip(" '") for word in choice[2].split(",")]
            near = difflib.get_close_matches(choice[1], options, 1)
            fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(options)}"
            message = message[: choice.start()] + f"{choice[1]!r} is not a value of this option"
        messages.problem("the command line is wrong", why=message, fix=fix)
        raise SystemExit(exits.USAGE)


def _help_text() -> str:
    width = max(map(len, VERBS))
    lines = ["usage: luthier VERB [options]", "", "Fine-tuning as a service: submit, follow and steer jobs.", "", "verbs:"]
    lines += [f"  {verb:<{width}}  {summary}" for verb, (_, summary, _) in VERBS.items()]
    return "\n".join([*lines, "", _EPILOG, ""])


def connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the controller is."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="controller to talk to (default: $LUTHIER_ADDRESS, context file, state directory)"
    )
    group.add_argument("--token-file", metavar="FILE", help="file with the token, readable by its owner only")
    group.add_argument("--state-dir", metavar="DIR", help="state directory of a controller on this machine")


def output_arguments(parser: argparse.ArgumentParser, formats: Sequence[str] = ("table", "wide", "json", "yaml", "name")) -> None:
    """How the answer is printed."""
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", choices=list(formats), default="table", help="form of the answer (default: table)")
    group.add_argument("-q", "--quiet", action="store_true", help="print names only, and nothing to stderr but errors")


def _unknown_verb(word: str) -> int:
    near = difflib.get_close_matches(word, VERBS, 1)
    fix = f"did you mean `luthier {near[0]}`?" if near else "`luthier --help` lists the verbs"
    messages.problem("the command line is wrong", why=f"there is no verb {word!r}", fix=fix)
    return exits.USAGE


def run(argv: Sequence[str]) -> int:
    """Parse, run the verb, and turn whatever happens into an exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        if len(argv) > 1 and argv[0] == "help" and argv[1] in VERBS:
            return run([argv[1], "--help"])
        sys.stdout.write(_help_text())
        return exits.OK if argv else exits.USAGE
    if argv[0] == "--version":
        return run(["version", *argv[1:]])
    verb = argv[0]
    if verb not in VERBS:
        return _unknown_verb(verb)
    module_name, summary, failure = VERBS[verb]
    module: Any = importlib.import_module(f"luthier.cli.{module_name}")
    parser = Parser(prog=f"luthier {verb}", description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False)
    module.arguments(verb, parser)
    try:
        arguments = parser.parse_args(argv[1:])
    except SystemExit as stop:
        return int(stop.code or 0)
    return _guarded(verb, module, arguments, failure)


def _guarded(verb: str, module: Any, arguments: argparse.Namespace, failure: str) -> int:
    from luthier.errors import LuthierError

    try:
        code: int = module.run(verb, arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        # A second Ctrl-C while we say good-bye would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        messages.detached(verb, getattr(arguments, "name", None))
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain at exit about the rest of the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except LuthierError as error:
        messages.failure(failure, error)
        return exits.code_of(error)
    except OSError as error:
        messages.problem(
            failure,
            why=f"{error.filename or 'the system'}: {error.strerror or error}",
            fix="check the path, its permissions and the free space",
        )
        return exits.ERROR
