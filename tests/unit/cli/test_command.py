"""The command line before anything is sent: help, usage errors, what is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from luthier.cli import exits, main
from luthier.cli.command import VERBS

HEAVY = ("grpc", "google.protobuf", "torch", "rich", "pydantic", "transformers", "deepspeed", "kubernetes", "yaml", "matplotlib", "asyncio")


@pytest.mark.parametrize("words", [["--help"], *[[verb, "--help"] for verb in VERBS]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """In a fresh interpreter, help loads none of the packages that cost the time."""
    code = f"import sys, json; from luthier.cli import main; code = main({words!r}); print('\\n' + json.dumps([code, sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)

    code_and_modules = json.loads(done.stdout.splitlines()[-1])
    assert 0 == code_and_modules[0]
    assert [] == sorted(set(HEAVY) & set(code_and_modules[1]))
    assert done.stdout.startswith("usage: luthier")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """Verb and summary of each stand in the help."""
    assert exits.OK == main(["--help"])

    text = capsys.readouterr().out
    for verb, (_, summary, _) in VERBS.items():
        assert f"  {verb}" in text
        assert summary in text


@pytest.mark.parametrize(
    ("words", "why", "fix"),
    [
        (["gte"], "there is no verb 'gte'", "did you mean `luthier get`?"),
        (["xyzzy"], "there is no verb 'xyzzy'", "`luthier --help` lists the verbs"),
        (["get", "--stat", "x"], "unrecognized arguments: --stat", "did you mean --state?"),
        (["get", "--state", "RUNING"], "argument --state: 'RUNING' is not a value of this option", "did you mean RUNNING?"),
        (["get", "-o", "jsn"], "argument -o/--output: 'jsn' is not a value of this option", "did you mean json?"),
        (["wait", "a", "--timeout", "3x"], "argument --timeout: '3x' is not a time; write seconds, or for example 30s, 5m, 1h30m", ""),
        (["logs", "a", "--tail", "-1"], "argument --tail: '-1' is not a whole number from 0", "see `luthier logs --help`"),
        (["logs"], "the following arguments are required: NAME", "see `luthier logs --help`"),
        (["submit", "a.yaml", "--wait", "--follow"], "argument --follow: not allowed with argument --wait", "see `luthier submit --help`"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_usage_errors_have_four_parts(words: list[str], why: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line exits 2 and says what is wrong and how to fix it, on stderr only."""
    assert exits.USAGE == main(words)

    captured = capsys.readouterr()
    assert "" == captured.out
    assert "error: the command line is wrong\n" in captured.err
    assert f"  why:   {why}\n" in captured.err
    assert f"  fix:   {fix}" in captured.err


def test_no_verb_prints_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """`luthier` alone shows what there is."""
    assert exits.USAGE == main([])
    assert capsys.readouterr().out.startswith("usage: luthier VERB")


def test_help_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """`luthier help submit` is `luthier submit --help`."""
    assert exits.OK == main(["help", "submit"])
    assert capsys.readouterr().out.startswith("usage: luthier submit")
