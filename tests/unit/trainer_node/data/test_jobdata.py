"""Rows without a tokenizer, as Build functions read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from luthier.errors import DataError
from luthier.methods.api import Artifact, DataRef
from luthier.spec.models import DataSource, DataSpec
from luthier.trainer_node.data.jobdata import SourceRows
from luthier.trainer_node.data.prepare import prepare
from luthier.trainer_node.data.rows import split_validation

Write = Callable[..., Path]
PAIRS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(10)]


def test_rows_and_texts_of_a_split(write: Write) -> None:
    """Shaped rows as mappings, and their text."""
    path = write("a.jsonl", PAIRS[:2])
    data = SourceRows(DataSpec(sources=(DataSource(uri="root:a.jsonl"),)), {"root:a.jsonl": path}, seed=0)

    assert [{"prompt": "q0", "completion": "a0"}, {"prompt": "q1", "completion": "a1"}] == list(data.rows(DataRef()))
    assert ["q0\na0", "q1\na1"] == list(data.texts(DataRef()))
    with pytest.raises(DataError, match="holds out no rows"):
        list(data.rows(DataRef("validation")))


def test_the_split_is_that_of_the_tokenised_rows(write: Write, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A tokenizer is never trained on held-out rows, also when other rows are bad."""
    path = write("a.jsonl", 'nonsense\n{"question": "", "answer": "x"}\n')
    with path.open("a") as file:
        file.writelines(f'{{"question": "q{n}", "answer": "a{n}"}}\n' for n in range(30))
    spec = DataSpec(sources=(DataSource(uri="root:a.jsonl"),), validation_fraction=0.25, on_bad_row="skip")
    data = SourceRows(spec, {"root:a.jsonl": path}, seed=5)
    rows = prepare(spec.sources, spec, 64, {"root:a.jsonl": path}, tokenizer, "t", tmp_path / "cache", leader=True)

    for name, view in zip(("train", "validation"), split_validation(rows, 0.25, 5), strict=True):
        expected = [view.prompt_and_answer(index)[1] for index in range(len(view))]
        assert expected == [row["completion"] for row in data.rows(DataRef(name))]


def test_sources_for_validation_are_a_split_of_their_own(write: Write) -> None:
    """With `data.validation` nothing is taken from the training rows."""
    spec = DataSpec(sources=(DataSource(uri="root:a.jsonl"),), validation=(DataSource(uri="root:b.txt"),))
    data = SourceRows(spec, {"root:a.jsonl": write("a.jsonl", PAIRS), "root:b.txt": write("b.txt", "one\ntwo\n")}, seed=0)

    assert (10, ["one", "two"]) == (len(list(data.rows(DataRef()))), list(data.texts(DataRef("validation"))))


def test_row_artifacts_are_read_like_sources(write: Write, tmp_path: Path) -> None:
    """An artifact is a directory of row files; its manifest is no data."""
    write("rows/manifest.json", "{}")
    write("rows/rows.jsonl", [{"prompt": "p", "completion": "c"}])
    data = SourceRows(DataSpec(), {}, seed=0, artifact_path=lambda artifact: tmp_path / artifact.path)

    assert [{"prompt": "p", "completion": "c"}] == list(data.rows(DataRef(artifact=Artifact("mine", "rows", "d", "rows"))))


def test_bad_rows_end_the_iteration_or_are_left_out(write: Write) -> None:
    """As the job's policy says, with file and line."""
    path = write("a.jsonl", '{"prompt": "p", "completion": "c"}\nnonsense\n')
    strict = SourceRows(DataSpec(sources=(DataSource(uri="root:a.jsonl"),)), {"root:a.jsonl": path}, seed=0)
    lenient = SourceRows(DataSpec(sources=(DataSource(uri="root:a.jsonl"),), on_bad_row="skip"), {"root:a.jsonl": path}, seed=0)

    with pytest.raises(DataError, match="malformed: not JSON") as caught:
        list(strict.rows(DataRef()))
    assert "a.jsonl:2" == caught.value.where
    assert 1 == len(list(lenient.rows(DataRef())))
