"""`make setup` says what is missing, and does nothing twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INPUTS = ("constraints.txt", "pyproject.toml", "tools/setup.sh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and no environment yet."""
    for name in INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _setup(checkout: Path, python: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run([checkout / "tools/setup.sh"], env=environment, capture_output=True, text=True, check=False)


def _program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_python_is_said(checkout: Path) -> None:
    """A missing interpreter is named, with the way to name another one."""
    done = _setup(checkout, "no-such-python")

    assert 1 == done.returncode
    assert (
        "setup: no-such-python not found\nFix: install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3\n"
        == done.stderr
    )


def test_an_old_python_is_refused(checkout: Path) -> None:
    """An interpreter below 3.11 is refused before anything is made."""
    old = _program(checkout / "old-python", '[ "$1" = --version ] && echo "Python 3.9.2" && exit 0; exit 1')

    done = _setup(checkout, old)

    assert 1 == done.returncode
    assert done.stderr.startswith("setup: Python 3.9.2 is too old; Luthier needs Python 3.11 or newer\nFix: ")
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_refused(checkout: Path) -> None:
    """Debian's bare python3 is told which package is missing."""
    bare = _program(
        checkout / "bare-python",
        'case "$*" in --version) echo "Python 3.11.2";; *venv*) exit 1;; *) exit 0;; esac',
    )

    done = _setup(checkout, bare)

    assert 1 == done.returncode
    assert done.stderr.startswith(
        "setup: Python 3.11.2 comes without the venv module\nFix: install it; on Debian and Ubuntu: apt-get install"
    )


def test_a_finished_environment_is_left_alone(checkout: Path) -> None:
    """With a stamp that matches the pins, set-up looks for no interpreter and installs nothing."""
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    digest = hashlib.sha256(b"".join((checkout / name).read_bytes() for name in INPUTS)).hexdigest()
    (checkout / ".venv/.luthier-stamp").write_text(f"{digest}\n")

    done = _setup(checkout, "no-such-python")

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_a_changed_pin_sets_up_again(checkout: Path) -> None:
    """A stamp of other pins does not count."""
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    (checkout / ".venv/.luthier-stamp").write_text(f"{'0' * 64}\n")

    done = _setup(checkout, "no-such-python")

    assert 1 == done.returncode
