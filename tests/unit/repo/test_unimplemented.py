"""RPCs that a later release fills are listed in the docs, and only those."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_api_page_lists_the_rpcs_that_answer_unimplemented() -> None:
    """The page's table is what the handlers do."""
    page = (ROOT / "docs/api.md").read_text()
    listed = set(re.findall(r"^\| `(\w+Service)\.(\w+)` \|", page, re.MULTILINE))
    handlers = {
        (node.name, method.name)
        for path in (ROOT / "controller/service").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.AsyncFunctionDef)
        and any(isinstance(inner, ast.Raise) and "NotImplementedYet" in ast.unparse(inner) for inner in method.body)
    }

    assert {name for _, name in listed} == {name for _, name in handlers}
