"""What `make test` and `make test-all` run: static checks, then every suite in one pytest run.

All static checks run, each with its time; a finding ends the run before the tests with a list of what failed. The last line of a
run that reached the tests is pytest's own. Arguments after the flags go to pytest.

Suites that start real processes share one xdist worker, so that they never compete with each other for the cores; everything else
runs on the other worker meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

STATIC: tuple[tuple[str, list[str]], ...] = (
    ("lint", [str(BIN / "ruff"), "check", "--quiet", "."]),
    ("format", [str(BIN / "ruff"), "format", "--check", "--quiet", "."]),
    ("types", [str(BIN / "mypy")]),
    ("imports", [str(BIN / "lint-imports"), "--no-logo"]),
    ("proto", [sys.executable, "tools/proto.py", "check"]),
    ("docs", [sys.executable, "tools/docs.py", "--check"]),
)
# Counts of property tests in `make test-all`; a variable that is set already wins. In `make test` the tests use their own small ones.
FULL_COUNTS = {
    "LUTHIER_FULL_COUNTS": "1",
    "LUTHIER_SPEC_EXAMPLES": "50000",
    "LUTHIER_QUEUE_EXAMPLES": "20000",
    "LUTHIER_DECIDE_EXAMPLES": "20000",
}
SELECT = {False: "not (slow or cluster or gpu)", True: "not (cluster or gpu)"}


def _timed(name: str, argv: list[str]) -> bool:
    started = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
    passed = done.returncode == 0
    print(f"check: {name:<8} {'ok' if passed else 'FAILED':<6} {time.monotonic() - started:6.1f} s", flush=True)
    if not passed:
        print(done.stdout + done.stderr, flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="slow suites and full counts too")
    parser.add_argument("--static", action="store_true", help="static checks only")
    arguments, rest = parser.parse_known_args()
    # A shell that starts this in the background makes it ignore Ctrl-C, and programs inherit that; our tests send Ctrl-C to programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = [name for name, argv in STATIC if not _timed(name, argv)]
    if failed:
        print(f"check: {', '.join(failed)} failed; the tests were not run. Fix: see above, then `make test` again.", file=sys.stderr)
        return 1
    if arguments.static:
        return 0
    environment = {**(FULL_COUNTS if arguments.all else {}), **os.environ}
    limit = ["--timeout", "7200"] if arguments.all else []  # full counts take their time
    pytest = [
        str(BIN / "pytest"),
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "-m",
        SELECT[arguments.all],
        "-q",
        "-rfEs",
        "--durations=10",
        *limit,
        *rest,
    ]
    return subprocess.run(pytest, cwd=ROOT, check=False, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
