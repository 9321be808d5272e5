"""What is printed: tables, numbers, progress lines, plots."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from luthier.cli import catalog, messages, output, series
from luthier.cli.progress import line_of
from luthier.errors import FieldViolation, LuthierError, SpecError
from luthier.spec.marks import LocatedViolation
from luthier.v1 import job_pb2, job_service_pb2, method_service_pb2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0s"), (59.94, "59.9s"), (60, "1m00s"), (187, "3m07s"), (7500, "2h05m"), (99 * 3600, "4d3h")]
)
def test_durations(seconds: float, text: str) -> None:
    """Durations are short and have units."""
    assert text == output.duration(seconds)


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.123456, "0.1235"), (2.0, "2"), (12345.6, "12,346"), (1234567.0, "1,234,567")])
def test_numbers(value: float | None, text: str) -> None:
    """Four digits, and a dash for what is not known."""
    assert text == output.number(value)


def test_a_table_is_aligned_and_keeps_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Newlines in a cell cannot break the table; trailing blanks are cut."""
    output.print_rows(["A", "LONG"], [["x\ny", "1"], ["longer", ""]])

    assert "A       LONG\nx y     1\nlonger\n" == capsys.readouterr().out


def test_json_is_one_object_or_items(capsys: pytest.CaptureFixture[str]) -> None:
    """A single thing is an object, a list is `{items: […]}`; integral numbers of a Struct are whole."""
    job = job_pb2.Job(name="jobs/a")
    job.spec.method.params.update({"rank": 8})
    output.print_messages("json", [output.plain(job)], single=True)
    output.print_messages("json", [output.plain(job)])
    one, many = capsys.readouterr().out.split("\n}\n", 1)

    assert {"name": "jobs/a", "spec": {"method": {"params": {"rank": 8}}}} == json.loads(one + "}")
    assert '"rank": 8\n' in one
    assert ["jobs/a"] == [item["name"] for item in json.loads(many)["items"]]


def running() -> job_pb2.Job:
    """A job in the middle of training."""
    progress = job_pb2.Progress(phase="train", step=3, total_steps=10, loss=1.25, tokens_per_second=2000.0, eta=Duration(seconds=90))
    return job_pb2.Job(name="jobs/a", state=job_pb2.Job.RUNNING, progress=progress)


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (running(), "RUNNING  train  step 3/10  loss 1.25  2,000 tokens/s  1m30s left"),
        (
            job_pb2.Job(
                state=job_pb2.Job.QUEUED, waiting=job_pb2.Waiting(reason=job_pb2.Waiting.CAPACITY, message="needs 2 slots", position=3)
            ),
            "QUEUED  needs 2 slots (place 3 in the queue)",
        ),
        (
            job_pb2.Job(state=job_pb2.Job.FAILED, failure=job_pb2.Failure(message="no rows Fix: add rows")),
            "FAILED  no rows",
        ),
        (
            job_pb2.Job(state=job_pb2.Job.SUCCEEDED, result=job_pb2.Result(metrics={"eval_loss_after": 0.5})),
            "SUCCEEDED  eval_loss_after 0.5",
        ),
        (job_pb2.Job(state=job_pb2.Job.PAUSED), "PAUSED"),
    ],
    ids=["running", "queued", "failed", "succeeded", "paused"],
)
def test_progress_lines(job: job_pb2.Job, line: str) -> None:
    """One line tells where a job stands."""
    assert line == line_of(job)


def test_errors_have_four_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """What, where, why, fix; one group per violation."""
    violations = [LocatedViolation("spec.a", "is wrong", "mend it", where="j.yaml:3"), FieldViolation("spec.b", "is missing")]
    messages.failure("nothing was submitted", SpecError("x", violations=violations))
    messages.failure("the job was not paused", LuthierError("it ended", where="here", fix="retry it"))

    assert (
        "error: nothing was submitted (2 problems)\n"
        "  where: j.yaml:3, spec.a\n  why:   is wrong\n  fix:   mend it\n"
        "  where: spec.b\n  why:   is missing\n"
        "error: the job was not paused\n  where: here\n  why:   it ended\n  fix:   retry it\n"
    ) == capsys.readouterr().err


def test_no_colour_without_a_terminal_or_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour needs a terminal, and NO_COLOR switches it off."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert (True, False) == (messages.coloured(Terminal()), messages.coloured(io.StringIO()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not messages.coloured(Terminal())


def test_confirm_asks_on_a_terminal_and_refuses_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--yes` goes on; a terminal is asked; a pipe is refused with the fix."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert messages.confirm("Delete a?", yes=True)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert messages.confirm("Delete a?", yes=False)
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    assert not messages.confirm("Delete a?", yes=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not messages.confirm("Delete a?", yes=False)
    assert "fix:   add --yes" in capsys.readouterr().err


def loss_series() -> dict[str, job_service_pb2.Series]:
    """Eight points of a falling loss."""
    point = job_service_pb2.Series.Point
    points = [point(step=i, value=8.0 - i, min=7.5 - i, max=8.5 - i, time=Timestamp(seconds=i)) for i in range(1, 9)]
    return {"loss": job_service_pb2.Series(name="loss", points=points)}


def test_sparkline() -> None:
    """The largest value is the highest block; long series are averaged; a constant is flat."""
    assert "█▇▆▅▄▃▂▁" == series.sparkline([7, 6, 5, 4, 3, 2, 1, 0], 40)
    assert 10 == len(series.sparkline([float(i) for i in range(1000)], 10))
    assert "▁▁▁" == series.sparkline([1.0, 1.0, 1.0], 40)


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    """`draw` writes an image of the kind that its name says, and makes its folder."""
    series.draw(tmp_path / "deep" / "a.png", "a", loss_series())
    assert b"\x89PNG" == (tmp_path / "deep" / "a.png").read_bytes()[:4]

    with pytest.raises(LuthierError, match="cannot be written"):
        series.draw(tmp_path / "a.docx", "a", loss_series())


def test_a_plot_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, and the way without it."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)

    with pytest.raises(LuthierError) as caught:
        series.draw(tmp_path / "a.png", "a", loss_series())

    assert "pip install 'luthier[plot]', or use `luthier plot --text`" == caught.value.fix


def test_method_details_show_schema_and_example() -> None:
    """Type, range, default and description of each parameter are shown."""
    method = method_service_pb2.MethodInfo(
        name="methods/lora", version="1.0.0", slot="adapter", summary="Low rank.", example="adapter: lora\n"
    )
    method.parameters.update(
        {"properties": {"rank": {"type": "integer", "minimum": 1, "maximum": 64, "default": 16, "description": "Rank."}}, "type": "object"}
    )
    method.needs.update({"zero": [0, 1], "roles": []})

    assert (
        "lora  (adapter, version 1.0.0)\n  Low rank.\n\nParameters\n  rank: integer, in [1, 64], default 16\n      Rank.\n\n"
        "Needs\n  zero: [0, 1]\n\nExample\n  adapter: lora\n"
    ) == catalog.detail(method)
