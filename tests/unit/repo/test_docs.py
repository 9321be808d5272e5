"""Pages whose tables come from code are what code says now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_generated_tables_are_current() -> None:
    """`make docs` would change nothing."""
    done = subprocess.run([sys.executable, "-P", ROOT / "tools/docs.py", "--check"], capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)


def test_every_block_is_filled() -> None:
    """No page ships an empty generated block."""
    blocks = [
        (page.name, match[1], match[2].strip())
        for page in (ROOT / "docs").glob("*.md")
        for match in re.finditer(r"<!-- generated: ([a-z-]+) -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL)
    ]

    assert blocks
    assert [] == [(page, name) for page, name, text in blocks if not text]
