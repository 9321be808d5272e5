"""Addresses by their text."""

from __future__ import annotations

import pytest

from luthier.errors import SpecError
from luthier.spec.address import Address, is_local_path, parse_address

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (f"upload://{DIGEST}/a b.jsonl", Address("upload", DIGEST, "a b.jsonl")),
        (f"upload://{DIGEST}/", Address("upload", DIGEST, "")),
        ("cwd:data/./a.jsonl", Address("root", "cwd", "data/a.jsonl")),
        ("job://base", Address("job", "base", "")),
        ("job://base/tokenizer", Address("job", "base", "tokenizer")),
        ("hf://org/name@v1.0", Address("hf", "org/name", "v1.0")),
    ],
    ids=["file", "directory", "root", "job", "artifact", "hf"],
)
def test_forms(text: str, address: Address) -> None:
    """The four forms are parsed, and their canonical text parses to the same."""
    assert address == parse_address(text)
    assert address == parse_address(str(address))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cwd:../etc/passwd", "FORBIDDEN_URI"),
        ("cwd:a/../../b", "FORBIDDEN_URI"),
        ("cwd:/etc/passwd", "FORBIDDEN_URI"),
        ("cwd:a\\..\\b", "FORBIDDEN_URI"),
        ("cwd:a%2e%2e/b", "FORBIDDEN_URI"),
        ("cwd:a\0b", "FORBIDDEN_URI"),
        ("cwd:a\nb", "FORBIDDEN_URI"),
        ("file:///etc/passwd", "FORBIDDEN_URI"),
        ("FILE:///etc/passwd", "FORBIDDEN_URI"),
        ("http://169.254.169.254/", "FORBIDDEN_URI"),
        (f"upload://{DIGEST}/a/../b", "FORBIDDEN_URI"),
        (f"upload://{DIGEST}/..", "FORBIDDEN_URI"),
        ("upload://short/x", "INVALID_FIELD"),
        ("job://Base", "INVALID_FIELD"),
        ("job://base/../x", "INVALID_FIELD"),
        ("hf://org/../x", "INVALID_FIELD"),
        ("cwd:", "INVALID_FIELD"),
        ("data/a.jsonl", "INVALID_FIELD"),
        ("C:\\data", "FORBIDDEN_URI"),
        ("cwd:" + "a" * 300, "INVALID_FIELD"),
    ],
    ids=lambda v: repr(v)[-60:],
)
def test_refused(text: str, reason: str) -> None:
    """What leaves a root, hides characters or names an unknown scheme is refused with its reason and field."""
    with pytest.raises(SpecError) as caught:
        parse_address(text, "spec.model.uri")

    assert reason == caught.value.reason
    assert ["spec.model.uri"] == [v.field for v in caught.value.violations]


@pytest.mark.parametrize(
    ("text", "local"),
    [("a.jsonl", True), ("./a:b.jsonl", True), ("/abs/a", True), ("~/x", True), ("cwd:a", False), ("job://a", False), ("s3://b/k", False)],
)
def test_local_paths_are_told_from_addresses(text: str, local: bool) -> None:
    """What is neither `scheme://` nor `root:path` is a local path."""
    assert local is is_local_path(text)
