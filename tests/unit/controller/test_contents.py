"""Uploaded contents on disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.controller import contents as module
from luthier.controller.contents import ContentStore
from luthier.errors import Exhausted, NotFound, SpecError


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(store: ContentStore, data: bytes) -> str:
    """Upload in one go."""
    with store.begin(digest_of(data), len(data), 0) as upload:
        upload.write(data)
        upload.finish()
    return digest_of(data)


def tree(store: ContentStore, files: dict[str, bytes]) -> str:
    """Upload a directory's manifest and files."""
    return put(store, json.dumps({"files": {name: put(store, data) for name, data in files.items()}}).encode())


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_any_interruption_resumes(tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]) -> None:
    """However often an upload breaks, and wherever it goes on, the content is published exactly when it is whole."""
    store = ContentStore(tmp_path_factory.mktemp("contents"))
    digest = digest_of(data)
    for cut in cuts:
        present, received = store.stat(digest)
        assert not present
        end = min(max(cut, received), len(data))
        with store.begin(digest, len(data), received) as upload:
            upload.write(data[received:end])
        assert (False, end) == store.stat(digest)
    _, received = store.stat(digest)
    with store.begin(digest, len(data), received) as upload:
        upload.write(data[received:])
        assert len(data) == upload.finish()

    assert (True, 0) == store.stat(digest)
    assert data == store.path(digest).read_bytes()


def test_a_tree_is_made_of_links_once(tmp_path: Path) -> None:
    """The directory has every file under its path, shares the contents' inodes, and a second call finds it."""
    store = ContentStore(tmp_path)
    files = {"a.txt": b"1", "deep/er/b.txt": b"2", "deep/c.txt": b"1"}
    digest = tree(store, files)
    made = store.materialise_tree(digest)
    inode = (made / "a.txt").stat().st_ino

    assert tmp_path / "trees" / digest == made
    assert files == {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert store.path(digest_of(b"1")).stat().st_ino == inode == (made / "deep/c.txt").stat().st_ino
    assert made == store.materialise_tree(digest)
    assert [made] == list((tmp_path / "trees").iterdir())


def test_a_tree_with_missing_contents_is_not_made(tmp_path: Path) -> None:
    """What is missing is named, and no half directory stays."""
    store = ContentStore(tmp_path)
    digest = tree(store, {"a": b"1", "b": b"2"})
    os.unlink(store.path(digest_of(b"2")))

    assert [digest_of(b"2")] == store.missing(digest, tree=True)
    assert [] == store.missing(digest, tree=False)
    with pytest.raises(NotFound, match=digest_of(b"2")):
        store.materialise_tree(digest)
    assert [] == list((tmp_path / "trees").iterdir())


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../x", "a//b", "", ".", "a/.", "a\\b", "a\nb", "a/", "x" * 300, "/".join("y" * 200 for _ in range(6))]
)
def test_paths_of_a_tree_are_checked(tmp_path: Path, path: str) -> None:
    """A manifest whose paths leave the directory, or cannot be names, is refused as a whole."""
    store = ContentStore(tmp_path)
    manifest = put(store, json.dumps({"files": {"ok": put(store, b"1"), path: put(store, b"1")}}).encode())
    with pytest.raises(SpecError, match="not the manifest of a directory"):
        store.materialise_tree(manifest)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"files": {}}', b'{"files": []}', b'{"files": {"a": "x"}}', b'{"files": {"a": 5}}', b"\xff", b"[" * 100_000],
    ids=["empty", "list", "no files", "no entries", "not a mapping", "no digest", "a number", "no text", "nested"],
)
def test_what_is_no_manifest_is_said(tmp_path: Path, text: bytes) -> None:
    """Any other content named as a directory is a wrong address."""
    store = ContentStore(tmp_path)
    with pytest.raises(SpecError, match="not the manifest of a directory"):
        store.manifest(put(store, text))


def test_a_file_cannot_be_a_folder(tmp_path: Path) -> None:
    """Ambiguous manifests are refused."""
    store = ContentStore(tmp_path)
    one = put(store, b"1")
    with pytest.raises(SpecError, match="a file and a folder"):
        store.manifest(put(store, json.dumps({"files": {"a": one, "a/b": one}}).encode()))


def test_digests_are_checked_before_they_become_paths(tmp_path: Path) -> None:
    """Nothing but 64 hex digits reaches the file system."""
    for text in ("../../etc/passwd", "0" * 63, "G" * 64, "A" * 64, ""):
        with pytest.raises(ValueError, match="not a SHA-256"):
            ContentStore(tmp_path).path(text)


def test_a_full_disk_is_refused_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that does not fit is told the free space."""
    monkeypatch.setattr(module, "_SPARE_BYTES", 2**60)
    with pytest.raises(Exhausted, match="bytes left") as caught:
        ContentStore(tmp_path).begin("0" * 64, 10, 0)

    assert "QUOTA_EXCEEDED" == caught.value.reason


def test_stale_partials_are_dropped(tmp_path: Path) -> None:
    """Only unfinished uploads that nobody touched for the given time go."""
    store = ContentStore(tmp_path)
    for data in (b"old", b"new"):
        with store.begin(digest_of(data), 100, 0) as upload:
            upload.write(data)
    os.utime(tmp_path / "partial" / digest_of(b"old"), (1000.0, 1000.0))

    assert 1 == store.drop_stale_partials(100.0)
    assert [(False, 0), (False, 3)] == [store.stat(digest_of(data)) for data in (b"old", b"new")]
