"""The contract's tool chain: generate Python from `proto/`, lint it, and refuse breaking changes. Everything runs offline.

    python tools/proto.py generate    write src/luthier/v1 (what `make proto` does, then `check`)
    python tools/proto.py drift       fail when src/luthier/v1 is not what `generate` would write
    python tools/proto.py lint        buf lint, with the rules of proto/buf.yaml
    python tools/proto.py breaking    buf breaking against proto/luthier_v1.binpb, the descriptor image of the last release
    python tools/proto.py check       drift, lint and breaking
    python tools/proto.py release     replace that image; only when a release is made

buf never sees the sources: protoc compiles them, with google/api from the installed googleapis-common-protos, to a descriptor
image that buf reads. So no module has to be downloaded, and buf and the generated code agree on one parser.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "src"
PACKAGE = Path("luthier/v1")
RELEASED = SOURCE / "luthier_v1.binpb"
BIN = Path(sys.executable).parent  # buf and the protoc plugin are console scripts of the same environment


class ToolError(Exception):
    """A tool reported findings or could not run; the text is for the user."""


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolError((done.stdout + done.stderr).strip() or f"{argv[0]} ended with exit code {done.returncode}")


def _tool(name: str) -> str:
    path = BIN / name
    if not path.exists():
        raise ToolError(f"{name} is not installed beside {sys.executable}. Fix: run `make setup` and use .venv/bin/python")
    return str(path)


def google_include() -> Path:
    """Folder that holds google/api/*.proto. Raises `ToolError` when the distribution is missing."""
    found = importlib.util.find_spec("google.api")
    if found is None or not found.submodule_search_locations:
        raise ToolError("google/api/*.proto not found. Fix: pip install googleapis-common-protos")
    return Path(next(iter(found.submodule_search_locations))).parent.parent


def sources(root: Path) -> list[str]:
    """The contract's files below `root`, sorted."""
    files = sorted(str(p) for p in (root / PACKAGE).glob("*.proto"))
    if not files:
        raise ToolError(f"no .proto files in {root / PACKAGE}")
    return files


def _protoc(root: Path, *arguments: str) -> None:
    _run([sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"-I{google_include()}", *arguments, *sources(root)])


def generate(target: Path, root: Path = SOURCE) -> None:
    """Write messages, stubs and their types below `target`.

    Types of the stubs come from mypy-protobuf; servicers are concrete there because an RPC that is not overridden answers
    UNIMPLEMENTED, which is no type error.
    """
    _protoc(
        root,
        f"--plugin=protoc-gen-mypy_grpc={_tool('protoc-gen-mypy_grpc')}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=generate_concrete_servicer_stubs:{target}",
    )


def image(out: Path, root: Path = SOURCE, *, comments: bool) -> None:
    """Write the descriptor image of the contract and its imports to `out`."""
    extra = ["--include_source_info"] if comments else []
    _protoc(root, "--include_imports", *extra, f"--descriptor_set_out={out}")


def drift(target: Path = TARGET) -> list[str]:
    """Files below `target`/luthier/v1 that differ from what `generate` writes, with what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, present = Path(folder) / PACKAGE, target / PACKAGE
        wanted = {p.name for p in fresh.iterdir()}
        have = {p.name for p in present.iterdir() if "_pb2" in p.name}
        findings = [f"{PACKAGE / name}: missing" for name in sorted(wanted - have)]
        findings += [f"{PACKAGE / name}: has no source" for name in sorted(have - wanted)]
        differing = (name for name in sorted(wanted & have) if not filecmp.cmp(fresh / name, present / name, shallow=False))
        return findings + [f"{PACKAGE / name}: differs from its source" for name in differing]


def lint(root: Path = SOURCE) -> None:
    """Raise `ToolError` with buf's findings."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "image.binpb"
        image(compiled, root, comments=True)
        _run([_tool("buf"), "lint", str(compiled), "--config", str(SOURCE / "buf.yaml"), "--path", str(PACKAGE)])


def breaking(root: Path = SOURCE, against: Path = RELEASED) -> None:
    """Raise `ToolError` with every change that breaks a client of `against`."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "image.binpb"
        image(compiled, root, comments=True)
        config = str(SOURCE / "buf.yaml")
        _run([_tool("buf"), "breaking", str(compiled), "--against", str(against), "--config", config, "--path", str(PACKAGE)])


def _replace_generated() -> None:
    """Bring src/luthier/v1 up to date file by file, so that a process that imports it meanwhile never misses a module."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {p.name: p for p in (Path(folder) / PACKAGE).iterdir()}
        for name, path in fresh.items():
            present = TARGET / PACKAGE / name
            if not present.exists() or not filecmp.cmp(path, present, shallow=False):
                shutil.copyfile(path, present)
        for stale in (TARGET / PACKAGE).glob("*_pb2*"):
            if stale.name not in fresh:
                stale.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["generate", "drift", "lint", "breaking", "check", "release"])
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the .proto files (lint and breaking)")
    arguments = parser.parse_args()
    command: str = arguments.command
    try:
        if command == "generate":
            _replace_generated()
        if command == "release":
            image(RELEASED, comments=False)
        if command in ("drift", "check") and (findings := drift()):
            raise ToolError("\n".join([*findings, "Fix: run `make proto` and commit the result"]))
        if command in ("lint", "check"):
            lint(arguments.source)
        if command in ("breaking", "check"):
            breaking(arguments.source)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
