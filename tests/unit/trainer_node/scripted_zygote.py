"""A zygote whose ranks run a small script instead of a plan; started as a process of its own by the fixture `scripted_zygote`.

Usage: `python -P scripted_zygote.py DIR [IDLE_SECONDS [everything]]`. It imports torch, or everything that the real one imports, and is
otherwise the real one: its folder, lock, socket, forks, and the real `run_rank`. A rank does what the job's environment variable `SCRIPT`
says, word by word.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import DataError, StorageError
from luthier.trainer_node import zygote
from luthier.trainer_node.context import SAVE_AND_LEAVE, STOP, LeaveRequested, RankContext
from luthier.trainer_node.environment import environment_home, zygote_environment
from luthier.trainer_node.rank import run_rank


def plan(context: RankContext) -> Mapping[str, Any]:
    """Do the words of SCRIPT in order; `word@rank` is for one rank only."""
    rank = context.launch.rank
    for text in os.environ["SCRIPT"].split():
        word, _, only = text.partition("@")
        if only and int(only) != rank:
            continue
        name, _, argument = word.partition(":")
        ACTIONS[name](context, argument)
    return {"kind": "none", "metrics": {"rank": rank}}


def _start(context: RankContext, argument: str) -> None:
    context.channel.fact("phase_started", {"index": 0, "kind": "train", "totalSteps": "10", "device": f"cpu/{context.group.backend}"})


def _steps(context: RankContext, argument: str) -> None:
    """Steps of 20 ms with a collective each, until one is asked to leave or all are done."""
    for step in range(1, int(argument) + 1):
        word = context.group.max_ints([context.channel.control()])[0]
        if word == STOP:
            raise LeaveRequested(saved=False)
        if word:
            body = {"checkpoint": {"step": str(step), "path": f"checkpoints/step-{step}"}, "stallSeconds": 0.01, "persistSeconds": 0.02}
            context.channel.fact("checkpoint_committed", body)
        if word == SAVE_AND_LEAVE:
            raise LeaveRequested(saved=True)
        time.sleep(0.02)
        context.channel.beat("step", step)
        context.channel.samples([{"step": str(step), "values": {"loss": 1.0 / step}}])
        context.channel.gauges({"luthier_train_steps_total": 1, "luthier_train_loss": 1.0 / step, "luthier_method_score": 0.5})


def _collectives(context: RankContext, argument: str) -> None:
    group, rank = context.group, context.launch.rank
    print("sum", group.sum_ints([rank, 2**40 + rank]), group.sum_floats([0.1 * rank]), group.max_ints([rank, -rank]))
    print("json", group.broadcast_json({"from": rank}), group.gather_json({"rank": rank, "text": "x" * rank}))
    group.barrier()


def _environment(context: RankContext, argument: str) -> None:
    import torch

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "GREETING")
    print("env", {name: os.environ.get(name) for name in names})
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    print("process", os.getsid(0) == os.getpid(), Path.cwd().name, torch.get_num_threads(), ignored)
    kinds = {
        os.readlink(f"/proc/self/fd/{number}").partition(":")[0] for number in range(64) if Path(f"/proc/self/fd/{number}").is_symlink()
    }
    print("descriptors", json.dumps(sorted(kinds)))


def _raise(context: RankContext, argument: str) -> None:
    errors: dict[str, BaseException] = {
        "data": DataError("rows.jsonl:3: not JSON", fix="repair the line"),
        "storage": StorageError("the store refused a file"),
        "memory": MemoryError(),
        "torch_memory": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        "disk": OSError(28, "No space left on device"),
        "peer": RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"),
        "bug": ZeroDivisionError("division by zero"),
    }
    raise errors[argument]


def _hold(context: RankContext, argument: str) -> None:
    """Wait in a collective that rank 1 never enters."""
    if context.launch.rank != 1:
        context.group.barrier()
    time.sleep(600)


def _deepspeed(context: RankContext, argument: str) -> None:
    """Two steps under DeepSpeed at this ZeRO stage; prints what had to be imported for it."""
    before = set(sys.modules)
    started = time.monotonic()
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    net = AutoModelForCausalLM.from_config(config)
    deepspeed.init_distributed("gloo", dist_init_required=False)
    zero = {"stage": int(argument), "stage3_param_persistence_threshold": 0}
    settings = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "steps_per_print": None,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }  # fmt: skip
    engine = deepspeed.initialize(model=net, model_parameters=list(net.parameters()), config=settings, dist_init_required=False)[0]
    tokens = torch.arange(16).reshape(1, 16)
    for _ in range(2):
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    new = sorted(set(sys.modules) - before)
    print(f"deepspeed done in {time.monotonic() - started:.2f} s")
    print("imported", len(new), *new)


ACTIONS: dict[str, Callable[[RankContext, str], None]] = {
    "start": _start,
    "steps": _steps,
    "collectives": _collectives,
    "environment": _environment,
    "raise": _raise,
    "hold": _hold,
    "deepspeed": _deepspeed,
    "beat": lambda c, a: c.channel.beat(a, 0),  # type: ignore[arg-type]
    "print": lambda c, a: print(a),
    "sleep": lambda c, a: time.sleep(float(a)),
    "kill": lambda c, a: os.kill(os.getpid(), int(a)),
    "exit": lambda c, a: os._exit(int(a)),
    "barrier": lambda c, a: c.group.barrier(),
    "threads": lambda c, a: print("threads", sorted(t.name for t in threading.enumerate())),
}


def main() -> None:
    """Serve below the folder until idle."""
    base, idle = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 600.0
    home = environment_home(base, "cpu")
    for directory in (base, home):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(zygote_environment(os.environ, home, "cpu"))
    if sys.argv[3:] == ["everything"]:  # after the environment is set, as the real one does
        importlib.import_module("luthier.trainer_node.preimport").import_everything()
        importlib.import_module("luthier.trainer_node.ops").refuse_builds()
    else:
        importlib.import_module("torch.distributed")
    if zygote.take_lock(home):
        zygote.Zygote(home, idle, functools.partial(run_rank, plan=plan)).serve()


if __name__ == "__main__":
    main()
