"""`luthier up`: the controller in the foreground."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from luthier.cli import exits, messages
from luthier.cli.values import whole


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`up [--listen HOST:PORT] [--state-dir DIR] …`."""
    parser.add_argument("--listen", metavar="HOST:PORT", help="gRPC address (default: 127.0.0.1:7431; port 0: a free one)")
    parser.add_argument(
        "--http-listen", metavar="HOST:PORT", help="address of metrics and health (default: 7432, or a free one with port 0)"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="everything durable (default: ~/.local/state/luthier)")
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="directory that jobs may read as NAME:path (default: cwd and home); with one --root only those given",
    )
    parser.add_argument("--slots", type=whole, metavar="N", help="CPU ranks that may run at once (default: the cores, at least 4)")
    parser.add_argument("--no-prewarm", action="store_true", help="do not load the trainer's libraries before the first job")
    parser.add_argument("--insecure", action="store_true", help="allow an address that is not loopback, without TLS")


def _roots(texts: list[str]) -> dict[str, Path]:
    from luthier.errors import SpecError

    if not texts:
        return {"cwd": Path.cwd(), "home": Path.home()}
    roots: dict[str, Path] = {}
    for text in texts:
        name, equals, directory = text.partition("=")
        if not equals or not name or not directory:
            raise SpecError(f"--root {text!r} is not NAME=DIR", fix="write for example --root data=/srv/data")
        if name in roots:
            raise SpecError(f"--root {name} is given twice", fix="keep one of the two")
        roots[name] = Path(directory).expanduser().resolve()
    return roots


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Run the controller until it is stopped."""
    try:
        from luthier.controller.config import ControllerConfig
        from luthier.controller.main import run as run_controller
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("luthier"):
            raise
        messages.problem(
            "the controller did not start",
            why=f"{error.name} is not installed; this installation has only the client",
            fix="pip install 'luthier[controller]', and 'luthier[trainer]' to run jobs on this machine",
        )
        return exits.ERROR
    settings: dict[str, object] = {"roots": _roots(arguments.root), "prewarm": not arguments.no_prewarm, "insecure": arguments.insecure}
    if arguments.listen:
        settings["listen"] = arguments.listen
    if arguments.http_listen:
        settings["http_listen"] = arguments.http_listen
    if arguments.state_dir:
        settings["state_dir"] = arguments.state_dir.expanduser().absolute()
    if arguments.slots is not None:
        settings["cpu_slots"] = arguments.slots
    config = ControllerConfig(**settings)  # type: ignore[arg-type]
    code = run_controller(config.checked())
    sys.stdout.flush()
    return code
