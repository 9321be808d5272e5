"""What the repository's files say about themselves is true."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

import luthier

ROOT = Path(__file__).parents[3]


def _files() -> list[Path]:
    """Every text file that is or would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [p for p in paths if p.is_file() and p.suffix not in {".binpb", ".png", ".parquet"}]


def test_no_file_mentions_a_path_of_the_machine_it_was_written_on() -> None:
    """Absolute paths of somebody's machine mean nothing to a reader."""
    absolute = re.compile(r"(?<![\w.~}/-])/(?:work|home|root|Users|mnt|tmp/[\w.-]*luthier)(?:/\w|\b(?=/))")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if absolute.search(line) and path != Path(__file__)
    ]

    assert [] == found


def test_every_test_says_what_it_promises() -> None:
    """Test functions have a docstring of at least a few words."""
    silent = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")):
                continue
            if len((ast.get_docstring(node) or "").split()) < 3:
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")

    assert [] == silent


def test_the_changelog_has_the_version() -> None:
    """The version of the package has a section of its own."""
    assert re.search(rf"^## \[{re.escape(luthier.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_make_target_has_one_line_of_documentation() -> None:
    """`make help` knows every target, and every target is phony."""
    text = (ROOT / "Makefile").read_text()
    documented = set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)

    assert phony is not None
    assert _targets() == documented == set(phony.group(1).split())


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))
def test_a_page_names_only_make_targets_that_exist(page: str) -> None:
    """`make X` in a page is a target."""
    named = set(re.findall(r"(?:`|^|\$ )make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))

    assert set() == named - _targets()


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("**/*.md") if ".venv" not in p.parts))
def test_a_page_links_only_to_what_exists(page: str) -> None:
    """Relative links and images of a page lead to a file of the repository."""
    path = ROOT / page
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    relative = [t for t in targets if "://" not in t and not t.startswith("mailto:")]

    assert [] == [t for t in relative if not (path.parent / t).exists()]


def test_the_tree_of_the_readme_exists() -> None:
    """Every path of the README's tree is in the repository, and every top-level folder is in the tree."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## The tree\n.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    named = {line.split()[0] for line in block.group(1).splitlines() if line.strip() and not line.startswith(" ")}
    folders = {f"{p.relative_to(ROOT).parts[0]}/" for p in _files() if len(p.relative_to(ROOT).parts) > 1}

    assert [] == [name for name in sorted(named) if not (ROOT / name).exists()]
    assert set() == {f for f in folders if not f.startswith(".")} - {f"{name.split('/')[0]}/" for name in named}
