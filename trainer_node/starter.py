"""Starting the ranks of a generation: the node's zygote, kept ready while the gang waits, and one fork per rank."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from luthier.trainer_node.forking import ZygoteClient, ZygoteFailed, ensure_zygote
from luthier.trainer_node.launch import NodeLaunch, RankLaunch
from luthier.trainer_node.orphans import Reaper
from luthier.trainer_node.ranks import LocalRank, start_rank
from luthier.trainer_node.references import checkpoint_ref, journal_ref
from luthier.v1 import node_service_pb2 as pb

__all__ = ["RankStarter", "rank_launch"]


class RankStarter:
    """Of one node. `warm` may be called early; `start` waits for it and finds another zygote where the first has died."""

    def __init__(self, launch: NodeLaunch, node_dir: Path) -> None:
        self._launch = launch
        self._node_dir = node_dir
        self._reaper = Reaper()
        self._zygote: asyncio.Task[ZygoteClient] | None = None

    def warm(self) -> None:
        """Look for a zygote, or start one, in the background."""
        launch = self._launch
        self._zygote = asyncio.create_task(
            ensure_zygote(
                Path(launch.zygote_dir) if launch.zygote_dir else self._node_dir / "zygote",
                device=launch.device,
                idle_seconds=launch.zygote_idle_seconds,
                owned=not launch.zygote_dir,
                reaper=self._reaper,
            )
        )

    async def start(self, formed: pb.Formed, listener: int | None, began: Callable[[LocalRank], None]) -> None:
        """Fork the node's ranks and hand each to `began` at once; `listener` goes to rank 0. Raises `ZygoteFailed`."""

        async def one(index: int) -> None:
            launch = rank_launch(self._launch, self._node_dir, formed, index)
            for attempt in (0, 1):
                try:
                    zygote = await self._connected()
                    rank = await start_rank(zygote, launch, listener if launch.rank == 0 else None, self._node_dir)
                except ZygoteFailed as error:
                    if attempt or not error.retry:
                        raise
                else:
                    began(rank)
                    return

        failures = [e for e in await asyncio.gather(*(one(i) for i in range(formed.local_size)), return_exceptions=True) if e is not None]
        if failures:
            raise failures[0]

    async def close(self) -> None:
        """Give the zygote up; it kills ranks that still live."""
        if self._zygote is None:
            return
        if not self._zygote.done():
            self._zygote.cancel()
        results = await asyncio.gather(self._zygote, return_exceptions=True)
        if isinstance(results[0], ZygoteClient):
            results[0].close()

    async def _connected(self) -> ZygoteClient:
        while True:
            if self._zygote is None:
                self.warm()
            task = self._zygote
            assert task is not None
            try:
                client = await asyncio.shield(task)
            except ZygoteFailed:
                if self._zygote is task:
                    self._zygote = None
                raise
            if not client.closed:
                return client
            if self._zygote is task:
                self._zygote = None


def rank_launch(launch: NodeLaunch, node_dir: Path, formed: pb.Formed, index: int) -> RankLaunch:
    """Launch data of the node's rank `index`."""
    return RankLaunch(
        node=launch,
        generation=formed.fence.generation,
        rank=formed.first_rank + index,
        local_rank=index,
        world_size=formed.world_size,
        address=formed.address,
        node_dir=str(node_dir),
        resume_from=checkpoint_ref(formed.resume_from) if formed.HasField("resume_from") else None,
        fallbacks=tuple(checkpoint_ref(c) for c in formed.fallbacks),
        journal_head=journal_ref(formed.journal_head) if formed.HasField("journal_head") else None,
        micro_batch_size=formed.micro_batch_size,
        device=formed.device or launch.device,
    )
