"""What an operator may set: one frozen value, filled by `luthier up` or `python -m luthier.controller.main`.

Environment and flags are read by those two entries alone; everything else receives this value.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.errors import SpecError

__all__ = ["DEFAULT_HTTP_LISTEN", "DEFAULT_LISTEN", "ControllerConfig", "default_state_dir", "detect_accelerators", "parse_address"]

DEFAULT_LISTEN = "127.0.0.1:7431"
DEFAULT_HTTP_LISTEN = "127.0.0.1:7432"


def default_state_dir() -> Path:
    """`$LUTHIER_STATE_DIR`, else `$XDG_STATE_HOME/luthier`, else `~/.local/state/luthier`."""
    if chosen := os.environ.get("LUTHIER_STATE_DIR"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "state").absolute() / "luthier"


def parse_address(text: str) -> tuple[str, int]:
    """Split `host:port`; port 0 asks the system for a free one. Raises `SpecError`."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise SpecError(f"{text!r} is not an address", fix="write HOST:PORT, for example 127.0.0.1:7431 (port 0: a free one)")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def detect_accelerators(timeout_seconds: float = 5.0) -> tuple[int, ...]:
    """Indices of NVIDIA GPUs that this process may use, without torch.

    `CUDA_VISIBLE_DEVICES` limits them when it holds indices. A machine without driver has none; a driver that does not answer in
    time counts as none, so that a sick GPU never keeps the controller from starting.
    """
    found: tuple[int, ...] = ()
    program = shutil.which("nvidia-smi")
    if program:
        try:
            answer = subprocess.run(
                [program, "--query-gpu=index", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            answer = None
        if answer is not None and answer.returncode == 0:
            found = tuple(int(line) for line in answer.stdout.split() if line.isdecimal())
    if not found:
        devices = Path("/dev")
        found = tuple(sorted(int(p.name[6:]) for p in devices.glob("nvidia[0-9]*") if p.name[6:].isdecimal()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = {v.strip() for v in visible.split(",")}  # names other than indices match none
        found = tuple(i for i in found if str(i) in wanted)
    return found


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Settings of one controller. `checked` says what is wrong with them before anything starts."""

    listen: str = DEFAULT_LISTEN
    """host:port of the gRPC endpoint. Loopback by default: nothing of a laptop is offered to a network unasked."""

    http_listen: str = ""
    """host:port of metrics and health. Empty: port 7432 of the gRPC host, or a free port when the gRPC port is 0."""

    state_dir: Path = field(default_factory=default_state_dir)
    """Directory of everything durable: database, uploads, job stores, node folders, tokens. One controller at a time."""

    roots: Mapping[str, Path] = field(default_factory=dict)
    """Directories that jobs may read as `name:relative/path`. Empty by default: an operator opens what is meant to be open."""

    cpu_slots: int = field(default_factory=lambda: max(4, os.cpu_count() or 1))
    """CPU ranks that may run at once, over all jobs. At least 4 even on a small machine, because CPU ranks can share cores: a
    2-node job must start on a laptop; not many more, because ranks that share cores make every job late."""

    accelerators: tuple[int, ...] = field(default_factory=detect_accelerators)
    """Indices of the GPUs that jobs may use; one GPU per rank."""

    gang_timeout_seconds: float = 600.0
    """Seconds from launch (or from the end of a generation) until all nodes must be ready. Ten minutes: a cold start of the
    trainer's imports on a busy machine stays far below."""

    stop_grace_seconds: float = 15.0
    """Seconds that a stopping node has before SIGTERM, and again before SIGKILL. A step plus leaving takes less."""

    backoff_seconds: float = 2.0
    """First back-off after an infrastructure failure; doubles with each further one. Short: most local causes are gone at once."""

    backoff_cap_seconds: float = 300.0
    """Longest back-off. Five minutes: a broken machine is not hammered, a repaired one is found soon."""

    contact_seconds: float = 60.0
    """Silence of a node, while all other nodes lost their peer, after which it counts as lost (protocol.md, ends of ranks)."""

    cause_wait_seconds: float = 10.0
    """Seconds to wait for every node's report before a user error is believed to be the first cause."""

    prewarm: bool = False
    """Start the shared trainer zygote together with the controller instead of with the first job. Off: an idle controller stays
    small; `luthier up` switches it on because a person waits for the first step."""

    zygote_idle_seconds: float = 600.0
    """Seconds after which an unused zygote goes away. Ten minutes: a person's pause between two jobs."""

    zygote_dir: Path | None = None
    """Folder of the shared zygote. None: `zygote` in the state directory, ended with the controller. Set: several controllers share
    it, and it ends by itself when idle."""

    max_jobs_per_tenant: int = 20_000
    """Jobs that one tenant may have waiting or running. Far above what a person makes by hand, below what exhausts memory."""

    insecure: bool = False
    """Allow a non-loopback address without TLS. Off: tokens in clear text on a network are worth nothing."""

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.state_dir / "luthier.db"

    @property
    def store_root(self) -> Path:
        """Root of the job stores: `<store_root>/<tenant>/<job uid>/`."""
        return self.state_dir / "store"

    @property
    def nodes_dir(self) -> Path:
        """Folders of the local executor's nodes: `<nodes_dir>/<launch name>/n<i>/`."""
        return self.state_dir / "nodes"

    @property
    def cache_dir(self) -> Path:
        """Token caches, shared by all jobs."""
        return self.state_dir / "cache"

    @property
    def zygote_home(self) -> Path:
        """Folder that zygotes live in."""
        return self.zygote_dir or self.state_dir / "zygote"

    @property
    def endpoint_file(self) -> Path:
        """Where the CLI finds a running controller."""
        return self.state_dir / "endpoint.json"

    @property
    def token_file(self) -> Path:
        """Token of the loopback user, mode 0600."""
        return self.state_dir / "token"

    def http_address(self) -> tuple[str, int]:
        """Host and port of the metrics endpoint."""
        if self.http_listen:
            return parse_address(self.http_listen)
        host, port = parse_address(self.listen)
        return host, 0 if port == 0 else parse_address(DEFAULT_HTTP_LISTEN)[1]

    def checked(self) -> ControllerConfig:
        """Itself, or `SpecError` with the fix."""
        for name, text in (("listen", self.listen), ("http_listen", self.http_listen)):
            if not text:
                continue
            host, _ = parse_address(text)
            if not _is_loopback(host) and not self.insecure:
                raise SpecError(
                    f"{name} {text!r} is not a loopback address, and this controller has neither TLS nor user tokens configured",
                    fix="listen on 127.0.0.1, or spell out --insecure on a network that you trust",
                )
        if self.cpu_slots < 0:
            raise SpecError(f"cpu_slots is {self.cpu_slots}", fix="give 0 or more")
        for root, path in self.roots.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,31}", root):
                raise SpecError(f"{root!r} is not a name of a root", fix="use at most 32 letters, digits, _ and -")
            if not path.is_dir():
                raise SpecError(f"root {root} names {path}, which is not a directory", fix="create it or remove the root")
        return self
