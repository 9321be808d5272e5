"""`make demo` as a user runs it: what it prints is true, it ends what it started, and a second run works."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SECONDS = 400
"""A demo takes about one to two minutes on two cores; the machine may be busy."""


def demo(state_dir: Path, seed: int) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, without a terminal."""
    command = [sys.executable, "-P", "-m", "luthier.demo", "--seed", str(seed), "--state-dir", str(state_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def processes_on(state_dir: Path) -> list[str]:
    """Command lines of processes that name the state directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if os.fsencode(state_dir) in words and entry.parent.name != str(os.getpid()):
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def check(printed: subprocess.CompletedProcess[str], state_dir: Path) -> None:
    """Everything that the demo promises."""
    assert 0 == printed.returncode, printed.stdout + printed.stderr
    text = printed.stdout
    exact = re.search(r"exact match +([\d.]+)% +([\d.]+)%", text)
    loss = re.search(r"held-out loss +([\d.]+) +([\d.]+)", text)
    assert exact, text
    assert loss, text
    print(exact[0], loss[0], sep="\n")
    assert float(exact[1]) <= 10
    assert float(exact[2]) >= 60
    assert float(loss[2]) < float(loss[1])
    samples = re.findall(r"^    expected  (.+)\n    before    (.*)\n    after     (.+)$", text, re.M)
    assert 2 == len(samples)

    adapter = re.search(r"^Adapter: +(.+)$", text, re.M)
    assert adapter
    assert (Path(adapter[1]) / "adapter_config.json").is_file()
    code = re.search(r"Open it with plain peft \(.+\):\n\n((?:    .+\n){3})", text)
    assert code
    answered = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code[1])], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert 0 == answered.returncode, answered.stderr
    assert samples[0][2] in answered.stdout, "plain peft answers the first sample as the job did"

    picture = re.search(r"^Loss curve: +(.+)$", text, re.M)
    assert picture
    data = Path(picture[1]).read_bytes()
    assert b"\x89PNG\r\n\x1a\n" == data[:8]
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 400
    assert height >= 200
    assert [] == processes_on(state_dir)


@pytest.mark.timeout(SECONDS)
def test_demo(tmp_path: Path) -> None:
    """One seed: acceptance numbers, a real adapter, three lines that work, a picture, nothing left running."""
    check(demo(tmp_path / "state", 0), tmp_path / "state")


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS)
def test_three_seeds_in_one_state_directory(tmp_path: Path) -> None:
    """Three worlds, one after the other, in the same state directory."""
    for seed in (1, 2, 3):
        print(f"seed {seed}")
        check(demo(tmp_path / "state", seed), tmp_path / "state")


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    """A signal while the base trains cancels the jobs and ends nodes, zygote and controller."""
    state_dir = tmp_path / "state"
    command = [sys.executable, "-P", "-u", "-m", "luthier.demo", "--state-dir", str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "RUNNING" in line:
                break
        process.send_signal(number)
        rest, _ = process.communicate(timeout=SECONDS)
    assert 128 + number == process.returncode, "".join(seen) + rest
    assert "The demo was interrupted" in rest
    assert "Traceback" not in rest
    assert [] == processes_on(state_dir)
