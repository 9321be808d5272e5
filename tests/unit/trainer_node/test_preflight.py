"""Node checks: what passes, what is the user's error, what is the node's."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.trainer_node import preflight
from luthier.trainer_node.launch import NodeLaunch
from luthier.trainer_node.preflight import check_node, check_shared, forget_marks


def launch(root: Path, **changes: Any) -> NodeLaunch:
    """A node of a job with a model and two sources, all in place."""
    model, rows = root / "model", root / "rows.jsonl"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    spec = {"method": {"name": "sft"}, "model": {"uri": "root:model"}, "data": {"sources": [{"uri": "root:rows"}], "validation": []}}
    values: dict[str, Any] = {
        "job_uid": "uid", "job_name": "job", "tenant": "me", "attempt": 1, "node": 0, "num_nodes": 1, "processes": 1, "controller": "",
        "token": "", "store_root": str(root / "store"), "spec": spec, "inputs": {"root:model": str(model), "root:rows": str(rows)},
    }  # fmt: skip
    return NodeLaunch(**{**values, **changes})


def test_a_good_node_passes_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    """All checks run and are timed; nothing heavy is imported."""
    check_node(launch(tmp_path), tmp_path)
    started = time.monotonic()
    result = check_node(launch(tmp_path), tmp_path)

    assert time.monotonic() - started < 0.1
    assert (True, "", False, 0) == (result.passed, result.message, result.user_error, result.code)
    assert ["inputs", "storage", "disk", "versions", "ports", "device"] == list(result.seconds)
    assert result.versions["torch"]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda root: (root / "rows.jsonl").unlink(), "spec.data.sources[0].uri: 'root:rows'"),
        (lambda root: (root / "rows.jsonl").write_text(""), "is empty"),
        (lambda root: (root / "model" / "config.json").unlink(), "is an empty directory"),
        (lambda root: (root / "model" / "config.json").rename(root / "model" / "other"), "holds no config.json"),
    ],
    ids=["missing", "empty file", "empty directory", "no model"],
)
def test_a_bad_input_is_the_users_error(tmp_path: Path, break_it: Any, words: str) -> None:
    """The field, the address, the reason; exit code 65."""
    node = launch(tmp_path)
    break_it(tmp_path)
    result = check_node(node, tmp_path)

    assert (False, True, 65) == (result.passed, result.user_error, result.code)
    assert words in result.message


def test_an_address_without_a_path_is_refused(tmp_path: Path) -> None:
    """Everything that the specification reads must have been resolved."""
    result = check_node(launch(tmp_path, inputs={}), tmp_path)

    assert (False, 65) == (result.passed, result.code)
    assert "'root:model' was not resolved" in result.message


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_input_is_the_users_error(tmp_path: Path) -> None:
    """Permissions are named."""
    node = launch(tmp_path)
    (tmp_path / "rows.jsonl").chmod(0)

    assert "cannot be read by this user" in check_node(node, tmp_path).message


def test_a_store_that_cannot_be_written_is_the_nodes_failure(tmp_path: Path) -> None:
    """A file where the store should be: not the user's error, and the fix is said."""
    (tmp_path / "store").write_text("")
    result = check_node(launch(tmp_path), tmp_path)

    assert (False, False, 0) == (result.passed, result.user_error, result.code)
    assert "cannot be written" in result.message and "Fix:" in result.message


def test_too_little_space_is_the_nodes_failure(tmp_path: Path) -> None:
    """Free and needed space are named."""
    result = check_node(launch(tmp_path), tmp_path, min_free_bytes=1 << 60)

    assert (False, False) == (result.passed, result.user_error)
    assert "MiB free" in result.message


def test_a_missing_package_is_the_nodes_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra to install is named."""
    monkeypatch.setattr(preflight, "installed_versions", lambda: {"torch": "2.13.0", "deepspeed": ""})
    result = check_node(launch(tmp_path), tmp_path)

    assert not result.passed
    assert "deepspeed is not installed" in result.message


def test_a_host_that_is_not_ours_is_the_nodes_failure(tmp_path: Path) -> None:
    """A listening socket must be possible on the announced address."""
    result = check_node(launch(tmp_path, host="192.0.2.1"), tmp_path)

    assert "no port of 192.0.2.1" in result.message


def test_gpus_without_a_driver_are_the_nodes_failure(tmp_path: Path) -> None:
    """Asking for CUDA on a machine without driver is said in preflight, not by torch."""
    if any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")):
        pytest.skip("there is a driver here")

    assert "no NVIDIA driver" in check_node(launch(tmp_path, device="cuda", devices=(0,)), tmp_path).message


def test_nodes_see_what_the_others_wrote(tmp_path: Path) -> None:
    """Two nodes on one store see each other's marks; on different stores the difference is said; marks are removed at the end."""
    nodes = [launch(tmp_path, node=i, num_nodes=2) for i in range(2)]
    for node in nodes:
        assert check_node(node, tmp_path).passed

    assert ["", ""] == [check_shared(node) for node in nodes]
    elsewhere = replace(nodes[0], store_root=str(tmp_path / "other"))
    assert check_node(elsewhere, tmp_path).passed
    assert "does not see what node 1 wrote" in check_shared(elsewhere, seconds=0)
    for node in nodes:
        forget_marks(node)
    assert not list((nodes[0].prefix / "preflight").iterdir())
