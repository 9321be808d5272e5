"""The process group of one generation: formed on the store that node 0's agent listens for, with collectives over integers and JSON.

No object is pickled: JSON travels as bytes. Every exception of a collective becomes `PeerLost`, which is a consequence and never
a cause (exit 72).
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from luthier.trainer_node.context import Group, PeerLost
from luthier.trainer_node.launch import RankLaunch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = ["Alone", "TorchGroup", "is_collective_error", "join_group", "set_rank_environment"]

_SIOCGIFADDR = 0x8915

_PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo/transport",
    "nccl error",
    "ncclremoteerror",
    "socket timeout",
    "timed out waiting",
    "process group watchdog",
    "application timeout caused pair closure",
)


def is_collective_error(error: BaseException) -> bool:
    """True for what torch.distributed, gloo or NCCL raises when another rank has ended."""
    import torch.distributed as dist

    if isinstance(error, (PeerLost, dist.DistError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(word in text for word in _PEER_WORDS)


class Alone:
    """The group of a single rank: every collective is the identity."""

    rank = 0
    world_size = 1
    backend = "none"

    def sum_ints(self, values: Sequence[int]) -> list[int]:
        return [int(v) for v in values]

    def max_ints(self, values: Sequence[int]) -> list[int]:
        return [int(v) for v in values]

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return [float(v) for v in values]

    def broadcast_json(self, value: Any) -> Any:
        return json.loads(json.dumps(value))

    def gather_json(self, value: Any) -> list[Any]:
        return [json.loads(json.dumps(value))]

    def barrier(self) -> None:
        return None


class TorchGroup:
    """The torch.distributed group; integers and JSON go over gloo on the host whatever the backend of the tensors is."""

    def __init__(self, rank: int, world_size: int, backend: str, host_group: ProcessGroup | None) -> None:
        self._rank = rank
        self._world_size = world_size
        self._backend = backend
        self._host_group = host_group

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def backend(self) -> str:
        return self._backend

    def sum_ints(self, values: Sequence[int]) -> list[int]:
        import torch

        return [int(v) for v in self._reduce(torch.tensor([int(v) for v in values], dtype=torch.int64), "SUM").tolist()]

    def max_ints(self, values: Sequence[int]) -> list[int]:
        import torch

        return [int(v) for v in self._reduce(torch.tensor([int(v) for v in values], dtype=torch.int64), "MAX").tolist()]

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        import torch

        return [float(v) for v in self._reduce(torch.tensor([float(v) for v in values], dtype=torch.float64), "SUM").tolist()]

    def broadcast_json(self, value: Any) -> Any:
        import torch
        import torch.distributed as dist

        data = json.dumps(value).encode() if self._rank == 0 else b""
        with _peers():
            size = torch.tensor([len(data)], dtype=torch.int64)
            dist.broadcast(size, src=0, group=self._host_group)
            buffer = _bytes_tensor(data, int(size))
            dist.broadcast(buffer, src=0, group=self._host_group)
        return json.loads(buffer.numpy().tobytes())

    def gather_json(self, value: Any) -> list[Any]:
        import torch
        import torch.distributed as dist

        data = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self._world_size)]
        with _peers():
            dist.all_gather(sizes, torch.tensor([len(data)], dtype=torch.int64), group=self._host_group)
            longest = max(int(size) for size in sizes)
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self._world_size)]
            dist.all_gather(parts, _bytes_tensor(data, longest), group=self._host_group)
        return [json.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def barrier(self) -> None:
        self.sum_ints([1])

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        import torch.distributed as dist

        if tensor.numel():
            with _peers():
                dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation), group=self._host_group)
        return tensor


def set_rank_environment(launch: RankLaunch) -> None:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, MASTER_ADDR, MASTER_PORT and the interface of the group.

    All are set always: DeepSpeed looks for MPI when one is missing.
    """
    host, _, port = (launch.address or "127.0.0.1:0").rpartition(":")
    values = {
        "RANK": launch.rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_RANK": launch.local_rank,
        "LOCAL_SIZE": launch.node.processes,
        "LOCAL_WORLD_SIZE": launch.node.processes,
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in values.items()})
    interface = _interface_of(launch.node.host)
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        if interface != "lo":
            os.environ["NCCL_SOCKET_IFNAME"] = interface


def join_group(launch: RankLaunch, listener: int | None) -> Group:
    """Form the group of the generation. `listener`: rank 0's listening descriptor, which the store takes over.

    Raises `PeerLost` when the group cannot be formed.
    """
    if launch.world_size == 1:
        if listener is not None:
            os.close(listener)
        return Alone()
    import torch.distributed as dist

    host, _, port = launch.address.rpartition(":")
    timeout = timedelta(seconds=launch.group_timeout_seconds)
    backend = "nccl" if launch.device.startswith("cuda") else "gloo"
    with _peers():
        if launch.rank == 0 and listener is not None:
            # torch listens again on the descriptor it is handed; peers that connected before are in its queue
            store = dist.TCPStore(
                host, int(port), launch.world_size, True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener
            )
        else:
            store = dist.TCPStore(host, int(port), launch.world_size, False, timeout=timeout, wait_for_workers=False)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"{launch.fence}/", store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timeout,
        )
        host_group = dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else None
    return TorchGroup(launch.rank, launch.world_size, backend, host_group)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"a collective failed: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What gloo or NCCL says, without its source file and its advice."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r"^\[[^\]]*\.(cc|cpp|h|hpp):\d+\]\s*", "", line)
    return line.partition(". This is typically caused by")[0]


def _bytes_tensor(data: bytes, size: int) -> Tensor:
    import torch

    buffer = torch.zeros(size, dtype=torch.uint8)
    if data:
        buffer[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return buffer


def _interface_of(host: str) -> str:
    """Name of the interface that holds the address of `host`; "" when none does (then the libraries choose)."""
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host))
    except (OSError, ValueError):
        return ""
    if address.is_loopback:
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if ipaddress.ip_address(answer[20:24]) == address:
                    return name
    return ""
