"""Settings of the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.controller.config import ControllerConfig, default_state_dir, detect_accelerators, parse_address
from luthier.errors import SpecError


@pytest.mark.parametrize("listen", ["0.0.0.0:7431", "192.0.2.1:1", "[::]:1", "example.org:1"])
def test_a_network_address_needs_to_be_asked_for(tmp_path: Path, listen: str) -> None:
    """Without TLS and tokens only loopback is served, unless --insecure is spelled out."""
    with pytest.raises(SpecError, match="loopback"):
        ControllerConfig(state_dir=tmp_path, listen=listen, accelerators=()).checked()
    ControllerConfig(state_dir=tmp_path, listen=listen, accelerators=(), insecure=True).checked()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:7431", "[::1]:7431"])
def test_loopback_is_served(tmp_path: Path, listen: str) -> None:
    """Every spelling of loopback is fine."""
    assert ControllerConfig(state_dir=tmp_path, listen=listen, accelerators=()).checked().listen == listen


@pytest.mark.parametrize("text", ["", "7431", "host:", ":1", "host:x", "host:70000"])
def test_an_address_is_host_and_port(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(SpecError, match=r"127\.0\.0\.1:7431"):
        parse_address(text)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, ("127.0.0.1", 7432)),
        ({"listen": "127.0.0.1:0"}, ("127.0.0.1", 0)),
        ({"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:9"}, ("127.0.0.1", 9)),
        ({"listen": "[::1]:5"}, ("::1", 7432)),
    ],
)
def test_metrics_lie_beside_the_api(tmp_path: Path, settings: dict[str, Any], address: tuple[str, int]) -> None:
    """Port 7432 of the same host, a free port when the API's is free, or what was asked for."""
    assert ControllerConfig(state_dir=tmp_path, accelerators=(), **settings).http_address() == address


def test_roots_must_exist(tmp_path: Path) -> None:
    """A root that is no directory, or has a strange name, is refused at start."""
    ControllerConfig(state_dir=tmp_path, accelerators=(), roots={"data-1": tmp_path}).checked()
    for roots in ({"data": tmp_path / "missing"}, {"a b": tmp_path}, {"a/b": tmp_path}):
        with pytest.raises(SpecError):
            ControllerConfig(state_dir=tmp_path, accelerators=(), roots=roots).checked()


def test_a_small_machine_still_has_four_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU ranks can share cores: a laptop of two cores runs a job of two nodes beside another one."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    assert ControllerConfig(accelerators=()).cpu_slots == 4


def test_the_state_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """LUTHIER_STATE_DIR, else XDG_STATE_HOME, else the home directory."""
    for name in ("LUTHIER_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_state_dir() == Path.home() / ".local/state/luthier"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert default_state_dir() == Path("/x/luthier")
    monkeypatch.setenv("LUTHIER_STATE_DIR", "/y")
    assert default_state_dir() == Path("/y")


def test_accelerators_are_found_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi names them, CUDA_VISIBLE_DEVICES limits them, and a driver that fails counts as none."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n3\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert detect_accelerators() == (0, 1, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert detect_accelerators() == (1, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_accelerators() == ()
