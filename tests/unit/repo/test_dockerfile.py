"""The Dockerfile, read as data: there is no image engine where the tests run."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPILERS = ("build-essential", "gcc", "g++", "cmake", "clang", "nvcc", "-devel")


def _instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continuation lines joined."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def _stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage name -> (what it starts from, its instructions)."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for instruction, arguments in _instructions():
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            stages[name] = (base, [])
        elif name:
            stages[name][1].append((instruction, arguments))
    return stages


def _inherited(name: str) -> list[tuple[str, str]]:
    """All instructions that make up the image of a stage, oldest first."""
    stages = _stages()
    base, own = stages[name]
    return (_inherited(base) if base in stages else []) + own


def test_the_base_is_pinned_by_tag() -> None:
    """Every stage starts from another stage or from the one pinned Python image."""
    arguments = dict(a.split("=") for i, a in _instructions() if i == "ARG" and "=" in a)
    stages = _stages()

    assert "python:3.11-slim-bookworm" == arguments["PYTHON_IMAGE"]
    assert [] == [base for base, _ in stages.values() if base not in stages and base != "${PYTHON_IMAGE}"]


@pytest.mark.parametrize("target", ["controller", "trainer"])
def test_a_final_stage_has_no_compiler_and_no_package_manager_run(target: str) -> None:
    """What is shipped installs nothing: compilers stay in the build stages."""
    run = [arguments for instruction, arguments in _inherited(target) if instruction == "RUN"]

    assert [] == [line for line in run if any(word in line for word in (*COMPILERS, "apt-get", "pip install"))]
    assert "build" not in {_stages()[target][0]}


@pytest.mark.parametrize("target", ["controller", "trainer"])
def test_a_final_stage_runs_as_a_numeric_user_other_than_root(target: str) -> None:
    """The last USER is a number above 0, so that runAsNonRoot can be verified."""
    user = [arguments for instruction, arguments in _inherited(target) if instruction == "USER"][-1]

    assert all(part.isdecimal() and int(part) > 0 for part in user.split(":"))


@pytest.mark.parametrize("target", ["controller", "trainer"])
def test_a_final_stage_copies_from_a_stage_that_exists(target: str) -> None:
    """COPY --from names a stage, and only its virtual environment is taken."""
    copies = [arguments.split() for instruction, arguments in _inherited(target) if instruction == "COPY"]

    assert [[f"--from=build-{target}", "/opt/luthier", "/opt/luthier"]] == copies


@pytest.mark.parametrize("target", ["controller", "trainer"])
def test_a_final_stage_says_how_its_health_is_known(target: str) -> None:
    """There is a HEALTHCHECK, or an explicit NONE."""
    assert any(instruction == "HEALTHCHECK" for instruction, _ in _inherited(target))


def test_every_pip_install_is_constrained() -> None:
    """No line installs an unpinned version."""
    lines = [part for i, a in _instructions() if i == "RUN" for part in a.split("&&") if "pip install" in part]

    assert lines
    assert [] == [line for line in lines if "-c constraints.txt" not in line]


def test_the_controller_image_has_no_training_stack() -> None:
    """The controller's build names the extra without torch, and nothing of its stages installs torch."""
    lines = [a for i, a in _inherited("build-controller") if i == "RUN" and "pip install" in a]

    assert "'.[controller]'" in lines[-1]
    assert [] == [line for line in lines if "torch" in line or "deepspeed" in line or "trainer" in line]


def test_deepspeed_is_installed_after_torch_without_isolation_and_without_ops() -> None:
    """Its build must see the pinned torch, and must compile nothing."""
    lines = [a for i, a in _inherited("build-trainer") if i == "RUN" and "pip install" in a]
    (index,) = [i for i, line in enumerate(lines) if line.endswith(" deepspeed")]

    assert lines[index - 1].endswith(" torch")
    assert lines[index].startswith("DS_BUILD_OPS=0 ")
    assert "--no-build-isolation" in lines[index]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    """Sources of COPY are in the repository, and .dockerignore lets through what the package is built from."""
    copied = [a.split()[:-1] for name in _stages() for i, a in _stages()[name][1] if i == "COPY" and "--from" not in a]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert [] == [source for sources in copied for source in sources if not (ROOT / source).exists()]
    assert [] == [path for path in allowed if not (ROOT / path).exists()]
    needed = ["constraints.txt", "pyproject.toml", "README.md", "LICENSE", "src", "controller", "trainer_node", "methods", "k8s"]
    assert [] == [path for path in needed if not any(fnmatch.fnmatch(path, pattern) for pattern in allowed)]
