"""The import contracts of pyproject.toml catch what they are there for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

OFFENCES = {
    # one offending line per contract, in a module that the contract covers: the contract that must break
    ("src/luthier/v1/__init__.py", "import luthier.errors"): "luthier.v1 is generated and knows nothing of ours",
    ("src/luthier/errors.py", "import luthier.spec"): "luthier.errors needs the standard library only",
    ("src/luthier/spec/models.py", "import torch"): "spec, SDK and CLI reach neither the training stack nor the servers",
    ("methods/sft/spec.py", "import grpc"): "the torch-free half of a plugin knows pydantic and luthier.errors",
    ("methods/sft/__init__.py", "import luthier.trainer_node"): "methods know nothing of the service",
    ("methods/pretrain/spec.py", "import luthier.methods.sft.spec"): "no method imports another method's folder",
    ("trainer_node/launch.py", "import kubernetes"): "trainer nodes know nothing of the control plane",
    ("trainer_node/context.py", "import luthier.methods.sft.method"): "the agent never imports torch",
    ("k8s/__init__.py", "import luthier.spec"): "k8s makes plain objects",
    ("controller/tokens.py", "import luthier.trainer_node.launch"): "the controller reaches neither the training stack nor trainer nodes",
    ("controller/executors/__init__.py", "import luthier.k8s"): "only executors.kubernetes reaches k8s",
}


def _broken(root: Path) -> set[str]:
    """Names of the broken contracts of the tree at `root`."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "--no-logo", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return {name.strip() for name in re.findall(r"^(.*?) BROKEN", done.stdout, re.MULTILINE)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages that a test may change."""
    for folder in ("src", "controller", "trainer_node", "methods", "k8s"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_has_an_offence_here() -> None:
    """A contract that nothing can break would be a comment."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

    assert {c["name"] for c in contracts} == set(OFFENCES.values())


def test_every_contract_is_kept_by_the_tree_and_broken_by_its_offence(tree: Path) -> None:
    """The tree is clean; with one offending import per contract, each contract is broken."""
    assert set() == _broken(tree)

    for file, line in OFFENCES:
        with (tree / file).open("a") as module:
            module.write(f"\n{line}\n")

    assert set(OFFENCES.values()) == _broken(tree)
