"""A real pipeline through the command: submitted, followed, plotted, pulled; and one that fails for its data."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LUTHIER = [sys.executable, "-P", "-m", "luthier.cli"]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("LUTHIER_", "XDG_"))} | {"NO_COLOR": "1"}
PIPELINE = """\
name: base
method: {name: pretrain, params: {num_layers: 1, width: 32, num_heads: 2, vocabulary_size: 300}}
data: {sources: [rows.jsonl], validation_fraction: 0.2}
training: {batch_size: 8, max_length: 32, steps: 12, threads_per_rank: 1}
faults: {checkpoint: {every_steps: 4}}
---
name: tune
model: job://base
method: sft
adapter: {name: lora, params: {rank: 4}}
data: {sources: [rows.jsonl], validation_fraction: 0.2}
training: {batch_size: 8, max_length: 32, steps: 8, threads_per_rank: 1}
resources: {nodes: 2}
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [pytest.mark.zygote, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data and a running controller."""
    base = tmp_path_factory.mktemp("run")
    rows = [json.dumps({"text": f"the colour of thing {i} is {['red', 'green', 'blue'][i % 3]}"}) for i in range(60)]
    (base / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (base / "pipeline.yaml").write_text(PIPELINE)
    state = base / "state"
    command = [*LUTHIER, "up", "--listen", "127.0.0.1:0", "--state-dir", str(state)]
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=base, stdout=log, stderr=log, env=CLEAN, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (state / "endpoint.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (state / "endpoint.json").exists(), (base / "log").read_text()
    yield base
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(60), (base / "log").read_text()


@pytest.fixture(scope="module")
def luthier(home: Path) -> Run:
    """Runs one command in that folder."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*LUTHIER, *words],
            cwd=home,
            env={**CLEAN, "LUTHIER_STATE_DIR": str(home / "state")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def submitted(luthier: Run) -> subprocess.CompletedProcess[str]:
    """The pipeline, submitted and waited for."""
    return luthier("submit", "pipeline.yaml", "--wait")


def test_a_pipeline_succeeds(submitted: subprocess.CompletedProcess[str]) -> None:
    """`submit --wait` exits 0; names are on stdout, progress in plain lines on stderr."""
    assert (0, "base\ntune\n") == (submitted.returncode, submitted.stdout), submitted.stderr
    assert "base  SUCCEEDED" in submitted.stderr
    assert "tune  SUCCEEDED" in submitted.stderr
    assert "\033" not in submitted.stderr


@pytest.mark.usefixtures("submitted")
def test_the_story_of_the_job(luthier: Run) -> None:
    """`describe` tells attempts, result and where the time went; the causes sum to the wall time."""
    story = luthier("describe", "tune").stdout
    job = json.loads(luthier("get", "tune", "-o", "json").stdout)

    assert "generation 1: finished, steps 0 to 8" in story
    assert "Result\n  kind:" in story
    assert "productive" in story
    causes = sum(float(c["duration"].rstrip("s")) for c in job["cause_times"])
    start, end = (time.mktime(time.strptime(job[k][:19], "%Y-%m-%dT%H:%M:%S")) for k in ("create_time", "end_time"))
    assert abs(causes - (end - start)) < 1.5


@pytest.mark.usefixtures("submitted")
def test_series_and_plots(luthier: Run, home: Path) -> None:
    """The loss of every step is there, as numbers, as text and as an image."""
    series = {
        item["name"]: item["points"] for item in json.loads(luthier("metrics", "tune", "loss", "eval_loss", "-o", "json").stdout)["items"]
    }
    plotted = luthier("plot", "tune", "-o", "curve.png")
    text = luthier("plot", "tune", "--text")

    assert [str(i) for i in range(1, 9)] == [point["step"] for point in series["loss"]]
    assert 2 == len(series["eval_loss"])
    assert (0, "curve.png\n", b"\x89PNG") == (plotted.returncode, plotted.stdout, (home / "curve.png").read_bytes()[:4])
    assert text.stdout.startswith("loss ")


@pytest.mark.usefixtures("submitted")
def test_logs_are_kept_after_the_nodes_are_gone(luthier: Run) -> None:
    """Agents and ranks of both nodes are told apart; one rank can be chosen; `--tail` shortens."""
    everything = luthier("logs", "tune").stdout
    one = luthier("logs", "tune", "--rank", "0", "--no-prefix").stdout
    last = luthier("logs", "tune", "--rank", "0", "--tail", "1").stdout

    assert {"n0/agent", "n1/agent", "n0/r0"} <= {line.split("|")[0] for line in everything.splitlines()}
    assert one
    assert 1 == len(last.splitlines())
    assert one.splitlines()[-1] == last.removeprefix("n0/r0| ").rstrip("\n")


@pytest.mark.usefixtures("submitted")
def test_checkpoints_and_artifacts(luthier: Run, home: Path) -> None:
    """Checkpoints are listed newest first; the result is pulled, verified, and mended when damaged."""
    steps = [int(c["step"]) for c in json.loads(luthier("checkpoints", "base", "--all", "-o", "json").stdout)["items"]]
    result = next(a for a in json.loads(luthier("artifacts", "tune", "-o", "json").stdout)["items"] if a["name"].endswith("/result"))

    pulled = luthier("pull", "tune", "out")
    weights = home / "out" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"damaged")
    again = luthier("pull", "tune", "out", "-q")
    wrong = luthier("pull", "tune", "out", "--artifact", "reslut")

    assert steps == sorted(steps, reverse=True)
    assert steps
    assert (0, 0, 4) == (pulled.returncode, again.returncode, wrong.returncode)
    assert sorted(f"out/{file['path']}" for file in result["files"]) == sorted(pulled.stdout.splitlines())
    assert whole == weights.read_bytes()
    digests = {file["path"]: file["digest"] for file in result["files"]}
    assert digests["adapter_model.safetensors"] == hashlib.sha256(whole).hexdigest()


@pytest.mark.usefixtures("submitted")
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "bad.jsonl:2"),
        ("", "bad.jsonl"),
    ],
    ids=["malformed line", "empty file"],
)
def test_bad_data_fails_with_file_and_line(luthier: Run, home: Path, data: str, said: str) -> None:
    """A job that cannot use its data fails at once with exit code 6, and the file and line are told."""
    (home / "bad.jsonl").write_text(data)
    (home / "bad.yaml").write_text(f"name: bad-{len(data)}\nmodel: job://base\nmethod: sft\ndata: bad.jsonl\n")
    done = luthier("submit", "bad.yaml", "--follow")

    assert 6 == done.returncode, done.stderr
    assert f"error: job bad-{len(data)} failed" in done.stderr
    assert said in done.stderr
    assert "fix:" in done.stderr
