"""Which parameters are trained, in which groups, and what plain torch optimisers hold of them; shared by the engines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from luthier.errors import MethodError
from luthier.methods.api import Surgery
from luthier.trainer_node.engine.api import MOMENTS, WEIGHT, Fragment, Key, ParameterGroup, StateSource

__all__ = ["evaluation_mode", "parameter_groups", "plain_fragments", "plain_load", "total_norm", "trained"]

NO_DECAY = "no_decay"
"""Tag of parameters that get no weight decay."""


def parameter_groups(net: nn.Module, surgery: Surgery, weight_decay: float) -> list[ParameterGroup]:
    """Ask the surgery for every parameter's group, and freeze what has none. Parameters tagged "no_decay" get no weight decay.

    Groups keep the network's order, so that they are the same on every rank. Raises `MethodError` when nothing is trainable.
    """
    tags: dict[str, list[str]] = {}
    for name, parameter in net.named_parameters():
        tag = surgery.trainable(name, parameter)
        parameter.requires_grad_(tag is not None)
        if tag is not None:
            tags.setdefault(tag, []).append(name)
    if not tags:
        raise MethodError(
            f"{type(surgery).__name__} leaves nothing to train", where="adapter", fix="check the adapter's target modules against the model"
        )
    if weight_decay == 0:  # one group: fewer, larger partitions
        return [ParameterGroup("all", tuple(n for n, p in net.named_parameters() if p.requires_grad), 0.0)]
    return [ParameterGroup(tag, tuple(names), 0.0 if tag == NO_DECAY else weight_decay) for tag, names in tags.items()]


def trained(net: nn.Module, groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """Trained parameters by name, in the order of the groups."""
    by_name = dict(net.named_parameters())
    return {name: by_name[name] for group in groups for name in group.names}


def plain_fragments(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Fragment]:
    """Whole tensors of an unsharded network and its Adam moments (zeros before the first step)."""

    def reader(parameter: nn.Parameter) -> Fragment:
        def read(key: Key) -> Tensor:
            if key == WEIGHT:
                return parameter.detach().float().reshape(-1)
            state = optimizer.state.get(parameter)
            return state[key].detach().reshape(-1) if state else torch.zeros(parameter.numel(), device=parameter.device)

        return Fragment(names[parameter], 0, parameter.numel(), tuple(parameter.shape), read)

    names = {parameter: name for name, parameter in parameters.items()}
    return [reader(parameter) for parameter in parameters.values()]


def plain_load(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: StateSource) -> None:
    """Set weights, moments and step count of an unsharded network."""
    fused = bool(optimizer.defaults.get("fused"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            count = parameter.numel()

            def full(key: Key, name: str = name, parameter: nn.Parameter = parameter, count: int = count) -> Tensor:
                return state.read(name, key, 0, count).reshape(parameter.shape)

            parameter.copy_(full(WEIGHT))
            if state.optimizer_steps:
                optimizer.state[parameter] = {
                    # A fused optimiser keeps its step count beside the weights, a plain one on the host.
                    "step": torch.tensor(float(state.optimizer_steps), device=parameter.device if fused else "cpu"),
                    **{key: torch.empty_like(parameter).copy_(full(key)) for key in MOMENTS},
                }
            else:
                optimizer.state.pop(parameter, None)


def total_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, float32 scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@contextlib.contextmanager
def evaluation_mode(net: nn.Module, autocast: torch.dtype | None, device: str) -> Iterator[None]:
    """Evaluation mode, no gradients, the number format of training; everything is put back, the random numbers too."""
    kind = torch.device(device).type
    training = {module: module.training for module in net.modules()}
    cuda = [torch.device(device)] if kind == "cuda" else []
    net.eval()
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
