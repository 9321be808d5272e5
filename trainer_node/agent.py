"""Process 1 of a node: `python -P -m luthier.trainer_node.agent NODE_DIR`. It never imports torch.

It checks its node, attaches to the controller, starts ranks when a group is formed, watches them, and reports until the controller
has everything. Its state is small: the fence of the last group it ran, its ranks, and whether it was asked to leave. Everything that
happens goes through one queue, so that two things never happen at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from luthier.trainer_node.node_files import agent_log, take_lock, write_exit, write_pid

__all__ = ["main"]

_FENCED = 76
_SOFTWARE = 70


def main(arguments: list[str] | None = None) -> int:
    """Run the agent of a node folder; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1 or words[0].startswith("-"):
        print("usage: python -P -m luthier.trainer_node.agent NODE_DIR", file=sys.stderr)
        return 2
    node_dir = Path(words[0]).absolute()
    (node_dir / "logs").mkdir(parents=True, exist_ok=True)
    if not take_lock(node_dir):
        print(f"another agent runs in {node_dir}", file=sys.stderr)
        return _FENCED
    write_pid(node_dir)
    (node_dir / "exit.json").unlink(missing_ok=True)
    code, message = _SOFTWARE, ""
    try:
        code, message = _run(node_dir)
    except Exception as error:  # noqa: BLE001  the last words must be written whatever happened
        import traceback

        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        with agent_log(node_dir).open("a") as log:
            traceback.print_exc(file=log)
    finally:
        write_exit(node_dir, code, message)
    return code


def _run(node_dir: Path) -> tuple[int, str]:
    import threading

    from luthier.trainer_node.launch import NodeLaunch
    from luthier.trainer_node.preflight import Preflight, check_node

    launch = NodeLaunch.read(node_dir / "launch.json")
    found: list[Preflight] = []
    # the checks wait for the disk while this thread imports grpc
    checking = threading.Thread(target=lambda: found.append(check_node(launch, node_dir)), name="preflight")
    checking.start()
    from luthier.trainer_node.node import run_node

    def checked() -> Preflight:
        checking.join()
        return found[0]

    return run_node(launch, node_dir, checked)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no grpc thread may hold the exit up
