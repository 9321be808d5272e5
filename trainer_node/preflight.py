"""Checks of a node before it declares itself ready: storage, disk, versions, ports, inputs. No torch; a few milliseconds on a laptop.

A missing or unreadable input is the user's error and fails the job at once; anything else is the node's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.trainer_node.environment import installed_versions
from luthier.trainer_node.launch import NodeLaunch

__all__ = ["MIN_FREE_BYTES", "Preflight", "check_node", "check_shared", "forget_marks"]

MIN_FREE_BYTES = 256 << 20
"""Free space that the store and the node's folder need at least: a log and a small checkpoint."""

DATA = 65
_MARKS = "preflight"


@dataclass(frozen=True)
class Preflight:
    """What was found; `code` is 64 or 65 for a user's error, else 0."""

    passed: bool
    message: str = ""
    user_error: bool = False
    code: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`luthier.v1.PreflightResult` in proto JSON."""
        return {
            "passed": self.passed,
            "message": self.message,
            "userError": self.user_error,
            "code": self.code,
            "seconds": dict(self.seconds),
        }


class _Failed(Exception):
    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def check_node(launch: NodeLaunch, node_dir: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> Preflight:
    """Run every check until one fails."""
    versions: dict[str, str] = {}
    checks: list[tuple[str, Callable[[], None]]] = [
        ("inputs", lambda: _check_inputs(launch)),
        ("storage", lambda: _check_storage(launch)),
        ("disk", lambda: _check_disk((launch.prefix, node_dir), min_free_bytes)),
        ("versions", lambda: _check_versions(versions)),
        ("ports", lambda: _check_ports(launch.host)),
        ("device", lambda: _check_device(launch)),
    ]
    seconds: dict[str, float] = {}
    for name, check in checks:
        started = time.monotonic()
        try:
            check()
        except _Failed as failure:
            return Preflight(False, str(failure), bool(failure.code), failure.code, seconds, versions)
        finally:
            seconds[name] = time.monotonic() - started
    return Preflight(True, seconds=seconds, versions=versions)


def check_shared(launch: NodeLaunch, *, seconds: float = 10.0) -> str:
    """After all nodes are ready: does this node see what the others wrote? "" when it does, else what is wrong.

    Network file systems show new files late, so that the check is repeated for a while.
    """
    deadline = time.monotonic() + seconds
    while True:
        missing = [i for i in range(launch.num_nodes) if not _mark(launch, i).exists()]
        if not missing:
            return ""
        if time.monotonic() >= deadline:
            nodes = ", ".join(str(i) for i in missing)
            return (
                f"node {launch.node} does not see what node {nodes} wrote to {launch.prefix}: the store is not shared between the nodes. "
                "Fix: give all nodes the same file system, or run the job on one node"
            )
        time.sleep(0.2)


def forget_marks(launch: NodeLaunch) -> None:
    """Remove this node's mark from the store."""
    with contextlib.suppress(OSError):
        _mark(launch, launch.node).unlink(missing_ok=True)
        _mark(launch, launch.node).parent.rmdir()


def _mark(launch: NodeLaunch, node: int) -> Path:
    return launch.prefix / _MARKS / f"a{launch.attempt}" / f"n{node}"


def _check_storage(launch: NodeLaunch) -> None:
    """Write, rename, read back; the mark stays for `check_shared`."""
    mark = _mark(launch, launch.node)
    text = os.urandom(16).hex()
    fresh = mark.with_suffix(f".{os.getpid()}.new")
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(mark)
        read = mark.read_text()
    except OSError as error:
        problem = f"the job's store {launch.prefix} cannot be written: {error.strerror}. Fix: make it writable for this user"
        raise _Failed(problem) from error
    if read != text:
        raise _Failed(f"the job's store {launch.prefix} gave back other bytes than were written")


def _check_disk(places: tuple[Path, ...], min_free_bytes: int) -> None:
    for place in places:
        free = shutil.disk_usage(place).free
        if free < min_free_bytes:
            found = f"{place} has {free >> 20} MiB free; {min_free_bytes >> 20} MiB are needed"
            raise _Failed(f"{found}. Fix: free space, or move the state directory")


def _check_versions(versions: dict[str, str]) -> None:
    versions.update(installed_versions())
    missing = [name for name, version in versions.items() if not version]
    if missing:
        raise _Failed(f"{', '.join(missing)} is not installed here. Fix: pip install 'luthier[trainer]' in this node's environment")


def _check_ports(host: str) -> None:
    try:
        with socket.create_server((host, 0)):
            pass
    except OSError as error:
        raise _Failed(f"no port of {host} can be listened on: {error.strerror}. Fix: check the node's host address") from error


def _check_device(launch: NodeLaunch) -> None:
    if launch.device == "cuda" and not any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")):
        raise _Failed("the node was given GPUs, but there is no NVIDIA driver here. Fix: check the driver, or ask for accelerator: cpu")


def _check_inputs(launch: NodeLaunch) -> None:
    for what, address in _addresses(launch.spec):
        place = launch.inputs.get(address)
        if not place:
            raise _Failed(f"{what}: {address!r} was not resolved to a path on this node", code=DATA)
        path = Path(place)
        where = f"{what}: {address!r}" + (f" ({place})" if place != address else "")
        if not path.exists():
            raise _Failed(f"{where} does not exist. Fix: check the address", code=DATA)
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise _Failed(f"{where} cannot be read by this user. Fix: check its permissions", code=DATA)
        if path.is_dir():
            if not any(path.iterdir()):
                raise _Failed(f"{where} is an empty directory", code=DATA)
            if what == "spec.model.uri" and not any((path / n).exists() for n in ("config.json", "adapter_config.json")):
                raise _Failed(f"{where} holds no config.json. Fix: give a directory that save_pretrained wrote", code=DATA)
        elif what.startswith("spec.model"):
            raise _Failed(f"{where} is a file. Fix: give the directory of a model that save_pretrained wrote", code=DATA)
        elif path.stat().st_size == 0:
            raise _Failed(f"{where} is empty. Fix: give a file with at least one row", code=DATA)


def _addresses(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field path, address) of everything that the job reads."""
    model = spec.get("model") or {}
    for name in ("uri", "tokenizer_uri"):
        if model.get(name):
            yield f"spec.model.{name}", str(model[name])
    for role, address in (model.get("roles") or {}).items():
        yield f"spec.model.roles.{role}", str(address)
    data = spec.get("data") or {}
    for name in ("sources", "validation"):
        for index, source in enumerate(data.get(name) or ()):
            yield f"spec.data.{name}[{index}].uri", str(source["uri"])
