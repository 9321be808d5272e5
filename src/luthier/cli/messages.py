"""What the command says on stderr: errors in four parts (what, where, why, fix), hints, questions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from luthier.errors import LuthierError

__all__ = ["coloured", "confirm", "detached", "failure", "hint", "note", "problem"]


def coloured(stream: TextIO) -> bool:
    """True where colour and moving bars are welcome: a terminal, and NO_COLOR unset."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        return  # nobody reads our complaints; the exit code still tells


def problem(what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
    """One error."""
    word = "\033[1;31merror:\033[0m" if coloured(sys.stderr) else "error:"
    _say("\n".join([f"{word} {what}", *_parts(where, why, fix)]))


def _parts(where: str, why: str, fix: str) -> list[str]:
    return [f"  {label:<6} {text}" for label, text in (("where:", where), ("why:", why), ("fix:", fix)) if text]


_FIXES = {
    "JOB_NOT_FOUND": "`luthier get` lists the jobs",
    "JOB_ID_TAKEN": "choose another name with --name, --suffix or --generate-name, or remove the old job with `luthier delete NAME`",
    "JOB_ACTIVE": "cancel it first: `luthier cancel NAME`",
    "UNAUTHENTICATED": "give the right token with --token-file or LUTHIER_TOKEN_FILE",
    "NOT_IMPLEMENTED": "this release does not have it yet",
    "DRAINING": "the controller is shutting down; try again when it is back",
    "STORE_BUSY": "try again in a moment",
}


def failure(what: str, error: LuthierError) -> None:
    """An error of ours or of the server, every violation with its own place and fix."""
    violations: Sequence[object] = getattr(error, "violations", ())
    if not violations:
        fix = error.fix or _FIXES.get(error.reason, "")
        correlation = error.metadata.get("correlation_id", "")
        if error.reason == "INTERNAL" and correlation:
            fix = fix or f"this is a bug; report it with the correlation id {correlation}"
        problem(what, where=error.where, why=error.message, fix=fix)
        return
    lines: list[str] = []
    for violation in violations:
        field = str(getattr(violation, "field", ""))
        place = ", ".join(part for part in (str(getattr(violation, "where", "")), field) if part)
        lines += _parts(place, str(getattr(violation, "description", "")), str(getattr(violation, "fix", "")) or error.fix)
    word = "\033[1;31merror:\033[0m" if coloured(sys.stderr) else "error:"
    count = f" ({len(violations)} problems)" if len(violations) > 1 else ""
    _say("\n".join([f"{word} {what}{count}", *lines]))


def note(text: str, *, quiet: bool = False) -> None:
    """Something good to know."""
    if not quiet:
        _say(text)


def hint(text: str, *, quiet: bool = False) -> None:
    """What to do next, or why there is nothing to see."""
    if not quiet:
        _say(f"hint: {text}")


def detached(verb: str, names: str | Iterable[str] | None) -> None:
    """What Ctrl-C means: the job goes on."""
    listed = [names] if isinstance(names, str) else list(names or ())
    if verb in ("logs", "wait", "submit") and listed:
        text = " ".join(listed)
        again = f"luthier logs -f {text}" if verb == "logs" else f"luthier wait {text}"
        _say(f"\ndetached; the jobs go on. Reattach: {again}   cancel: luthier cancel {text}")
    else:
        _say("\ninterrupted")


def confirm(question: str, *, yes: bool) -> bool:
    """True to go on. On a terminal the user is asked; elsewhere `--yes` is needed."""
    if yes:
        return True
    if not sys.stdin.isatty():
        problem("nothing was done", why=f"{question} needs a yes, and there is no terminal to ask on", fix="add --yes")
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
