"""The journal chain, artifacts and the lineage of a store, on files alone."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from luthier.errors import PlanDiverged, StorageError
from luthier.methods.api import Artifact, ModelRef
from luthier.trainer_node.artifacts import Artifacts, artifact_from_json, artifact_to_json
from luthier.trainer_node.journal import Entry, check_fingerprint, read_chain, result_from_json, result_to_json, write_entry
from luthier.trainer_node.launch import JournalRef
from luthier.trainer_node.lineage import MANIFEST, read_manifest, scan_checkpoints, scan_journals, write_durably

ARTIFACT = Artifact("report", "report", "d" * 64, "phases/a1g1/0-report", {"eval_loss": 1.5}, ({"prompt": "p", "answer": "a"},))


def write_chain(prefix: Path, length: int, attempt: int = 1, generation: int = 1, head: JournalRef | None = None) -> JournalRef:
    start = head.index + 1 if head else 0
    for index in range(start, start + length):
        previous = asdict(head) if head else None
        entry = Entry(index, "build", f"phase {index}", f"print-{index}", result_to_json(ARTIFACT), index, previous)
        head = write_entry(prefix, attempt, generation, entry)
    assert head is not None
    return head


def test_a_chain_over_generations_is_read_in_order(tmp_path: Path) -> None:
    """Entries written by two generations are one chain; an entry that a zombie adds off the chain is not read."""
    first = write_chain(tmp_path, 2)
    head = write_chain(tmp_path, 2, generation=2, head=first)
    write_chain(tmp_path, 3, generation=1, head=first)

    chain = read_chain(tmp_path, head)

    assert [0, 1, 2, 3] == [entry.index for entry in chain]
    assert ["journal/0.a1g1.json", "journal/1.a1g1.json", "journal/2.a1g2.json"] == [
        entry.previous["path"] for entry in chain[1:] if entry.previous
    ]
    assert [] == read_chain(tmp_path, None)


@pytest.mark.parametrize("damage", ["changed", "removed", "other-index"])
def test_a_broken_chain_is_refused(tmp_path: Path, damage: str) -> None:
    """An entry in the middle that is missing or changed ends as a storage error that names it."""
    head = write_chain(tmp_path, 3)
    middle = tmp_path / "journal/1.a1g1.json"
    if damage == "changed":
        middle.write_text(middle.read_text().replace("print-1", "print-x"))
    elif damage == "removed":
        middle.unlink()
    else:
        head = replace(head, index=7)

    with pytest.raises(StorageError, match="cannot be used"):
        read_chain(tmp_path, head)


def test_fingerprints_decide_replay(tmp_path: Path) -> None:
    """The same phase is answered from the journal, a later one has to run, another one is refused."""
    chain = read_chain(tmp_path, write_chain(tmp_path, 2))

    assert chain[1] == check_fingerprint(chain, 1, "build", "phase 1", "print-1")
    assert check_fingerprint(chain, 2, "build", "phase 2", "print-2") is None
    with pytest.raises(PlanDiverged, match="as phase 1, but the journal says build 'phase 1'"):
        check_fingerprint(chain, 1, "build", "phase 1", "other")


def test_results_travel_as_json() -> None:
    """Artifacts and models come back equal, so that fingerprints of later phases are equal too."""
    model = ModelRef("job://base", "b" * 64, ARTIFACT)

    assert ARTIFACT == artifact_from_json(json.loads(json.dumps(artifact_to_json(ARTIFACT))))
    assert model == result_from_json(json.loads(json.dumps(result_to_json(model))))
    assert ModelRef("x") == result_from_json(result_to_json(ModelRef("x")))


def test_an_artifact_is_its_manifest(tmp_path: Path) -> None:
    """Every file is named with size and hash; a changed manifest, a missing file and a path outside are refused."""
    artifacts = Artifacts(tmp_path, "a1g1")
    out = artifacts.begin(3, "My Report!")
    (out.path / "deep").mkdir()
    (out.path / "deep" / "x.txt").write_text("hello")
    artifact = artifacts.commit(out.path, "My Report!", "report", {"n": 1.0})

    assert "phases/a1g1/3-my-report" == artifact.path
    assert ["deep/x.txt"] == [file["path"] for file in read_manifest(out.path, artifact.digest).files]
    assert out.path == artifacts.path(artifact)
    (out.path / "deep" / "x.txt").write_text("hello!")
    with pytest.raises(StorageError, match="6 bytes instead of 5"):
        artifacts.path(artifact)
    with pytest.raises(StorageError, match="not the recorded one"):
        artifacts.path(replace(artifact, digest="0" * 64))
    with pytest.raises(StorageError, match="outside"):
        artifacts.path(replace(artifact, path="../../etc"))


@pytest.mark.parametrize("text", ["", "[]", '{"files": [{"path": "../x", "size": 1, "sha256": "a"}]}', '{"files": [{"path": "x"}]}'])
def test_odd_manifests_are_storage_errors(tmp_path: Path, text: str) -> None:
    """Nothing that a manifest holds leads to another exception, or out of its directory."""
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(StorageError):
        read_manifest(tmp_path)


def test_the_store_is_scanned_without_torch(tmp_path: Path) -> None:
    """Heads per fence and committed checkpoints are found; what is not one is passed over. Importing this needs no torch."""
    first = write_chain(tmp_path, 2)
    second = write_chain(tmp_path, 1, generation=2, head=first)
    (tmp_path / "journal" / "notes.json").write_text("{}")
    write_durably(tmp_path / "checkpoints/a1g1/p0/step-4" / MANIFEST, b'{"files": []}')
    write_durably(tmp_path / "checkpoints/a1g1/p0/step-10" / MANIFEST, b'{"files": []}')
    write_durably(tmp_path / "checkpoints/a1g1/p0/step-x" / MANIFEST, b'{"files": []}')
    (tmp_path / "checkpoints/a1g1/p0/step-12").mkdir()

    assert [first, second] == scan_journals(tmp_path)
    assert [4, 10] == [ref.step for ref in scan_checkpoints(tmp_path)]
    assert [] == scan_checkpoints(tmp_path / "nowhere")
    assert "luthier.trainer_node.lineage" in sys.modules
