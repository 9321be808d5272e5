"""Work that rank 0 does alone while the others wait outside collectives.

The others poll for a file that rank 0 writes at the end, and beat while they wait: a collective would time out on long work and look
like a hang. When rank 0 fails it leaves a note, so that nobody waits for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from luthier.trainer_node.context import PeerLost, RankContext

__all__ = ["rank_zero_alone"]

_FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.25


def rank_zero_alone(context: RankContext, marker: Path, work: Callable[[], None], step: int = 0) -> None:
    """Rank 0 runs `work`, then makes `marker`; the others return when it is there. Collective at the end.

    `marker` must lie under the generation's fence and not exist before. Raises `PeerLost` on the others when rank 0 failed.
    """
    group = context.group
    if group.world_size == 1:
        work()
        return
    failed = marker.with_name(f"{marker.name}.failed")
    if group.rank == 0:
        marker.parent.mkdir(parents=True, exist_ok=True)
        try:
            work()
        except BaseException as error:
            failed.write_text(f"{type(error).__name__}: {error}")
            raise
        marker.touch()
    else:
        context.channel.beat("waiting", step)
        pause, since = _FIRST_POLL_SECONDS, time.monotonic()
        while not marker.exists():
            if failed.exists():
                raise PeerLost(f"rank 0 failed: {failed.read_text()}")
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL_SECONDS)
            if time.monotonic() - since > 1.0:
                context.channel.beat("waiting", step)
                since = time.monotonic()
    group.barrier()
    if group.rank == 0:
        marker.unlink(missing_ok=True)
