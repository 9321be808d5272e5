"""From submit to the first optimiser step, beside `torchrun` with TRL's SFTTrainer on the same model and data.

    python -P bench/startup.py [--out DIR] [--rounds N] [--peer-env DIR | --no-peer]

Every round runs, one after another: Luthier warm with one rank and with two nodes (a controller whose zygote is loaded, as after any
first job), the peer with one and with two ranks, and Luthier cold with one rank and with two nodes (a new controller without a zygote,
started before the clock). Time runs from the call that submits (for the peer: from starting `torchrun`) to the end of the first optimiser
step; a second figure adds what the `luthier submit` command itself takes. Model: a Llama of 2.5 million parameters with random weights;
data: 1,000 pairs that differ in every run, so that nobody finds them in a cache. Prints medians and ratios, and writes `startup.json`
and `startup.txt`.

The peer needs `bench/requirements.txt` in an environment of its own; without `--peer-env` one is made beside the results. It takes over
this environment's torch and transformers, so that both sides run the same ones, but neither deepspeed nor peft, which would slow the
peer's start. Where that is not possible the script says so and measures Luthier alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import site
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.client import AsyncClient
from luthier.world import main as write_world

HERE = Path(__file__).parent
ROWS = 1000
BATCH_SIZE = 8
"""Rows per rank and step."""
MAX_LENGTH = 512
STEPS = 2
PATIENCE_SECONDS = 240.0
SETTLE_SECONDS = 2.0
"""Before each measurement: what ran before it has ended by then, processes of other parties included."""
NOT_SHARED = ("deepspeed", "peft", "luthier", "__editable__", "pip", "setuptools", "_distutils", "distutils")
"""Packages that the peer's environment does not take over: it would load some of them although it does not need them."""


@dataclass
class Case:
    """One line of the result."""

    name: str
    ranks: int
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case, interleaved")
    parser.add_argument("--peer-env", type=Path, help="environment that has bench/requirements.txt (made when it does not exist)")
    parser.add_argument("--no-peer", action="store_true", help="measure Luthier alone")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    peer = None if arguments.no_peer else _peer_environment((arguments.peer_env or arguments.out / "peer-env").absolute())
    with tempfile.TemporaryDirectory(prefix="luthier-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _make_model(folder)
        cases = asyncio.run(_measure(folder, arguments.rounds, peer))
    _report(cases, arguments.out, arguments.rounds)
    return 0


# --- model and data ---------------------------------------------------------------------------------------------------


def _make_model(folder: Path) -> None:
    """A small Llama with random weights and its tokenizer, made in a process of its own so that this one stays without torch."""
    write_world(["--seed", "0", "--out", str(folder / "world")])
    program = """
import json, sys, torch
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
folder = Path(sys.argv[1])
backend = Tokenizer(models.BPE())
backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
texts = [json.loads(line)["text"] for line in (folder / "world" / "pretrain.jsonl").open()]
special = ["<s>", "</s>", "<pad>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
backend.train_from_iterator(texts, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
LlamaForCausalLM(config).save_pretrained(folder / "model")
tokenizer.save_pretrained(folder / "model")
"""
    subprocess.run([sys.executable, "-P", "-c", program, str(folder)], check=True, stdout=subprocess.DEVNULL)


def _make_data(folder: Path, number: int) -> str:
    """A JSONL file like no other; its name."""
    lines = (folder / "world" / "pretrain_questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[index % len(lines)]) for index in range(ROWS)]
    rows[0]["prompt"] += f" Run {number}."
    name = f"data-{number}.jsonl"
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


# --- Luthier ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _controller(folder: Path, name: str, *, prewarm: bool) -> Iterator[Path]:
    """A controller of its own; yields its state directory. Ctrl-C ends it together with its zygote."""
    state = folder / name
    log = folder / f"{name}.log"
    command = [sys.executable, "-P", "-m", "luthier.cli", "up", "--listen", "127.0.0.1:0", "--state-dir", str(state)]
    command += ["--root", f"bench={folder}", *([] if prewarm else ["--no-prewarm"])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=_clean_environment()
        )
    try:
        deadline = time.monotonic() + 60
        while not (state / "endpoint.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the controller did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield state
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}


def _spec(name: str, data: str, nodes: int) -> dict[str, Any]:
    """The job: full fine-tuning, as the peer does by default."""
    return {
        "name": name,
        "model": "bench:model",
        "method": "sft",
        "adapter": "full",
        "data": {"sources": [f"bench:{data}"]},
        "training": {"batch_size": BATCH_SIZE * nodes, "micro_batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "steps": STEPS},
        "resources": {"nodes": nodes, "accelerator": "cpu"},
    }


async def _first_step(client: AsyncClient, name: str) -> float:
    """Wait until the job is over; wall-clock time at which its first optimiser step ended, as the node reported it."""
    # Nothing is polled while the job starts: this process shares its cores.
    job = await client.jobs.wait(name, timeout_seconds=PATIENCE_SECONDS)
    if job.state != "SUCCEEDED":
        raise SystemExit(f"job {name} is {job.state}: {job.pb.failure.message}")
    first = (await client.jobs.metrics(name, ["loss"]))["loss"].points[0]
    assert first.step == 1, f"the first point of the series is step {first.step}"
    return float(first.time.seconds + first.time.nanos * 1e-9)


async def _run_luthier(state: Path, folder: Path, name: str, number: int, nodes: int) -> float:
    """Submit, and wait until the job is over; seconds from the call to the end of the first step."""
    data = _make_data(folder, number)
    await asyncio.sleep(SETTLE_SECONDS)
    async with AsyncClient(state_dir=state) as client:
        await client.methods.get("sft")  # the connection is open, as in any program that uses the SDK
        started = time.time()
        await client.jobs.submit(_spec(name, data, nodes), base_dir=str(folder))
        return await _first_step(client, name) - started


async def _run_command(state: Path, folder: Path, name: str, number: int) -> float:
    """The same with one rank through the command line."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(_spec(name, _make_data(folder, number), 1)), encoding="utf-8")  # JSON is YAML
    await asyncio.sleep(SETTLE_SECONDS)
    started = time.time()
    command = [sys.executable, "-P", "-m", "luthier.cli", "submit", str(path)]
    process = await asyncio.create_subprocess_exec(
        *command, env={**_clean_environment(), "LUTHIER_STATE_DIR": str(state)}, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    async with AsyncClient(state_dir=state) as client:
        return await _first_step(client, name) - started


# --- the peer ---------------------------------------------------------------------------------------------------------


def _peer_environment(directory: Path) -> Path | None:
    """The peer's interpreter; None, with the reason on stderr, when there is none."""
    python = directory / "bin" / "python"
    if not python.exists():
        print(f"making {directory} for the peer …", file=sys.stderr)
        venv.create(directory, with_pip=True)
        [library] = (directory / "lib").glob("python*/site-packages")
        for entry in Path(site.getsitepackages()[0]).iterdir():
            if not entry.name.startswith(NOT_SHARED) and entry.suffix != ".pth" and not (library / entry.name).exists():
                (library / entry.name).symlink_to(entry)
        command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / "requirements.txt")]
        if subprocess.run(command, check=False).returncode != 0:
            print("the peer could not be installed; measuring Luthier alone", file=sys.stderr)
            return None
    if subprocess.run([str(python), "-c", "import trl, datasets"], capture_output=True, check=False).returncode != 0:
        print(f"{directory} cannot import trl and datasets (bench/requirements.txt); measuring Luthier alone", file=sys.stderr)
        return None
    return python


def _run_peer(python: Path, folder: Path, number: int, ranks: int) -> float:
    """Seconds from starting torchrun to the end of the first step."""
    data = _make_data(folder, number)
    file = folder / f"peer-{number}.json"
    command = [
        str(python),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        str(HERE / "peers" / "trl_sft.py"),
    ]
    command += ["--model", str(folder / "model"), "--data", str(folder / data), "--file", str(file), "--folder", str(folder / "peer-out")]
    command += ["--batch-size", str(BATCH_SIZE), "--max-length", str(MAX_LENGTH), "--steps", str(STEPS)]
    cores = os.cpu_count() or 1
    environment = {
        **_clean_environment(),
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    time.sleep(SETTLE_SECONDS)
    started = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    # torch's teardown of two gloo ranks aborts now and then, long after the step that is measured.
    if not file.exists():
        raise SystemExit(f"the peer failed:\n{done.stderr[-3000:]}")
    return float(json.loads(file.read_text())["first_step"]) - started


# --- all of it --------------------------------------------------------------------------------------------------------


async def _measure(folder: Path, rounds: int, peer: Path | None) -> dict[str, Case]:
    cases = {
        "warm 1": Case("Luthier warm, 1 rank", 1),
        "warm 2": Case("Luthier warm, 2 nodes", 2),
        "command": Case("Luthier warm, 1 rank, with the command line", 1),
        "peer 1": Case("torchrun + TRL, 1 rank", 1),
        "peer 2": Case("torchrun + TRL, 2 ranks", 2),
        "cold 1": Case("Luthier cold, 1 rank", 1),
        "cold 2": Case("Luthier cold, 2 nodes", 2),
    }
    numbers = iter(range(10_000))
    with _controller(folder, "warm", prewarm=True) as warm:
        await _run_luthier(warm, folder, "first", next(numbers), 1)  # the zygote is loaded now
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            for nodes in (1, 2):
                name = f"warm-{turn}-{nodes}"
                cases[f"warm {nodes}"].seconds.append(await _run_luthier(warm, folder, name, next(numbers), nodes))
            cases["command"].seconds.append(await _run_command(warm, folder, f"command-{turn}", next(numbers)))
            for ranks in (1, 2):
                if peer is not None:
                    cases[f"peer {ranks}"].seconds.append(await asyncio.to_thread(_run_peer, peer, folder, next(numbers), ranks))
            for nodes in (1, 2):
                with _controller(folder, f"cold-{turn}-{nodes}", prewarm=False) as cold:
                    cases[f"cold {nodes}"].seconds.append(await _run_luthier(cold, folder, "job", next(numbers), nodes))
    return cases


def _report(cases: dict[str, Case], out: Path, rounds: int) -> None:
    width = max(len(case.name) for case in cases.values())
    aims = {"warm 1": (1.0, 10.0), "warm 2": (2.0, 5.0), "cold 1": (None, 1.0), "cold 2": (None, 1.0)}
    lines = [f"{'':{width}}  {'median s':>8}  {'all, s':<{7 * rounds}}  {'peer / ours':>11}  aim"]
    figures = []
    for key, case in cases.items():
        peer = cases[f"peer {case.ranks}"]
        ratios = [theirs / ours for theirs, ours in zip(peer.seconds, case.seconds, strict=False)]
        ratio = statistics.median(ratios) if ratios and not key.startswith("peer") else None
        verdict = ""
        if key in aims:
            limit, times = aims[key]
            wanted = [f"< {limit:g} s"] if limit else []
            wanted.append(f"≥ {times:g} ×")
            missed = (limit is not None and case.median >= limit) or (ratio is not None and ratio < times)
            verdict = f"{', '.join(wanted)}: {'MISSED' if missed else 'met' if ratio is not None else 'met without a peer'}"
        shown = "  ".join(f"{seconds:5.2f}" for seconds in case.seconds)
        against = f"{ratio:.1f} ×" if ratio is not None else ""
        lines.append(f"{case.name:{width}}  {case.median:8.2f}  {shown:<{7 * rounds}}  {against:>11}  {verdict}".rstrip())
        figures.append({"case": key, "name": case.name, "median": case.median, "seconds": case.seconds, "ratio": ratio})
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    text = "\n".join([*lines, "", "ratios: median over the rounds of (peer / ours) in the same round", machine, ""])
    print(text)
    (out / "startup.txt").write_text(text, encoding="utf-8")
    (out / "startup.json").write_text(json.dumps({"machine": machine, "cases": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
