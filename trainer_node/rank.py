"""One worker: takes over the forked process, joins the group, runs the plan, and leaves with one of the protocol's exit codes.

A rank always leaves by `os._exit` after its last message: unwinding a process whose peers are gone can end in an abort of gloo that
would hide the real cause. The traceback goes to the log, the message for people to the agent.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from luthier.errors import JobEnd, SpecError
from luthier.spec.models import JobSpec
from luthier.trainer_node.channel import JsonChannel, watch_lifeline
from luthier.trainer_node.context import LeaveRequested, PeerLost, RankContext
from luthier.trainer_node.group import is_collective_error, join_group, set_rank_environment
from luthier.trainer_node.launch import RankDescriptors, RankLaunch
from luthier.trainer_node.node_files import stack_file

__all__ = ["FENCED", "PLAN_FINISHED", "exit_of", "run_rank"]

PLAN_FINISHED = 0
CONFIGURATION = 64
DATA = 65
METHOD = 70
MEMORY = 71
PEER_LOST = 72
STORAGE = 74
LEFT = 75
FENCED = 76

_STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ESTALE})
_MEMORY_WORDS = ("defaultcpuallocator: can't allocate", "out of memory", "cannot allocate memory", "std::bad_alloc")
_OOM_SCORE = 500
"""The host's out-of-memory killer takes ranks before agents and the controller."""

_stacks: IO[str] | None = None


def run_rank(launch: RankLaunch, descriptors: RankDescriptors, plan: Callable[[RankContext], Mapping[str, Any]] | None = None) -> NoReturn:
    """Run one rank in this process and end it. Called in a freshly forked process that has no descriptors of anybody else.

    `plan` is what the rank runs in its context; None: `luthier.trainer_node.plan.run_plan`.
    """
    channel = JsonChannel(socket.socket(fileno=descriptors.channel))
    code, message = METHOD, ""
    try:
        _take_over(launch, descriptors.log)
        watch_lifeline(descriptors.lifeline, channel, FENCED)
        channel.beat("setup", 0)
        _run_plan(launch, descriptors.listener, channel, plan)
        code = PLAN_FINISHED
    except BaseException as error:  # noqa: BLE001  whatever it was, the agent hears of it
        code, message = exit_of(error)
        if code == LEFT:
            print(f"rank {launch.rank}: {error}", file=sys.stderr)
        else:
            if code not in (CONFIGURATION, DATA):  # the user's errors say what to do; where in our code they were found does not help
                traceback.print_exception(error)
            print(f"rank {launch.rank} ends with exit code {code}: {message}", file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    channel.exit(code, message)
    os._exit(code)


def exit_of(error: BaseException) -> tuple[int, str]:
    """Exit code and one paragraph for people."""
    if isinstance(error, LeaveRequested):
        return LEFT, ""
    if isinstance(error, JobEnd):
        return error.exit_code, str(error)
    if isinstance(error, SpecError):
        return CONFIGURATION, str(error)
    if isinstance(error, PeerLost) or is_collective_error(error):
        return PEER_LOST, f"Another rank ended: {_one_line(error)}"
    if _is_memory_error(error):
        return MEMORY, f"Out of memory: {_one_line(error)} Fix: lower training.micro_batch_size or training.max_length, or more processes."
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return STORAGE, f"Storage failed: {_one_line(error)}"
    if type(error).__name__ == "ValidationError" and type(error).__module__.startswith("pydantic"):
        return CONFIGURATION, f"The specification cannot be used: {_one_line(error)}"
    return METHOD, f"{type(error).__name__} in {_place(error)}: {_one_line(error)}"


def _take_over(launch: RankLaunch, log: int) -> None:
    """Session, standard streams, signals, environment, folder."""
    global _stacks
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    node_dir = Path(launch.node_dir)
    _stacks = stack_file(node_dir, launch.rank).open("a", buffering=1)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, file=_stacks, all_threads=True)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
        Path("/proc/self/comm").write_text(f"luthier-rank{launch.rank}")
    # DeepSpeed still calls collectives by names that torch has renamed: nothing that a user could act on
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    os.chdir(node_dir)
    threads = max(1, launch.node.threads_per_rank)
    os.environ.update({name: str(value) for name, value in launch.node.spec.get("env", {}).items()})
    os.environ.update({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    set_rank_environment(launch)
    if launch.node.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in launch.node.devices)
    elif launch.device.startswith("cuda"):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # all that the machine has; the zygote saw none


def _run_plan(
    launch: RankLaunch, listener: int | None, channel: JsonChannel, plan: Callable[[RankContext], Mapping[str, Any]] | None
) -> None:
    import torch

    if plan is None:
        from luthier.trainer_node.plan import run_plan

        plan = run_plan
    torch.set_num_threads(max(1, launch.node.threads_per_rank))
    device = "cpu"
    if launch.device.startswith("cuda"):
        device = f"cuda:{launch.local_rank}"
        torch.cuda.set_device(launch.local_rank)
    spec = JobSpec.model_validate(launch.node.spec)
    group = join_group(launch, listener)
    result: Mapping[str, Any] = plan(RankContext(launch=launch, spec=spec, channel=channel, group=group, device=device))
    if launch.rank == 0:
        channel.fact("plan_finished", {"result": json.loads(json.dumps(result))})
    # nobody leaves while another one may still be in a collective with it; the plan is finished whatever happens here
    with contextlib.suppress(PeerLost):
        group.barrier()


def _is_memory_error(error: BaseException) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 1000 else text[:1000] + " …"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "the trainer"
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} ({frame.name})"
