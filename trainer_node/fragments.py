"""The file format of training state: safetensors fragments by parameter name, and reading them back at any world size.

A rank's file holds, for every parameter it owns a part of, three flat fp32 tensors: `w/<name>`, `exp_avg/<name>` and
`exp_avg_sq/<name>`. Beside it lies `rank-<r>.json` with where each part belongs: {"fragments": {name: [start, length, shape]}}.
No pickle, no collective. The writer streams and hashes as it goes, so that it needs no second copy in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from luthier.errors import StorageError
from luthier.trainer_node.engine.api import MOMENTS, WEIGHT, Fragment, Key
from luthier.trainer_node.lineage import sync_directory

__all__ = ["FragmentReader", "HostCopy", "Written", "write_tensors"]

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
_KEYS: tuple[Key, ...] = (WEIGHT, *MOMENTS)


@dataclass(frozen=True)
class Written:
    """A file as the manifest names it."""

    path: str
    size: int
    sha256: str


def write_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]], layout: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> Written:
    """Write a safetensors file from a stream of (name, CPU tensor) in the order of `layout`, and make it durable.

    Only one tensor needs to exist at a time. Raises `StorageError` when the stream does not match the layout.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            digest.update(block)
            size += file.write(block)
        expected = iter(layout.items())
        for name, tensor in tensors:
            wanted = next(expected, None)
            if wanted is None or wanted[0] != name or wanted[1] != (tensor.dtype, tuple(tensor.shape)):
                raise StorageError(f"tensor {name} of {tuple(tensor.shape)} does not fit the file's layout", where=str(path))
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            size += file.write(data)
        if next(expected, None) is not None:
            raise StorageError("fewer tensors than the file's layout names", where=str(path))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return Written(path.name, size, digest.hexdigest())


class HostCopy:
    """Copies of an engine's fragments in host memory. The buffers are kept: touching new pages costs three times the copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._places: dict[str, list[object]] = {}

    def take(self, fragments: Sequence[Fragment]) -> int:
        """Copy every fragment; returns the bytes. The engine may go on as soon as this returns."""
        self._places = {f.name: [f.start, f.length, list(f.shape)] for f in fragments}
        wanted: dict[str, Tensor] = {}
        device = False
        with torch.no_grad():
            for key in _KEYS:
                for fragment in fragments:
                    name, source = f"{key}/{fragment.name}", fragment.read(key)
                    device |= source.is_cuda
                    buffer = self._buffers.get(name)
                    if buffer is None or buffer.numel() != fragment.length:
                        buffer = torch.empty(fragment.length, dtype=torch.float32, pin_memory=source.is_cuda)
                    wanted[name] = buffer.copy_(source, non_blocking=True)
        if device:
            torch.cuda.synchronize()
        self._buffers = wanted
        return sum(buffer.numel() * 4 for buffer in wanted.values())

    def write(self, directory: Path, rank: int) -> list[Written]:
        """Write `rank-<r>.safetensors` (if this rank owns anything) and `rank-<r>.json`; returns what the manifest must name."""
        files = []
        if self._buffers:
            layout = {name: (torch.float32, (buffer.numel(),)) for name, buffer in self._buffers.items()}
            files.append(write_tensors(directory / f"rank-{rank}.safetensors", self._buffers.items(), layout))
        # The index names the file and its hash, so that rank 0 can write the manifest without asking anybody.
        index = json.dumps({"rank": rank, "files": [asdict(f) for f in files], "fragments": self._places}, sort_keys=True).encode()
        path = directory / f"rank-{rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(directory)
        return [*files, Written(path.name, len(index), hashlib.sha256(index).hexdigest())]


@dataclass(frozen=True)
class _Part:
    start: int
    length: int
    rank: int


class FragmentReader:
    """Reads a checkpoint's tensors by name, whatever the world size and stage that wrote it (`StateSource`)."""

    def __init__(self, directory: Path, optimizer_steps: int) -> None:
        self.optimizer_steps = optimizer_steps
        self._directory = directory
        self._parts: dict[str, list[_Part]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        try:
            for path in sorted(directory.glob("rank-*.json")):
                index = json.loads(path.read_bytes())
                for name, (start, length, shape) in index["fragments"].items():
                    self._parts.setdefault(name, []).append(_Part(start, length, index["rank"]))
                    self._shapes[name] = tuple(shape)
            ranks = {part.rank for parts in self._parts.values() for part in parts}
            self._files = {rank: safe_open(directory / f"rank-{rank}.safetensors", framework="pt") for rank in sorted(ranks)}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StorageError(f"the checkpoint cannot be read: {error}", where=str(directory)) from error

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Full shapes by parameter name."""
        return self._shapes

    def read(self, name: str, key: Key, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of the flattened fp32 tensor. Raises `StorageError` when some are missing."""
        out = torch.empty(length, dtype=torch.float32)
        filled = 0
        for part in self._parts.get(name, ()):
            low, high = max(start, part.start), min(start + length, part.start + part.length)
            if low < high:
                try:
                    piece = self._files[part.rank].get_slice(f"{key}/{name}")[low - part.start : high - part.start]
                except SafetensorError as error:
                    raise StorageError(f"{key} of {name} cannot be read: {error}", where=str(self._directory)) from error
                out[low - start : high - start] = piece
                filled += high - low
        if filled != length:
            raise StorageError(
                f"the checkpoint holds {filled} of {length} elements of {name}", where=str(self._directory), fix="use another checkpoint"
            )
        return out
