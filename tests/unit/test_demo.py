"""The demo's own parts: its pipeline, its report, and how it says that a controller does not start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import cast

import pytest
import yaml

from luthier.client.jobs import AsyncJob, AsyncJobs
from luthier.client.sync import Job
from luthier.demo_controller import Controller
from luthier.demo_pipeline import PIPELINE, write_pipeline
from luthier.demo_report import open_with_peft, render, shortcomings
from luthier.errors import Unavailable
from luthier.spec.yaml import load_file
from luthier.v1 import job_pb2
from luthier.world import make_world, write_world

EXAMPLES = Path(__file__).parents[2] / "examples"


def a_job(before: float, after: float) -> Job:
    """A tuning that succeeded with these exact matches."""
    result = job_pb2.Result(
        kind="adapter",
        metrics={"exact_match_before": before, "exact_match_after": after, "eval_loss_before": 7.5, "eval_loss_after": 0.0301},
        samples=[
            job_pb2.Sample(
                prompt=f"<|bos|><|user|>Write a card for {name}: pet and craft.<|assistant|>",
                expected="e",
                before="b",
                after=f"card of {name}",
            )
            for name in ("Ada", "Bo", "Cy")
        ],
    )
    record = job_pb2.Job(name="jobs/tune-1", state=job_pb2.Job.SUCCEEDED, result=result)
    return Job(AsyncJob(cast("AsyncJobs", None), record))


def test_example_is_the_demos_pipeline(tmp_path: Path) -> None:
    """`examples/sft.yaml` and the demo submit the same two jobs."""
    write_world(0, tmp_path / "data")
    written, example = load_file(write_pipeline(tmp_path)), load_file(EXAMPLES / "sft.yaml")
    assert [d.job_id for d in example] == [d.job_id for d in written] == ["base", "tune"]
    assert [d.job for d in example] == [d.job for d in written]
    assert list(yaml.safe_load_all((EXAMPLES / "sft.yaml").read_text())) == list(yaml.safe_load_all(PIPELINE))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_find_their_files(path: Path) -> None:
    """Every local path of an example is a file of the repository."""
    for document in load_file(path):
        assert document.uploads
        for file in document.uploads.values():
            assert file.is_file()


def test_report_shows_numbers_samples_and_places(tmp_path: Path) -> None:
    """Loss and exact match before and after, two samples without special tokens, adapter, picture, and the lines to copy."""
    text = render(
        a_job(0.0, 0.976), make_world(0), directory=tmp_path / "run-1", adapter=tmp_path / "a", picture=tmp_path / "c.png", seconds=83.2
    )
    assert "held-out loss     7.500     0.030" in text
    assert "exact match        0.0%     97.6%" in text
    assert "  Write a card for Ada: pet and craft.\n    expected  e\n    before    b\n    after     card of Ada\n" in text
    assert "Cy" not in text
    assert f"Adapter:     {tmp_path / 'a'}\nLoss curve:  {tmp_path / 'c.png'}\n" in text
    assert all(
        f"    {line}\n" in text
        for line in open_with_peft(tmp_path / "a", "<|bos|><|user|>Write a card for Ada: pet and craft.<|assistant|>")
    )
    assert "The demo took 83 s." in text


def test_three_lines_are_python(tmp_path: Path) -> None:
    """The lines to copy compile, whatever the path and the prompt hold."""
    lines = open_with_peft(tmp_path / "it's", 'say "hi" and \\')
    assert 3 == len(lines)
    compile("\n".join(lines), "demo", "exec")


@pytest.mark.parametrize(
    ("before", "after", "missed"),
    [(0.10, 0.60, []), (0.11, 0.9, ["before"]), (0.0, 0.59, ["after"]), (0.5, 0.5, ["before", "after"])],
)
def test_acceptance(before: float, after: float, missed: list[str]) -> None:
    """At most 10 % before and at least 60 % after; whatever misses is named."""
    found = shortcomings(a_job(before, after))
    assert [f"exact match {word} tuning is" in text for word, text in zip(missed, found, strict=True)] == [True] * len(missed)


def test_a_controller_that_does_not_start_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code and the log of a controller that ends while starting are part of the error."""
    monkeypatch.setattr(sys, "executable", str(_script(tmp_path / "python", "echo cannot do it; exit 3")))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "controller.log").write_text("an earlier run\n")
    with pytest.raises(Unavailable, match=r"exit code 3\):\n    cannot do it Fix"), Controller.start(tmp_path / "state"):
        raise AssertionError("it was started")


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)
    return path
