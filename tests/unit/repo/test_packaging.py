"""What is packaged, and what importing it costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINKED = ("controller", "trainer_node", "methods", "k8s")
HEAVY = ("torch", "deepspeed", "transformers", "peft", "accelerate")


def _copy(target: Path) -> Path:
    """The distribution's sources without build products, links kept."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", *LINKED):
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, target / file)
    return target


def _modules(folder: Path, package: str) -> set[str]:
    """Names in the wheel of every module below `folder`; each folder with modules is a package."""
    return {f"{package}/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of this tree."""
    tree = _copy(tmp_path_factory.mktemp("tree"))
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=tree, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


@pytest.mark.parametrize("folder", LINKED)
def test_a_top_level_folder_is_linked_into_the_import_root(folder: str) -> None:
    """src/luthier/<folder> is a link to the folder, in the working tree and in git's eyes."""
    link = ROOT / "src/luthier" / folder

    assert link.is_symlink()
    assert Path("../..") / folder == link.readlink()


@pytest.mark.parametrize("folder", LINKED)
def test_the_wheel_has_every_module_of_a_linked_folder(wheel: set[str], folder: str) -> None:
    """A wheel holds the linked folders as packages: a change of the build backend cannot lose one quietly."""
    expected = _modules(ROOT / folder, f"luthier/{folder}")

    assert expected == {name for name in wheel if name.startswith(f"luthier/{folder}/") and name.endswith(".py")}


def test_the_wheel_has_the_import_root(wheel: set[str]) -> None:
    """SDK, CLI, generated code and the marker of typed packages are in the wheel, and nothing outside `luthier`."""
    expected = {
        f"luthier/{p.relative_to(ROOT / 'src/luthier').as_posix()}"
        for p in (ROOT / "src/luthier").rglob("*.py")
        if p.relative_to(ROOT / "src/luthier").parts[0] not in LINKED
    }

    assert set() == expected - wheel
    assert {"luthier/py.typed", "luthier/v1/job_pb2.pyi", "luthier/v1/job_service_pb2_grpc.pyi"} <= wheel
    assert {"luthier"} == {name.split("/")[0] for name in wheel if ".dist-info/" not in name}


def test_the_wheel_has_data_files_that_code_reads(wheel: set[str]) -> None:
    """SQL, YAML and Markdown beside modules are packaged."""
    data = {
        f"luthier/{folder}/{p.relative_to(ROOT / folder).as_posix()}"
        for folder in LINKED
        for p in (ROOT / folder).rglob("*")
        if p.suffix in {".sql", ".yaml", ".md", ".mako"} and (p.parent / "__init__.py").exists()
    }

    assert set() == data - wheel


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        pytest.param("import luthier", (*HEAVY, "grpc", "google.protobuf", "pydantic"), id="luthier"),
        pytest.param("import luthier.errors", (*HEAVY, "grpc", "pydantic"), id="errors"),
        pytest.param("import luthier.cli", (*HEAVY, "grpc", "rich", "kubernetes"), id="cli"),
        pytest.param("import luthier.client", (*HEAVY, "kubernetes", "luthier.controller"), id="client"),
        pytest.param("from luthier.methods.registry import all_specs; all_specs()", (*HEAVY, "grpc"), id="method-specs"),
        pytest.param("import luthier.controller.main", (*HEAVY, "luthier.trainer_node", "kubernetes"), id="controller"),
        pytest.param("import luthier.trainer_node.agent", (*HEAVY, "luthier.controller", "kubernetes"), id="agent"),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, absent: tuple[str, ...]) -> None:
    """A fresh interpreter that imports one part has not loaded the heavy ones."""
    probe = f"import sys; {statement}; print(*sorted(name for name in {absent!r} if name in sys.modules))"

    done = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)

    assert "" == done.stdout.strip()


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    """Each requirement of pyproject.toml has exactly one pin, and the pins name no local version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.split(r"[<>=\[]", r)[0] for r in wanted} - {"luthier"}

    assert set() == {n for n in names if n.lower().replace("_", "-") not in pins}
    assert {} == {n: v for n, v in pins.items() if "+" in v}


def test_grpc_and_protobuf_pins_equal_what_generated_the_code() -> None:
    """Generated stubs refuse an older grpcio at import, so all gRPC packages carry one version."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")
    stub = (ROOT / "src/luthier/v1/job_service_pb2_grpc.py").read_text()
    generated = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", stub)

    assert generated is not None
    assert {generated.group(1)} == {version for name, version in pins.items() if name.startswith("grpcio")}


@pytest.mark.slow  # installs into a fresh environment over the network
@pytest.mark.timeout(600)
def test_the_controller_image_needs_no_torch(tmp_path: Path) -> None:
    """The pip lines of the Dockerfile's controller stages make an environment that runs the controller's entry without torch."""
    tree = _copy(tmp_path / "tree")
    shutil.copy(ROOT / "constraints.txt", tree / "constraints.txt")
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().split("FROM build AS build-trainer")[0].splitlines()]
    commands = [[part.strip("'") for part in line[1:]] for line in lines if line[:2] == ["RUN", "pip"]]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    for command in commands:
        subprocess.run([python, "-m", *command], cwd=tree, check=True, capture_output=True)

    done = subprocess.run(
        [python, "-P", "-c", "import luthier.controller.main, importlib.util as u; print(u.find_spec('torch'))"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert (2, "None\n", "") == (len(commands), done.stdout, done.stderr)
