"""The engine for one process: PyTorch only, nothing sharded, nothing imported from DeepSpeed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from luthier.trainer_node.engine.api import EngineOptions, Fragment, ParameterGroup, StateSource, StepResult
from luthier.trainer_node.engine.parameters import evaluation_mode, plain_fragments, plain_load, total_norm, trained
from luthier.trainer_node.logprobs import Policy

__all__ = ["PlainEngine"]


class PlainEngine:
    """AdamW on one device. With bf16, trained weights stay in fp32 and matmuls run in bf16; frozen weights are kept in bf16."""

    def __init__(self, net: nn.Module, groups: Sequence[ParameterGroup], options: EngineOptions) -> None:
        self.options = options
        self._net = net.to(options.device)
        self._autocast = torch.bfloat16 if options.precision == "bf16" else None
        self._parameters = trained(net, groups)
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            elif self._autocast is not None:
                parameter.data = parameter.data.to(self._autocast)
        self.policy: nn.Module = Policy(net, self._autocast).train()
        self._optimizer = torch.optim.AdamW(
            [{"params": [self._parameters[n] for n in group.names], "weight_decay": group.weight_decay} for group in groups],
            lr=0.0, betas=(options.beta1, options.beta2), eps=options.epsilon, weight_decay=0.0, fused=True,
        )  # fmt: skip
        self._steps = 0

    @property
    def optimizer_steps(self) -> int:
        """Adam's step count."""
        return self._steps

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> StepResult:
        parameters = list(self._parameters.values())
        norm = total_norm(parameters)
        # Waits for the device once per step: whether the step may be applied cannot be known otherwise.
        grad_norm = float(norm)
        applied = math.isfinite(grad_norm)
        if applied:
            if self.options.max_grad_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.options.max_grad_norm, norm)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            self._steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm, applied)

    def gather(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor | None]]:
        by_name = dict(self._net.named_parameters())
        for name in names:
            yield name, by_name[name].detach().cpu()

    def fragments(self) -> list[Fragment]:
        return plain_fragments(self._parameters, self._optimizer)

    def load(self, state: StateSource) -> None:
        plain_load(self._parameters, self._optimizer, state)
        self._steps = state.optimizer_steps

    @contextlib.contextmanager
    def generation_view(self) -> Iterator[nn.Module]:
        with evaluation_mode(self._net, self._autocast, self.options.device):
            yield self._net

    def memory(self) -> dict[str, int]:
        if not self.options.device.startswith("cuda"):
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.options.device),
            "peak": torch.cuda.max_memory_allocated(self.options.device),
        }

    def close(self) -> nn.Module:
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        self._parameters = {}
        return self._net
