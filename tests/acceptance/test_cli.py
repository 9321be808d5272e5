"""The command as a user runs it: real processes against a real controller that has no slots, so that jobs stay where they are put."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

LUTHIER = [sys.executable, "-P", "-m", "luthier.cli"]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("LUTHIER_", "XDG_"))} | {"NO_COLOR": "1"}
SPEC = "method: pretrain\ndata: rows.jsonl\ntraining: {steps: 1}\n"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Up:
    """A running controller."""

    state_dir: Path
    address: str
    token: str


def start(state_dir: Path, log: Path, *words: str, listen: str = "127.0.0.1:0") -> subprocess.Popen[bytes]:
    """Start `luthier up` and wait until it can be found."""
    command = [*LUTHIER, "up", "--listen", listen, "--state-dir", str(state_dir), "--no-prewarm", *words]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=CLEAN, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (state_dir / "endpoint.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (state_dir / "endpoint.json").exists(), log.read_text()
    return process


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A controller on a free port with a state directory of its own, and no slots."""
    base = tmp_path_factory.mktemp("up")
    process = start(base / "state", base / "log", "--slots", "0", "--root", f"data={base}")
    endpoint = json.loads((base / "state" / "endpoint.json").read_text())
    yield Up(base / "state", endpoint["address"], Path(endpoint["token_file"]).read_text().strip())
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(30), (base / "log").read_text()


@pytest.fixture
def luthier(up: Up, tmp_path: Path) -> Run:
    """Runs one command in an empty directory and returns what it printed."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    def run(*words: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*LUTHIER, *words],
            cwd=tmp_path,
            env={**CLEAN, "LUTHIER_STATE_DIR": str(up.state_dir), **env},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def name() -> str:
    """A job name that no other test uses."""
    return f"j{uuid.uuid4().hex[:8]}"


def write(folder: Path, *documents: str) -> str:
    """A YAML file with these documents."""
    path = folder / "job.yaml"
    path.write_text("---\n".join(documents))
    return str(path)


def submit(luthier: Run, folder: Path, name: str, more: str = "") -> None:
    """Submit one job that stays QUEUED."""
    done = luthier("submit", write(folder, f"name: {name}\n{SPEC}{more}"), "-q")
    assert (0, f"{name}\n", "") == (done.returncode, done.stdout, done.stderr)


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_0_ok(luthier: Run, tmp_path: Path, name: str) -> None:
    """Done is 0; names on stdout, the hint on stderr."""
    done = luthier("submit", write(tmp_path, f"name: {name}\n{SPEC}"))

    assert (0, f"{name}\n") == (done.returncode, done.stdout)
    assert f"luthier wait {name}" in done.stderr


def test_1_error(luthier: Run, tmp_path: Path) -> None:
    """A wrong field is 1, told with its line, and nothing is on stdout."""
    done = luthier("submit", write(tmp_path, SPEC + "traning: {}\n"))

    assert (1, "") == (done.returncode, done.stdout)
    assert "job.yaml:4, traning\n  why:   there is no field 'traning' here\n  fix:   did you mean 'training'?" in done.stderr


def test_2_usage(luthier: Run) -> None:
    """A wrong command line is 2."""
    assert 2 == luthier("get", "--nonsense").returncode


def test_4_not_found(luthier: Run, tmp_path: Path, name: str) -> None:
    """An unknown job is 4, with the nearest name."""
    submit(luthier, tmp_path, name)
    done = luthier("describe", name[:-1])

    assert 4 == done.returncode
    assert f"did you mean {name!r}?" in done.stderr


def test_5_denied(luthier: Run) -> None:
    """A wrong token is 5."""
    done = luthier("get", LUTHIER_TOKEN="wrong")

    assert 5 == done.returncode
    assert "wrong" not in done.stderr.replace("a wrong", "").replace("wrong token", "")


def test_6_failed_and_7_cancelled(luthier: Run, tmp_path: Path, name: str) -> None:
    """Waiting for a cancelled job is 7, for one that failed with it 6."""
    tune = f"name: {name}-tune\nmodel: job://{name}\nmethod: sft\ndata: rows.jsonl\n"
    assert 0 == luthier("submit", write(tmp_path, f"name: {name}\n{SPEC}", tune)).returncode
    assert 0 == luthier("cancel", "--yes", name).returncode

    cancelled, failed = luthier("wait", name), luthier("wait", f"{name}-tune")

    assert (7, f"{name} CANCELLED\n") == (cancelled.returncode, cancelled.stdout)
    assert (6, f"{name}-tune FAILED\n") == (failed.returncode, failed.stdout)
    assert f"error: job {name}-tune failed\n  why:   " in failed.stderr


def test_8_unavailable(luthier: Run, tmp_path: Path) -> None:
    """No controller is 8: neither one that is known, nor one that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    unknown = luthier("get", LUTHIER_STATE_DIR=str(tmp_path / "nowhere"), XDG_CONFIG_HOME=str(tmp_path))
    silent = luthier("get", LUTHIER_ADDRESS=f"127.0.0.1:{port}", LUTHIER_TOKEN="x")

    assert (8, 8) == (unknown.returncode, silent.returncode)
    assert "luthier up" in unknown.stderr
    assert f"no controller answers at 127.0.0.1:{port}" in silent.stderr


def test_124_timeout(luthier: Run, tmp_path: Path, name: str) -> None:
    """Time over is 124, and the state is told."""
    submit(luthier, tmp_path, name)
    done = luthier("wait", name, "--timeout", "0.5")

    assert 124 == done.returncode
    assert f"{name} is QUEUED" in done.stderr


COMMANDS = {
    "submit": ["submit", "job.yaml"],
    "get": ["get"],
    "describe": ["describe", "x"],
    "logs": ["logs", "-f", "x"],
    "events": ["events", "x"],
    "wait": ["wait", "x"],
    "cancel": ["cancel", "x", "--yes"],
    "pause": ["pause", "x"],
    "resume": ["resume", "x"],
    "retry": ["retry", "x"],
    "delete": ["delete", "x", "--yes"],
    "checkpoints": ["checkpoints", "x"],
    "artifacts": ["artifacts", "x"],
    "pull": ["pull", "x", "out"],
    "metrics": ["metrics", "x"],
    "plot": ["plot", "x"],
    "methods": ["methods"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_130_interrupted(verb: str, tmp_path: Path) -> None:
    """Ctrl-C in every verb is 130 without a traceback; where a job is followed, it says how to go on."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    write(tmp_path, SPEC)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection and never says a word
        address = f"127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            [*LUTHIER, *COMMANDS[verb]],
            cwd=tmp_path,
            env={**CLEAN, "LUTHIER_ADDRESS": address, "LUTHIER_TOKEN": "x"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.settimeout(30)
        connection, _ = server.accept()
        with contextlib.closing(connection):
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)

    assert (130, "") == (process.returncode, out)
    assert "Traceback" not in err
    if verb in ("wait", "logs"):
        assert f"detached; the jobs go on. Reattach: luthier {'logs -f' if verb == 'logs' else 'wait'} x   cancel: luthier cancel x" in err


# --- submitting ------------------------------------------------------------------------------------------------------


def test_a_taken_name_is_refused_with_the_fix(luthier: Run, tmp_path: Path, name: str) -> None:
    """The line of the name and the ways out are told; a suffix or a generated name works."""
    submit(luthier, tmp_path, name)
    taken = luthier("submit", "job.yaml")
    other = luthier("submit", "job.yaml", "--suffix", "b")
    generated = luthier("submit", "job.yaml", "--generate-name")

    assert 1 == taken.returncode
    assert "where: job.yaml:1\n" in taken.stderr
    assert f"submit with --suffix 2, --name OTHER or --generate-name, or remove the old job with `luthier delete {name}`" in taken.stderr
    assert (0, f"{name}-b\n") == (other.returncode, other.stdout)
    assert generated.stdout.startswith(f"{name}-")


def test_all_documents_are_checked_before_anything_happens(luthier: Run, up: Up, tmp_path: Path, name: str) -> None:
    """A mistake in the second document leaves no first job behind; the server's words are shown at the line."""
    done = luthier(
        "submit",
        write(
            tmp_path,
            f"name: {name}\n{SPEC}",
            f"name: {name}-tune\nmodel: job://{name}\nmethod: sft\nadapter:\n  name: lora\n  params: {{rnk: 8}}\ndata: rows.jsonl\n",
        ),
    )

    assert 1 == done.returncode
    assert (
        "where: job.yaml:11, spec.adapter.params.rnk\n  why:   lora has no parameter 'rnk'\n  fix:   did you mean 'rank'?"
        in done.stderr.replace(str(tmp_path) + "/", "")
    )
    assert 4 == luthier("get", name).returncode


def test_a_dependency_must_exist_or_stand_earlier(luthier: Run, tmp_path: Path, name: str) -> None:
    """A job that nothing makes is refused at its line; one that an earlier document makes is fine."""
    tune = f"name: {name}-tune\nmodel: job://{name}\nmethod: sft\ndata: rows.jsonl\n"
    alone = luthier("submit", write(tmp_path, tune))
    pair = luthier("submit", write(tmp_path, f"name: {name}\n{SPEC}", tune))

    assert 1 == alone.returncode
    assert f"job.yaml:2, spec.model.uri\n  why:   there is no job {name!r}" in alone.stderr
    assert (0, f"{name}\n{name}-tune\n") == (pair.returncode, pair.stdout)


def test_a_suffix_keeps_a_pipeline_together(luthier: Run, tmp_path: Path, name: str) -> None:
    """`job://` addresses inside the file follow the new names."""
    tune = f"name: {name}-tune\nmodel: job://{name}\nmethod: sft\ndata: rows.jsonl\n"
    assert 0 == luthier("submit", write(tmp_path, f"name: {name}\n{SPEC}", tune), "--suffix", "x").returncode

    job = json.loads(luthier("get", f"{name}-tune-x", "-o", "json").stdout)
    assert f"job://{name}-x" == job["spec"]["model"]["uri"]


def test_dry_run_changes_nothing(luthier: Run, up: Up, tmp_path: Path, name: str) -> None:
    """The defaulted job is printed; neither a job nor an upload is made."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": name}) + "\n")
    uploads = list((up.state_dir / "uploads").rglob("*"))
    done = luthier("submit", write(tmp_path, f"name: {name}\n{SPEC}"), "--dry-run", "-o", "json")

    job = json.loads(done.stdout)
    assert (0, "full", 16) == (done.returncode, job["spec"]["adapter"]["name"], job["spec"]["training"]["micro_batch_size"])
    assert 4 == luthier("get", name).returncode
    assert uploads == list((up.state_dir / "uploads").rglob("*"))


def test_set_replaces_fields(luthier: Run, tmp_path: Path, name: str) -> None:
    """`--set` reaches the stored job; `--name` renames a single document; standard input works."""
    done = luthier("submit", "-", "--name", name, "--set", "training.steps=7", "--set", "labels=1", stdin=f"name: other\n{SPEC}")
    assert 1 == done.returncode  # labels are not part of the specification

    done = luthier("submit", "-", "--name", name, "--set", "training.steps=7", stdin=f"name: other\n{SPEC}")
    assert (0, f"{name}\n") == (done.returncode, done.stdout)
    assert "7" == json.loads(luthier("get", name, "-o", "json").stdout)["spec"]["training"]["steps"]


def test_uploads_are_addressed_by_content(luthier: Run, up: Up, tmp_path: Path, name: str) -> None:
    """The same bytes under another name are not stored twice; a directory becomes a manifest."""
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": name}))
    (folder / "b.jsonl").write_text(json.dumps({"text": name}))
    assert 0 == luthier("submit", write(tmp_path, f"name: {name}\nmethod: pretrain\ndata: [many, many/a.jsonl]\n")).returncode

    first, second = json.loads(luthier("get", name, "-o", "json").stdout)["spec"]["data"]["sources"]
    digest = second["uri"].removeprefix("upload://").partition("/")[0]
    manifest = first["uri"].removeprefix("upload://").removesuffix("/")
    stored = up.state_dir / "uploads" / manifest[:2] / manifest
    assert {"files": {"a.jsonl": digest, "b.jsonl": digest}} == json.loads(stored.read_text())
    assert (folder / "a.jsonl").read_bytes() == (up.state_dir / "uploads" / digest[:2] / digest).read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: sft\nmodel: data:nowhere\ndata: rows.jsonl\n", "job.yaml:2, spec.model.uri"),
        ("method: pretrain\ndata: missing.jsonl\n", "job.yaml:2, spec.data.sources[0].uri\n  why:   there is no file or directory"),
        (
            "method: pretain\ndata: rows.jsonl\n",
            "job.yaml:1, spec.method.name\n  why:   there is no method 'pretain'\n  fix:   did you mean 'pretrain'?",
        ),
        ("method: sft\ndata: rows.jsonl\n", "spec.model\n  why:   sft starts from a model"),
        ("method: {name: pretrain, params: {widht: 8}}\ndata: rows.jsonl\n", "job.yaml:1, spec.method.params.widht"),
    ],
    ids=["missing model", "missing data", "unknown method", "no model", "unknown parameter"],
)
def test_bad_input_is_told_at_its_line(luthier: Run, tmp_path: Path, text: str, said: str) -> None:
    """Whatever is wrong is told with place, reason and fix, and nothing is created."""
    done = luthier("submit", write(tmp_path, text))

    assert (1, "") == (done.returncode, done.stdout)
    assert said in done.stderr


# --- steering and showing --------------------------------------------------------------------------------------------


def test_destructive_verbs_need_a_yes(luthier: Run, tmp_path: Path, name: str) -> None:
    """Without a terminal and without `--yes` nothing is lost; an active job is not deleted even with it."""
    submit(luthier, tmp_path, name)

    assert [1, 1, 1] == [luthier(verb, name, *flags).returncode for verb, flags in (("cancel", ()), ("delete", ()), ("delete", ("--yes",)))]
    assert f"{name}\n" == luthier("get", name, "--state", "QUEUED", "-q").stdout
    assert [0, 0, 4] == [
        luthier("cancel", name, "-y").returncode,
        luthier("delete", name, "-y").returncode,
        luthier("get", name).returncode,
    ]


def test_pause_resume_cancel_retry(luthier: Run, tmp_path: Path, name: str) -> None:
    """The verbs lead a waiting job through its states, and `wait --for` sees them."""
    submit(luthier, tmp_path, name)

    assert 0 == luthier("pause", name).returncode
    paused = luthier("wait", name, "--for", "paused")
    assert (0, f"{name} PAUSED\n") == (paused.returncode, paused.stdout)
    assert 0 == luthier("resume", name).returncode
    assert 0 == luthier("wait", name, "--for", "QUEUED").returncode
    assert 0 == luthier("cancel", name, "--yes").returncode
    assert "is CANCELLED already; nothing changed" in luthier("cancel", name).stderr
    assert 1 == luthier("pause", name).returncode
    assert 0 == luthier("retry", name).returncode
    assert "QUEUED" == json.loads(luthier("get", name, "-o", "json").stdout)["state"]


def test_outputs(luthier: Run, tmp_path: Path, name: str) -> None:
    """Table, wide, JSON, YAML and names; stdout holds nothing but data."""
    submit(luthier, tmp_path, name, "labels: {team: red}\n")
    condition = ("get", "--filter", f'name = "{name}"')

    table, wide, as_json, as_yaml, names = (luthier(*condition, "-o", form).stdout for form in ("table", "wide", "json", "yaml", "name"))

    assert ["NAME", "STATE", "METHOD", "STEP", "LOSS", "AGE", "DETAIL"] == table.splitlines()[0].split()
    assert (2, name, "QUEUED", "pretrain") == (len(table.splitlines()), *table.splitlines()[1].split()[:3])
    assert {"QUEUE", "UID", "NODES"} < set(wide.splitlines()[0].split())
    assert [f"jobs/{name}"] == [item["name"] for item in json.loads(as_json)["items"]]
    assert json.loads(as_json)["items"][0]["spec"] == yaml.safe_load(as_yaml)["items"][0]["spec"]
    assert f"{name}\n" == names


def test_empty_results_are_fine(luthier: Run, tmp_path: Path, name: str) -> None:
    """Nothing to show exits 0 with a hint on stderr and, as JSON, an empty list."""
    submit(luthier, tmp_path, name)
    for words in (
        ["get", "--state", "RUNNING"],
        ["checkpoints", name],
        ["artifacts", name],
        ["metrics", name],
        ["logs", name],
        ["plot", name],
    ):
        done = luthier(*words)
        assert (0, "") == (done.returncode, done.stdout), words
        assert done.stderr.startswith("hint: "), words
    assert {"items": []} == json.loads(luthier("get", "--state", "RUNNING", "-o", "json").stdout)


def test_describe_and_events_tell_why_a_job_waits(luthier: Run, tmp_path: Path, name: str) -> None:
    """The story has what was asked, where it stands and why; events are in order."""
    submit(luthier, tmp_path, name)
    story = luthier("describe", name).stdout
    events = json.loads(luthier("events", name, "-o", "json").stdout)["items"]

    assert story.startswith(f"{name}  QUEUED\n\nWhat was asked\n  method:    pretrain")
    assert "Where it stands\n  state:   QUEUED" in story
    assert "CREATED" == events[0]["type"]
    assert [str(i + 1) for i in range(len(events))] == [event["sequence"] for event in events]


def test_methods_and_version(luthier: Run, tmp_path: Path) -> None:
    """Plugins are listed and shown with schema and example; the server's version is told when it is there."""
    listed = luthier("methods", "-q").stdout.split()
    shown = luthier("methods", "lora").stdout
    wrong = luthier("methods", "lara")
    here = json.loads(luthier("version", "-o", "json").stdout)
    alone = luthier("version", LUTHIER_STATE_DIR=str(tmp_path))

    assert {"pretrain", "sft", "nll", "full", "lora"} <= set(listed)
    assert "rank: integer, in [1, 4096], default 16" in shown
    assert "Example" in shown
    assert (4, True) == (wrong.returncode, "did you mean 'lora'?" in wrong.stderr)
    assert here["client"] == here["server"]
    assert (0, f"luthier {here['client']}\n") == (alone.returncode, alone.stdout)


def test_a_reader_that_goes_away_is_no_error(luthier: Run, up: Up, tmp_path: Path, name: str) -> None:
    """`luthier get | head -0` ends quietly."""
    submit(luthier, tmp_path, name)
    with subprocess.Popen(
        [*LUTHIER, "get", "-o", "json"],
        env={**CLEAN, "LUTHIER_STATE_DIR": str(up.state_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "" == process.stderr.read()
        assert 0 == process.wait(30)


# --- up --------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told(up: Up, tmp_path: Path) -> None:
    """A second controller on the same port or the same state directory says what is in the way, without a traceback."""
    for words in (
        ["--listen", up.address, "--state-dir", str(tmp_path / "other")],
        ["--listen", "127.0.0.1:0", "--state-dir", str(up.state_dir)],
    ):
        done = subprocess.run([*LUTHIER, "up", "--no-prewarm", *words], env=CLEAN, capture_output=True, text=True, timeout=60, check=False)

        assert 1 == done.returncode
        assert "Traceback" not in done.stderr
        assert "fix:" in done.stderr.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "nonsense"], "'nonsense' is not an address"),
        (["--listen", "0.0.0.0:0"], "is not a loopback address"),
        (["--root", "x"], "--root 'x' is not NAME=DIR"),
        (["--root", "x=/does/not/exist"], "which is not a directory"),
    ],
    ids=["address", "open to all", "root", "missing root"],
)
def test_wrong_settings_are_told(words: list[str], said: str, tmp_path: Path) -> None:
    """Nothing starts with a wrong setting."""
    done = subprocess.run(
        [*LUTHIER, "up", "--state-dir", str(tmp_path / "s"), *words], env=CLEAN, capture_output=True, text=True, timeout=60, check=False
    )

    assert 1 == done.returncode
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_a_controller(tmp_path: Path) -> None:
    """An interrupt of `luthier up` ends it cleanly and removes what would mislead the next command."""
    process = start(tmp_path / "state", tmp_path / "log", "--slots", "0")
    process.send_signal(signal.SIGINT)

    assert process.wait(30) in (0, 130)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_waiting_survives_a_restart_of_the_controller(tmp_path: Path) -> None:
    """`wait` goes on when the controller comes back, and sees what happened meanwhile."""
    state, log = tmp_path / "state", tmp_path / "log"
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    env = {**CLEAN, "LUTHIER_STATE_DIR": str(state)}
    first = start(state, log, "--slots", "0")
    address = json.loads((state / "endpoint.json").read_text())["address"]
    subprocess.run([*LUTHIER, "submit", write(tmp_path, f"name: a\n{SPEC}"), "-q"], env=env, check=True, timeout=60)
    waiting = subprocess.Popen([*LUTHIER, "wait", "a"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith("a  QUEUED")  # it has seen the job

    first.send_signal(signal.SIGTERM)
    assert 0 == first.wait(30)
    (state / "endpoint.json").unlink(missing_ok=True)
    second = start(state, log, "--slots", "0", listen=address)
    subprocess.run([*LUTHIER, "cancel", "a", "--yes", "-q"], env=env, check=True, timeout=60)
    out, err = waiting.communicate(timeout=60)
    second.send_signal(signal.SIGTERM)
    assert 0 == second.wait(30)

    assert (7, "a CANCELLED\n") == (waiting.returncode, out), err
