"""Model FLOPs utilisation: what the arithmetic of a step needs, over what the device could do in that time.

FLOPs per token, a multiply and an add counted as two: 2 P for the forward pass, 2 P for the gradients of activations, and 2 P_t for the
gradients of weights, P being all parameters that multiply activations (no input embedding unless it is tied to the LM head) and P_t
those of them that are trained: frozen weights need no weight gradient. Attention scores are left out, so the figure is a lower bound
for long rows (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; MFU as in PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["flops_per_token", "peak_flops"]

# Dense peak of the tensor cores in FLOP/s by part of the device's name, from the makers' data sheets; fp32 runs as TF32 there.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200", {"bf16": 989e12, "fp32": 494e12}),
    ("H100", {"bf16": 989e12, "fp32": 494e12}),
    ("A100", {"bf16": 312e12, "fp32": 156e12}),
    ("L40S", {"bf16": 362e12, "fp32": 183e12}),
    ("L4", {"bf16": 121e12, "fp32": 60e12}),
    ("A10", {"bf16": 125e12, "fp32": 62.5e12}),
)


def flops_per_token(net: nn.Module) -> float:
    """FLOPs of one training token through `net`; works on whole and on sharded (ZeRO-3) parameters."""
    embeddings = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    heads = {id(module.weight) for module in net.modules() if isinstance(module, nn.Linear)}
    total = trained = 0
    for parameter in net.parameters():
        if id(parameter) in embeddings and id(parameter) not in heads:
            continue
        count = _count(parameter)
        total += count
        trained += count * parameter.requires_grad
    return 4.0 * total + 2.0 * trained


def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of `device` ("cuda:0") in "bf16" or "fp32"; None for CPUs and devices that are not in the table."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for part, peaks in _PEAKS if part in name), None)


def _count(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())
