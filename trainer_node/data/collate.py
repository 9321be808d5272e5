"""From row numbers to tensors: right padding, position and segment ids, and what the network is called with.

No attention mask is built here. Padding stands to the right of everything that is learned, so a causal network never looks at it;
position ids go on counting through the padding, which lets transformers keep its fast causal kernel. In a packed row the position
ids start again at 0 in every segment, and transformers' mask code turns each restart into a block of a block-diagonal causal mask
(sliding windows and hybrid layers included, which a ready-made 4-D mask would switch off, and measured 4 % faster than one).
`packing_is_exact` checks a network for it.

Nothing is prefetched: a micro-batch of 8 rows is put together in 0.1 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.methods.api import Batch
from luthier.trainer_node.data.api import MicroBatch, TokenisedRows

if TYPE_CHECKING:
    from torch import nn

__all__ = ["collate", "network_inputs", "packing_is_exact", "padding_token"]

IGNORED = -100


def pad_multiple(device: str) -> int:
    """Row lengths are rounded up to this: tensor cores want multiples of 8, and fewer distinct shapes fragment device memory less."""
    return 1 if device.startswith("cpu") else 64


def collate(
    micro: MicroBatch, rows: TokenisedRows, *, pad_token: int = 0, device: str = "cpu", max_length: int | None = None, packed: bool = False
) -> Batch:
    """The micro-batch as tensors on the host, rounded up to what suits `device`.

    An empty micro-batch becomes one row of nothing to learn (two tokens, no label), so that ranks stay in step. `packed` says that
    the plan may put several rows into one sequence. `max_length` caps the rounding up, not the rows.
    """
    content = [[rows.row(row) for row in sequence] for sequence in micro.sequences]
    used = [sum(len(ids) for ids, _ in segments) for segments in content] or [2]
    multiple = pad_multiple(device)
    longest = max(used)
    width = -(-longest // multiple) * multiple
    if max_length is not None and width > max_length:
        width = max(longest, max_length)

    shape = (len(used), width)
    input_ids = np.full(shape, pad_token, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.empty(shape, dtype=np.int64)
    positions[:] = np.arange(width)
    segments_of = np.zeros(shape, dtype=np.int32)
    for line, segments in enumerate(content):
        start = 0
        for number, (ids, targets) in enumerate(segments, start=1):
            end = start + len(ids)
            input_ids[line, start:end] = ids
            labels[line, start:end] = targets
            # To the end of the row: padding carries on from the last segment and never looks like a segment of its own.
            positions[line, start:] = np.arange(width - start)
            segments_of[line, start:end] = number
            start = end

    order = [row for sequence in micro.sequences for row in sequence]
    sample = {"row": torch.tensor(order, dtype=torch.int64)}
    columns = [rows.columns(row) for row in order]
    for name in columns[0] if columns else ():
        sample[name] = torch.tensor([float(values[name]) for values in columns], dtype=torch.float32)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segments_of),
        sample=sample,
        packed=packed,
    )


def network_inputs(batch: Batch) -> dict[str, torch.Tensor | bool]:
    """Keyword arguments for a transformers causal network, right for padded and for packed rows alike."""
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}


def padding_token(pad_token_id: int | None, eos_token_id: int | None) -> int:
    """The id that fills the right: the tokenizer's padding token, else its end token, else 0. It is never learned or looked at."""
    return next((token for token in (pad_token_id, eos_token_id) if token is not None), 0)


def packing_is_exact(network: nn.Module, *, vocabulary_size: int, tolerance: float = 1e-3) -> bool:
    """Whether the network keeps packed rows apart: a few tokens packed and alone must give the same logits.

    Call it before sharding. A network that ignores position ids, or carries state along the row, answers False.
    `tolerance` is relative to the largest logit (bf16 rounding stays below it only in float32 networks, so it is widened there).
    """
    parameter = next(network.parameters())
    if parameter.dtype in (torch.bfloat16, torch.float16):
        tolerance = max(tolerance, 5e-2)
    rows = [[(7 * number + 3 * token) % vocabulary_size for token in range(4 + number)] for number in range(3)]
    ids = torch.tensor([[token for row in rows for token in row]], device=parameter.device)
    positions = torch.tensor([[token for row in rows for token in range(len(row))]], device=parameter.device)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            together = network(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float()
            alone = [network(input_ids=torch.tensor([row], device=ids.device), use_cache=False).logits[0].float() for row in rows]
            apart = torch.cat(alone)
    finally:
        network.train(training)
    scale = max(float(apart.abs().max()), 1e-6)
    return bool((together - apart).abs().max() <= tolerance * scale)
