"""Addresses to local paths: what is found, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.controller.contents import ContentStore
from luthier.controller.inputs import Inputs
from luthier.errors import SpecError
from luthier.spec.address import Address, parse_address
from luthier.spec.models import JobSpec


def upload(contents: ContentStore, data: bytes) -> str:
    """Put bytes into the content store; their digest."""
    digest = hashlib.sha256(data).hexdigest()
    with contents.begin(digest, len(data), 0) as writer:
        writer.write(data)
        writer.finish()
    return digest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A root `data` with a file and a folder, and a secret beside it."""
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (root / "rows.jsonl").write_text("{}\n")
    (root / "sub" / "model.json").write_text("{}")
    (tmp_path / "secret").write_text("canary")
    return tmp_path


@pytest.fixture
def inputs(place: Path) -> Inputs:
    """Inputs over that root."""
    return Inputs({"data": place / "data"}, ContentStore(place / "uploads"), place / "store")


def spec(uri: str, **changes: Any) -> JobSpec:
    """A job with one data source."""
    return JobSpec.model_validate({"method": {"name": "sft"}, "data": {"sources": [{"uri": uri}]}, **changes})


def test_a_path_below_a_root_is_found(place: Path, inputs: Inputs) -> None:
    """Files and directories, also through a link that stays inside."""
    (place / "data" / "link").symlink_to("sub/model.json")

    assert inputs.locate(parse_address("data:rows.jsonl")) == place / "data/rows.jsonl"
    assert inputs.locate(parse_address("data:sub")) == place / "data/sub"
    assert inputs.locate(parse_address("data:link")) == place / "data/sub/model.json"


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "sub/../../secret", "sub\\..\\secret", "%2e%2e/secret", "a\0b", "out", "outdir/secret", "loop"]
)
def test_nothing_outside_of_a_root_is_reached(place: Path, inputs: Inputs, path: str) -> None:
    """Dots, absolute paths, backslashes, encodings, NUL and links that leave are refused, however they are spelled."""
    (place / "data" / "out").symlink_to("../secret")
    (place / "data" / "outdir").symlink_to(place)
    (place / "data" / "loop").symlink_to("loop")

    with pytest.raises(SpecError):
        inputs.locate(parse_address(f"data:{path}"))
    with pytest.raises(SpecError):
        # Even when the text check were fooled: the descriptor tells.
        inputs.locate(Address("root", "data", path.replace("\0", "").lstrip("/")))


def test_an_upload_is_a_file_or_a_directory(inputs: Inputs) -> None:
    """A file by its digest, a directory materialised from its manifest."""
    rows = upload(inputs.contents, b"rows")
    tree = upload(inputs.contents, json.dumps({"files": {"a/config.json": rows}}).encode())

    assert inputs.locate(parse_address(f"upload://{rows}/rows.jsonl")).read_bytes() == b"rows"
    assert (inputs.locate(parse_address(f"upload://{tree}/")) / "a/config.json").read_bytes() == b"rows"


def test_all_wrong_inputs_are_told_together(inputs: Inputs) -> None:
    """Every violation has its field path and a fix; `job://` addresses are the store's business."""
    wrong = spec(
        "data:missing.jsonl",
        model={"uri": "job://base", "tokenizer_uri": "other:tokenizer"},
        data={"sources": [{"uri": "data:missing.jsonl"}], "validation": [{"uri": f"upload://{'0' * 64}/v.jsonl"}]},
        output={"uri": "job://base"},
    )
    found = inputs.check(wrong)

    assert [v.field for v in found] == [
        "spec.model.tokenizer_uri",
        "spec.data.sources[0].uri",
        "spec.data.validation[0].uri",
        "spec.output.uri",
    ]
    assert all(v.fix for v in found)
    assert "does not exist" in found[1].description


def test_every_address_gets_a_path(place: Path, inputs: Inputs) -> None:
    """A job's result is found below its pinned uid; the output need not exist yet."""
    result = place / "store/me/j9/output/a1g1/model"
    result.mkdir(parents=True)
    wanted = spec("data:rows.jsonl", model={"uri": "job://base"}, output={"uri": "data:new/folder"})
    pinned = {"job": "base", "uid": "j9", "artifact": "", "digest": "d", "path": "output/a1g1/model"}

    assert inputs.resolve(wanted, "me", [pinned]) == {
        "job://base": str(result),
        "data:rows.jsonl": str(place / "data/rows.jsonl"),
        "data:new/folder": str(place / "data/new/folder"),
    }


def test_an_input_that_is_gone_names_its_field(inputs: Inputs) -> None:
    """At admission the field is part of the message, because no violation list reaches the user then."""
    with pytest.raises(SpecError, match=r"spec\.data\.sources\[0\]\.uri"):
        inputs.resolve(spec("data:gone.jsonl"), "me", [])
    with pytest.raises(SpecError, match="gone from"):
        inputs.resolve(
            spec("data:rows.jsonl", model={"uri": "job://base"}), "me", [{"job": "base", "uid": "j", "artifact": "", "path": "x"}]
        )


def test_an_output_may_not_leave_its_root(place: Path, inputs: Inputs) -> None:
    """Also through a link in the middle of a path that does not exist yet."""
    (place / "data" / "outdir").symlink_to(place)

    with pytest.raises(SpecError, match="leads out"):
        inputs.output(parse_address("data:outdir/new"))
