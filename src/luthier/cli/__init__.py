"""The command `luthier`: one module per group of verbs, imported when its verb runs.

`luthier --help` and `luthier VERB --help` load neither grpc, pydantic, torch nor rich; a test looks at `sys.modules`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (`luthier.cli.exits`)."""
    try:
        from luthier.cli.command import run

        return run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        # Before a verb could say more: still no traceback.
        return 130


if __name__ == "__main__":
    sys.exit(main())
