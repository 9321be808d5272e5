"""ZeRO 0 to 3 through DeepSpeed.

Every numerically relevant setting is explicit, because defaults have moved between releases. Gradient accumulation is unmanaged: any
number of `backward` calls, one `step`. DeepSpeed averages gradients over ranks, so losses (already divided by global counts) are
multiplied by the number of ranks. Checkpoints never go through DeepSpeed: `fragments` and `load` read and write the shards in place.

DeepSpeed leaves things behind when an engine goes away (hooks on the root module, views into flat buffers, a class-level cache that
holds the model); `close` removes them, so that phases can build engines one after another in one process.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
from torch import Tensor, nn

from luthier.trainer_node.engine.api import MOMENTS, WEIGHT, EngineOptions, Fragment, Key, ParameterGroup, StateSource, StepResult
from luthier.trainer_node.engine.parameters import evaluation_mode, plain_fragments, plain_load, total_norm, trained
from luthier.trainer_node.logprobs import Policy

__all__ = ["DeepSpeedEngine", "deepspeed_config"]

_BUCKET_ELEMENTS = 50_000_000
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip

_ZERO3_ATTRIBUTES = ("_external_params", "_original_parameters")


def deepspeed_config(options: EngineOptions) -> dict[str, Any]:
    """DeepSpeed's configuration with every numerically relevant key written out."""
    sharded_bf16 = options.precision == "bf16" and options.stage > 0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        # At stage 0 the norm is needed before the update, which DeepSpeed does not tell in fp32: the engine clips by itself there.
        "gradient_clipping": options.max_grad_norm if options.stage > 0 else 0.0,
        "zero_allow_untested_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 0.0,
                "betas": [options.beta1, options.beta2],
                "eps": options.epsilon,
                "weight_decay": 0.0,
                # torch's AdamW: DeepSpeed's own ones are C++ extensions, and none is built at job start.
                "torch_adam": True,
            },
        },
        "fp16": {"enabled": False},
        "bf16": {"enabled": sharded_bf16, "check_grad_overflow": True},
        "zero_optimization": {
            "stage": options.stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            "round_robin_gradients": False,
            "compute_grad_norm": True,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": _BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": options.persistence_threshold,
        },
    }
    if sharded_bf16 and options.stage > 1:
        # Stage 1 would switch to another optimiser class with fp32 accumulation, so it accumulates in bf16.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class DeepSpeedEngine:
    """A network under ZeRO. Stages 1 to 3 keep bf16 weights with fp32 masters; stage 0 keeps fp32 weights and computes in bf16."""

    def __init__(self, net: nn.Module, groups: Sequence[ParameterGroup], options: EngineOptions) -> None:
        self.options = options
        self._net = net
        self._autocast = torch.bfloat16 if options.precision == "bf16" and options.stage == 0 else None
        self._parameters = trained(net, groups)
        if options.stage == 0 or options.precision == "fp32":
            for parameter in net.parameters():
                if not hasattr(parameter, "ds_id"):
                    parameter.data = parameter.data.float()
        _join_deepspeed(options.device)
        policy = Policy(net, self._autocast).train()
        self._engine: Any = deepspeed.initialize(
            model=policy,
            model_parameters=[
                {"params": [self._parameters[n] for n in group.names], "weight_decay": group.weight_decay} for group in groups
            ],
            config=deepspeed_config(options),
            dist_init_required=False,
        )[0]
        self._world_size = dist.get_world_size()
        self._rank = dist.get_rank()
        self._steps = 0
        self._norm: Tensor | None = None
        if options.stage == 0:
            self._adam: torch.optim.Optimizer = self._engine.optimizer
            self._hook = self._adam.register_step_pre_hook(self._clip)
        else:
            self._adam = self._engine.optimizer.optimizer

    @property
    def policy(self) -> nn.Module:
        engine: nn.Module = self._engine
        return engine

    @property
    def optimizer_steps(self) -> int:
        """Adam's step count."""
        return self._steps

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepResult:
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._norm if self.options.stage == 0 else self._engine.get_global_grad_norm()
        grad_norm = float(norm) if norm is not None else 0.0
        # An invalid norm comes back as infinity (or as -1 from a helper); DeepSpeed has left the weights alone then.
        applied = math.isfinite(grad_norm) and grad_norm >= 0
        self._steps += applied
        return StepResult(grad_norm if applied else math.inf, applied)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Runs inside DeepSpeed's step at stage 0, after the reduction and before the update."""
        parameters = list(self._parameters.values())
        self._norm = total_norm(parameters)
        if not bool(torch.isfinite(self._norm)):
            for parameter in parameters:
                parameter.grad = None  # the optimiser skips parameters without gradient
        elif self.options.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.options.max_grad_norm, self._norm)

    # --- tensors ----------------------------------------------------------------------------------------------------

    def gather(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor | None]]:
        by_name = dict(self._net.named_parameters())
        for name in names:
            parameter = by_name[name]
            master = self._gather_master(parameter) if parameter.requires_grad else None
            if master is not None:
                yield name, master.cpu() if self._rank == 0 else None
            elif self.options.stage == 3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.detach().cpu().clone() if self._rank == 0 else None
            else:
                yield name, parameter.detach().cpu() if self._rank == 0 else None

    def _gather_master(self, parameter: nn.Parameter) -> Tensor | None:
        """The full fp32 master weight, or None where the weight itself is fp32."""
        if self.options.precision == "fp32" or self.options.stage == 0:
            return None
        full = torch.zeros(_numel(parameter), dtype=torch.float32, device=self.options.device)
        fragment = self._fragment("", parameter)
        if fragment.length:
            full[fragment.start : fragment.start + fragment.length] = fragment.read(WEIGHT)
        dist.all_reduce(full)  # fragments of different ranks do not overlap
        return full.reshape(_shape(parameter))

    def fragments(self) -> list[Fragment]:
        if self.options.stage == 0:
            return plain_fragments(self._parameters, self._adam) if self._rank == 0 else []
        found = (self._fragment(name, parameter) for name, parameter in self._parameters.items())
        return [fragment for fragment in found if fragment.length]

    def _fragment(self, name: str, parameter: Any) -> Fragment:
        shape = _shape(parameter)
        if self.options.stage < 3:
            mapping = parameter._hp_mapping  # None: this rank owns nothing of it
            if mapping is None:
                return Fragment(name, 0, 0, shape, lambda key: torch.empty(0))
            address, master = mapping.lp_fragment_address, mapping.get_hp_fragment_address()

            def read(key: Key) -> Tensor:
                if key == WEIGHT:
                    flat: Tensor = mapping.get_hp_fragment()
                    return flat.detach().reshape(-1)
                moments = self._flat_moments(parameter, key)
                return moments.narrow(0, master.start, master.numel)

            return Fragment(name, address.start, address.numel, shape, read)
        share = parameter.ds_tensor.ds_numel
        start = share * self._rank
        length = max(0, min(parameter.ds_numel - start, share))  # the last share is padded

        def read_shard(key: Key) -> Tensor:
            if key == WEIGHT:
                flat: Tensor = safe_get_local_fp32_param(parameter)
            elif not self._adam.state:
                return torch.zeros(length, device=self.options.device)
            else:
                flat = safe_get_local_optimizer_state(parameter, key)
            return flat.detach().reshape(-1)[:length]

        return Fragment(name, start, length, shape, read_shard)

    def _flat_moments(self, parameter: nn.Parameter, key: Key) -> Tensor:
        """The flat partition that holds a parameter's moments at stages 1 and 2 (zeros before the first step).

        DeepSpeed links moments to parameters for the first group only, so they are read where the optimiser keeps them.
        """
        zero = self._engine.optimizer
        for index, group in enumerate(zero.bit16_groups):
            if any(member is parameter for member in group):
                partition = zero.single_partition_of_fp32_groups[index]
                state = self._adam.state.get(partition)
                moments: Tensor = state[key] if state else torch.zeros_like(partition)
                return moments.detach()
        raise AssertionError("a trained parameter is in one of the groups")

    def load(self, state: StateSource) -> None:
        if self.options.stage == 0:
            plain_load(self._parameters, self._adam, state)
        elif self.options.stage < 3:
            self._load_partitions(state)
        else:
            self._load_shards(state)
        self._steps = state.optimizer_steps

    def _make_moments(self, partitions: Sequence[Tensor], steps: int) -> None:
        for partition in partitions:
            if steps:
                self._adam.state[partition] = {
                    "step": torch.tensor(float(steps)),
                    **{key: torch.zeros_like(partition, requires_grad=False) for key in MOMENTS},
                }
            else:
                self._adam.state.pop(partition, None)

    @torch.no_grad()
    def _load_partitions(self, state: StateSource) -> None:
        self._make_moments(self._engine.optimizer.single_partition_of_fp32_groups, state.optimizer_steps)
        for name, parameter in self._parameters.items():
            # Every rank holds the whole weight for the forward pass, and masters and moments of its own fragment.
            parameter.copy_(state.read(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape))
            fragment = self._fragment(name, parameter)
            for key in (WEIGHT, *(MOMENTS if state.optimizer_steps else ())):
                if fragment.length:
                    fragment.read(key).copy_(state.read(name, key, fragment.start, fragment.length))

    @torch.no_grad()
    def _load_shards(self, state: StateSource) -> None:
        self._make_moments(self._engine.optimizer.fp32_partitioned_groups_flat, state.optimizer_steps)
        for name, parameter in self._parameters.items():
            fragment = self._fragment(name, parameter)
            shard: Any = parameter
            weights = state.read(name, WEIGHT, fragment.start, fragment.length)
            shard.ds_tensor.reshape(-1)[: fragment.length].copy_(weights)
            for key in (WEIGHT, *(MOMENTS if state.optimizer_steps else ())):
                if fragment.length:
                    fragment.read(key).copy_(weights if key == WEIGHT else state.read(name, key, fragment.start, fragment.length))
            if parameter.numel() == shard.ds_numel:  # small parameters stay whole on every rank
                parameter.copy_(state.read(name, WEIGHT, 0, shard.ds_numel).reshape(parameter.shape))

    # --- the whole network, and the end -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def generation_view(self) -> Iterator[nn.Module]:
        with evaluation_mode(self._net, self._autocast, self.options.device):
            if self.options.stage < 3:
                yield self._net
                return
            # With the hooks out no forward fetches or releases anything: ranks may generate different lengths.
            with deepspeed.zero.GatheredParameters(list(self._net.parameters())):
                modules = list(self._net.modules())
                hooks = [{name: getattr(module, name).copy() for name in _HOOKS} for module in modules]
                try:
                    for module in modules:
                        for name in _HOOKS:
                            getattr(module, name).clear()
                    yield self._net
                finally:
                    for module, saved in zip(modules, hooks, strict=True):
                        for name in _HOOKS:
                            getattr(module, name).update(saved[name])

    def memory(self) -> dict[str, int]:
        if not self.options.device.startswith("cuda"):
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.options.device),
            "peak": torch.cuda.max_memory_allocated(self.options.device),
        }

    def close(self) -> nn.Module:
        engine, net, stage = self._engine, self._net, self.options.stage
        if stage == 0:
            self._hook.remove()
        full: dict[nn.Parameter, Tensor] = {}
        if stage == 3:
            for parameter in net.parameters():
                with deepspeed.zero.GatheredParameters([parameter]):
                    full[parameter] = parameter.detach().clone()
        engine.destroy()
        for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
            hook.remove()
        if stage == 3:
            _make_ordinary(engine.module, full)
        else:
            for parameter in net.parameters():
                parameter.grad = None
                parameter.data = parameter.data.clone()  # it is a view of a flat buffer
                vars(parameter).clear()
        _clear_release_cache()
        engine.optimizer = None
        self._engine = self._adam = None  # type: ignore[assignment]
        self._parameters = {}
        del engine, full
        gc.collect()
        return net


def _join_deepspeed(device: str) -> None:
    """Let DeepSpeed use the process group that exists; a single rank gets a group of one."""
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", None) or parameter.shape)


def _make_ordinary(root: nn.Module, full: dict[nn.Parameter, Tensor]) -> None:
    """Replace every sharded parameter by an ordinary one (ties are kept) and DeepSpeed's parameter dictionaries by plain ones."""
    fresh = {old: nn.Parameter(value, requires_grad=old.requires_grad) for old, value in full.items()}
    for module in root.modules():
        module._parameters = {name: None if old is None else fresh[old] for name, old in module._parameters.items()}
        for name in [n for n in vars(module) if n.startswith("ds_") or n in _ZERO3_ATTRIBUTES]:
            delattr(module, name)


def _clear_release_cache() -> None:
    """Forget DeepSpeed's class-level cache of what to release when: its keys keep coordinator and model alive."""
    for name, attribute in vars(PartitionedParameterCoordinator).items():
        if not name.endswith("__params_to_release"):
            continue
        pending = [attribute]
        while pending:
            candidate = pending.pop()
            if hasattr(candidate, "cache_clear"):
                candidate.cache_clear()
            pending += [cell.cell_contents for cell in getattr(candidate, "__closure__", None) or () if callable(cell.cell_contents)]
