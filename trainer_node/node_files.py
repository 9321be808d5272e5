"""Files of a node's folder, and the few that prove who runs in it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from luthier.trainer_node.environment import process_start_time

__all__ = ["agent_log", "log_file", "spool_file", "stack_file", "take_lock", "write_exit", "write_pid"]


def agent_log(node_dir: Path) -> Path:
    """Where the agent writes."""
    return node_dir / "logs" / "agent.log"


def log_file(node_dir: Path, rank: int) -> Path:
    """Where a rank writes; appended over generations."""
    return node_dir / "logs" / f"rank-{rank}.log"


def stack_file(node_dir: Path, rank: int) -> Path:
    """Where a rank writes the stacks of its threads on SIGUSR1."""
    return node_dir / "logs" / f"rank-{rank}.stacks"


def spool_file(node_dir: Path) -> Path:
    """Facts that the controller has not acknowledged."""
    return node_dir / "facts.jsonl"


def take_lock(node_dir: Path) -> bool:
    """Take the node's lock for the life of this process; False when another agent has it."""
    lock = os.open(node_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True


def write_pid(node_dir: Path) -> None:
    """Who runs here: pid and start time in clock ticks since boot name one process for ever."""
    _write(node_dir / "pid.json", {"pid": os.getpid(), "start_time": process_start_time(os.getpid())})


def write_exit(node_dir: Path, code: int, message: str) -> None:
    """The agent's last words."""
    _write(node_dir / "exit.json", {"code": code, "message": message})


def _write(path: Path, value: dict[str, object]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(value))
    fresh.rename(path)
