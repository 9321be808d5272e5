"""Forks groups of real ranks for the trainer's tests: imports the training stack once, then answers one JSON line per run.

Request: {"program": path of a Python file, "world_size": n, "arguments": {...}, "directory": where ranks leave results}.
The file's `main(group, arguments, directory)` runs in every rank; its JSON-able return value lands in `rank-<r>.json`.
Answer: {"codes": exit code or negative signal per rank}. Ranks leave with 99 on an exception, which is printed to `rank-<r>.log`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.update({"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})
# With DeepSpeed's usual threshold a toy model stays whole on every rank, and a test of ZeRO-3 would test nothing.
os.environ["LUTHIER_ZERO3_PERSISTENCE_THRESHOLD"] = "0"

import deepspeed  # noqa: F401
import peft  # noqa: F401
import torch
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed as dist
from deepspeed.runtime import engine as _engine  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

from luthier.trainer_node import plan, warm  # noqa: F401
from luthier.trainer_node.group import Alone, TorchGroup
from luthier.trainer_node.ops import refuse_builds


def run_rank(request: dict[str, Any], rank: int) -> None:
    """One rank, in the forked child."""
    directory, world_size = Path(request["directory"]), int(request["world_size"])
    log = os.open(directory / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 99
    try:
        torch.set_num_threads(1)
        refuse_builds()
        os.environ.update(request["arguments"].get("environment", {}))
        os.environ.update(
            {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(world_size)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "lo"}
        )
        group: Any = Alone()
        if world_size > 1:
            store = dist.FileStore(str(directory / "store"), world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
            group = TorchGroup(rank, world_size, "gloo", None)
        specification = importlib.util.spec_from_file_location("program", request["program"])
        assert specification is not None and specification.loader is not None
        program = importlib.util.module_from_spec(specification)
        sys.modules["program"] = program
        specification.loader.exec_module(program)
        result = program.main(group, request["arguments"], directory)
        (directory / f"rank-{rank}.json").write_text(json.dumps(result))
        group.barrier()
        code = 0
    except BaseException as error:
        traceback.print_exc()
        code = int(getattr(error, "exit_code", 99))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer requests until standard input ends."""
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for rank in range(int(request["world_size"])):
            pid = os.fork()
            if pid == 0:
                run_rank(request, rank)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes}), flush=True)


if __name__ == "__main__":
    serve()
