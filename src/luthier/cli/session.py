"""The connection of a verb."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.errors import Conflict, DeadlineExceeded, JobNotFound, LuthierError

if TYPE_CHECKING:
    from luthier.client import Client

__all__ = ["connect"]


@contextlib.contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client for the arguments of `connection_arguments`. Errors of the server leave with the place they came from."""
    from pathlib import Path

    from luthier.client import Client
    from luthier.client.connection import read_token

    token = read_token(Path(arguments.token_file).expanduser()) if arguments.token_file else None
    client = Client(arguments.address, token=token, state_dir=arguments.state_dir)
    try:
        yield client
    except JobNotFound as error:
        error.fix = _near_job(client, arguments) or error.fix
        error.where = error.where or f"controller at {client.connection.address}"
        raise
    except Conflict as error:
        error.where = error.where or f"controller at {client.connection.address}"
        raise
    except LuthierError as error:
        if not getattr(error, "violations", ()) and not isinstance(error, DeadlineExceeded):
            error.where = error.where or f"controller at {client.connection.address} (from {client.connection.origin})"
        raise
    finally:
        client.close()


def _near_job(client: Client, arguments: argparse.Namespace) -> str:
    """The existing job whose name is nearest to one that was given."""
    given = getattr(arguments, "name", None) or []
    try:
        names = [job.name for job in client.jobs.list(limit=500)]
    except LuthierError:
        return ""  # the first error is the one to tell
    for name in [given] if isinstance(given, str) else given:
        if name.removeprefix("jobs/") not in names and (near := difflib.get_close_matches(name, names, 1)):
            return f"did you mean {near[0]!r}? `luthier get` lists the jobs"
    return ""
