"""The controller as a process: clear errors at start, and its two ways to go."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from luthier.v1 import queue_service_pb2, queue_service_pb2_grpc

SECONDS = 30.0


class Processes:
    """Controllers as processes; ended with the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._all: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, state: str = "state") -> subprocess.Popen[str]:
        """Start `python -m luthier.controller.main`."""
        command = [sys.executable, "-P", "-m", "luthier.controller.main", "--state-dir", str(self.root / state), *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._all.append(process)
        return process

    def ready(self, process: subprocess.Popen[str], state: str = "state") -> dict[str, Any]:
        """Wait until a controller serves; its endpoint file."""
        path = self.root / state / "endpoint.json"
        deadline = time.monotonic() + SECONDS
        while True:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the controller was not ready"
            if path.exists():
                found: dict[str, Any] = json.loads(path.read_text())
                if found["pid"] == process.pid:
                    return found
            time.sleep(0.02)

    def end(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Controllers of one test."""
    made = Processes(tmp_path)
    yield made
    made.end()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, errors = process.communicate(timeout=SECONDS)
    return process.returncode, errors


def queues(endpoint: dict[str, Any], token: str) -> list[str]:
    """Names of the queues, asked over gRPC."""
    with grpc.insecure_channel(endpoint["address"]) as channel:
        stub: Any = queue_service_pb2_grpc.QueueServiceStub(channel)
        answer = stub.ListQueues(queue_service_pb2.ListQueuesRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=10)
        return [q.name for q in answer.queues]


def test_a_controller_tells_where_it_is_and_lets_its_owner_in(processes: Processes) -> None:
    """endpoint.json and the token are files of mode 0600; with the token the API answers."""
    endpoint = processes.ready(processes.start("--listen", "127.0.0.1:0"))
    token_file = Path(endpoint["token_file"])
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (token_file, processes.root / "state" / "endpoint.json")]

    assert modes == [0o600, 0o600]
    assert queues(endpoint, token_file.read_text()) == ["queues/default"]
    with pytest.raises(grpc.RpcError) as refused:
        queues(endpoint, "wrong")
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_an_idle_controller_goes_at_once(processes: Processes, number: signal.Signals) -> None:
    """Both signals end it with exit code 0, and the next one gets the same free port, so that nodes would find it."""
    first = processes.start("--listen", "127.0.0.1:0")
    endpoint = processes.ready(first)
    began = time.monotonic()
    first.send_signal(number)
    code, errors = ended(first)

    assert (code, time.monotonic() - began < 10) == (0, True), errors
    assert processes.ready(processes.start("--listen", "127.0.0.1:0"))["address"] == endpoint["address"]


def test_a_state_directory_has_one_controller(processes: Processes) -> None:
    """The second one ends with the first one's process and what to do."""
    first = processes.start("--listen", "127.0.0.1:0")
    processes.ready(first)
    code, errors = ended(processes.start("--listen", "127.0.0.1:0"))

    assert code == 1
    assert f"another controller (process {first.pid}) uses the state directory" in errors
    assert "--state-dir" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("which", ["--listen", "--http-listen"])
def test_a_port_in_use_is_a_clear_error(processes: Processes, which: str) -> None:
    """Neither port is shared; the error names the address and the flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = [which, address] if which == "--listen" else ["--listen", "127.0.0.1:0", which, address]
        code, errors = ended(
            processes.start(*arguments, "--http-listen", "127.0.0.1:0") if which == "--listen" else processes.start(*arguments)
        )

    assert code == 1
    assert address in errors
    assert which in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--root", "data=/does/not/exist"], "not a directory"),
    ],
)
def test_wrong_settings_are_clear_errors(processes: Processes, arguments: list[str], says: str) -> None:
    """One line with the fix, no traceback."""
    code, errors = ended(processes.start(*arguments))

    assert (code, "Traceback" in errors) == (1, False)
    assert says in errors


def test_an_idle_controller_is_small(processes: Processes) -> None:
    """Below 120 MB, without torch."""
    process = processes.start("--listen", "127.0.0.1:0")
    processes.ready(process)
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    maps = Path(f"/proc/{process.pid}/maps").read_text()

    assert resident < 120 * 1024
    assert "torch" not in maps
