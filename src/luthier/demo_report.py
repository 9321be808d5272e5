"""What the demo prints at its end, and whether that is good enough."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.demo_pipeline import LARGEST_BEFORE, SMALLEST_AFTER

if TYPE_CHECKING:
    from luthier.client import Job
    from luthier.v1 import job_pb2
    from luthier.world import World

__all__ = ["open_with_peft", "render", "shortcomings"]


BEGIN = "<|bos|>"
"""The tokenizer writes it by itself."""


def render(job: Job, world: World, *, directory: Path, adapter: Path, picture: Path, seconds: float) -> str:
    """The whole report of a tuning that succeeded."""
    result = _result(job)
    rows = len(world.rows["tune_validation.jsonl"])
    state, luthier = _short(directory.parent), _command()
    lines = [
        "",
        f"The new task, on {rows} held-out rows about {len(world.held_out)} people that the tuning never saw:",
        "",
        "                   before     after",
        f"  held-out loss  {result.metrics['eval_loss_before']:8.3f}  {result.metrics['eval_loss_after']:8.3f}",
        f"  exact match    {result.metrics['exact_match_before']:8.1%}  {result.metrics['exact_match_after']:8.1%}",
    ]
    for sample in result.samples[:2]:
        lines += [
            "",
            f"  {_plain(sample.prompt)}",
            f"    expected  {_plain(sample.expected)}",
            f"    before    {_plain(sample.before)}",
            f"    after     {_plain(sample.after)}",
        ]
    lines += [
        "",
        f"Adapter:     {adapter}",
        f"Loss curve:  {picture}",
        "",
        f"Open it with plain peft ({_short(Path(sys.executable))}):",
        "",
        *(f"    {line}" for line in open_with_peft(adapter, result.samples[0].prompt)),
        "",
        "Look around by hand (the first line in a terminal of its own):",
        "",
        f"    {luthier} up --state-dir {state}",
        f"    {luthier} describe {job.name} --state-dir {state}",
        f"    {luthier} plot {job.name} --state-dir {state}",
        "",
        "Repeat it by hand, and watch:",
        "",
        f"    {luthier} submit {_short(directory / 'sft.yaml')} --suffix again --state-dir {state}",
        f"    {luthier} wait tune-again --state-dir {state}",
        "",
        f"The demo took {seconds:.0f} s.",
    ]
    return "\n".join(lines)


def open_with_peft(adapter: Path, prompt: str) -> list[str]:
    """Three lines of Python that answer `prompt` (with its special tokens) with the adapter, using transformers and peft alone."""
    question = f"tokenizer({prompt.removeprefix(BEGIN)!r}, return_tensors='pt')"
    return [
        f"from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer; path = {str(adapter)!r}",
        "model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)",
        f"print(tokenizer.decode(model.generate(**{question}, max_new_tokens=24)[0]))",
    ]


def shortcomings(job: Job) -> list[str]:
    """What misses the acceptance: at most 10 % exact match before, at least 60 % after."""
    metrics = _result(job).metrics
    before, after = metrics["exact_match_before"], metrics["exact_match_after"]
    missed = []
    if before > LARGEST_BEFORE:
        missed.append(f"exact match before tuning is {before:.1%}, more than {LARGEST_BEFORE:.0%}: the task is not new to the base model")
    if after < SMALLEST_AFTER:
        missed.append(f"exact match after tuning is {after:.1%}, less than {SMALLEST_AFTER:.0%}: the adapter did not learn the task")
    return missed


def _result(job: Job) -> job_pb2.Result:
    result = job.result
    assert result is not None, "only jobs that succeeded are reported"
    return result


def _short(path: Path) -> str:
    """For the command line: relative to the current directory where the path lies below it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _command() -> str:
    """What to type for `luthier`: the word where the shell finds it, else the path beside this interpreter."""
    return "luthier" if shutil.which("luthier") else _short(Path(sys.executable).with_name("luthier"))


def _plain(text: str) -> str:
    """Without special tokens, on one line."""
    return " ".join(re.sub(r"<\|\w+\|>", " ", text).split())
