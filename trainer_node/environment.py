"""Where a zygote lives and what environment it is started with. Standard library only: the agent imports it.

A zygote holds code in memory, so its folder is named by what that code is: interpreter, installed distributions, device, and the files
of this package. After an update the next job gets a new zygote; the old one goes away when idle.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["PACKAGES", "environment_home", "installed_versions", "process_start_time", "socket_address", "zygote_environment"]

PACKAGES = ("luthier", "torch", "deepspeed", "transformers", "peft")
"""Distributions whose versions a node reports and all nodes of a gang must share."""

_SOURCES = ("trainer_node", "methods", "spec")

_KEPT = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME"})
_KEPT_PREFIXES = ("LC_", "NVIDIA_", "XDG_")

_MARK = "LUTHIER_ZYGOTE"


@functools.cache
def installed_versions() -> dict[str, str]:
    """Version by distribution, "" where it is not installed; nothing of them is imported.

    Read from the names of metadata folders, because importlib.metadata costs an agent a sixth of its start; it is asked where a
    distribution is not found that way.
    """
    found: dict[str, str] = {}
    for folder in _site_folders():
        for name in os.listdir(folder):
            if name.endswith(".dist-info"):
                distribution, _, version = name.removesuffix(".dist-info").partition("-")
                found.setdefault(distribution.lower().replace("_", "-"), version)
    return {name: found.get(name) or _version_by_metadata(name) for name in PACKAGES}


def environment_home(base: Path, device: str) -> Path:
    """Folder of the zygote for this environment and device below `base`."""
    facts: list[object] = [sys.executable, sys.version, device, sorted(installed_versions().items())]
    root = Path(__file__).parent.parent  # src/luthier, or the installed package: its sub-packages may be links
    # an installation, upgrade or removal of any distribution changes the folder
    facts.extend((str(folder), folder.stat().st_mtime_ns) for folder in _site_folders())
    facts.extend(_source_state(root / name) for name in _SOURCES)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return Path(base) / f"{device}-{digest}"


def zygote_environment(present: Mapping[str, str], home: Path, device: str) -> dict[str, str]:
    """Environment of a zygote: a few variables of the caller (never a job's), and what the libraries read when they load.

    One thread per library pool until a rank says otherwise; no hub access; no compile workers; no background threads, which would
    not survive a fork.
    """
    if present.get(_MARK) == str(home):
        return dict(present)
    kept = {k: v for k, v in present.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    kept.setdefault("PATH", os.defpath)
    return {
        **kept,
        # the zygote must not touch the CUDA driver, which cannot be used after a fork; ranks are shown their devices
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": device,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "MKL_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # Threads that wait must sleep: spinning ones made ranks that share cores over ten times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(home / "extensions"),
        "TRANSFORMERS_OFFLINE": "1",
        _MARK: str(home),
    }


def process_start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot: with the pid it names one process for ever. Raises FileNotFoundError."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address for a unix socket at `path` that fits into the 107 bytes of a socket address, however long the path is."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _site_folders() -> list[Path]:
    return [Path(path) for path in sys.path if path.endswith("-packages") and Path(path).is_dir()]


def _version_by_metadata(name: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _source_state(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path.relative_to(folder)), (status := path.stat()).st_mtime_ns, status.st_size) for path in folder.rglob("*.py"))
