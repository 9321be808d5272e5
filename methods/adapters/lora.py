"""LoRA, with DoRA and rsLoRA by flag, through peft.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685.
DoRA: Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024, https://arxiv.org/abs/2402.09353.
rsLoRA: Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, https://arxiv.org/abs/2312.03732.

    y = W x + s B A dropout(x)        s = alpha / rank, or alpha / sqrt(rank) with rsLoRA
    y = m / |W + s B A| (W + s B A) x   with DoRA: m starts as the row norms of W, |.| is taken as a constant in the gradient

A [rank, inputs] starts uniform in +-1/sqrt(inputs), B [outputs, rank] at zero, so the tuned network starts as the base. A is drawn
per matrix from a generator of its own, so that the start depends on the seed and the matrix's name only, not on the device, the
number of ranks or the order of construction.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import math
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ConfigurationError, MethodError
from luthier.methods.adapters.spec import LoraParams
from luthier.methods.api import Export, TensorSource

__all__ = ["Lora"]


class Lora:
    """Low-rank adapters beside frozen linear layers."""

    def __init__(self, params: LoraParams) -> None:
        self.params = params

    def apply(self, net: nn.Module, seed: int) -> nn.Module:
        """Wrap `net` with peft and freeze the rest. Raises `ConfigurationError` when a target module does not exist."""
        if not isinstance(net, PreTrainedModel):
            raise MethodError(f"LoRA needs a transformers model, not {type(net).__name__}")
        targets = self.params.target_modules
        if not isinstance(targets, str):
            _check_targets(net, targets)
        with warnings.catch_warnings():
            # peft 0.21 reads an attribute that transformers 5 has renamed; nothing that a user could act on.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
            wrapped = get_peft_model(net, self.config())
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if ".lora_A." in name:
                    parameter.copy_(_uniform(seed, name, parameter.shape).to(parameter.device, parameter.dtype))
        return wrapped

    def config(self) -> LoraConfig:
        """The parameters in peft's words."""
        params = self.params
        return LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,  # type: ignore[arg-type]  # peft only divides by it; its annotation is too narrow
            lora_dropout=params.dropout,
            target_modules=params.target_modules if isinstance(params.target_modules, str) else list(params.target_modules),
            use_dora=params.use_dora,
            use_rslora=params.use_rslora,
            bias=params.bias,
            task_type="CAUSAL_LM",
        )

    def trainable(self, name: str, parameter: nn.Parameter) -> str | None:
        """ "decay" for A and B, "no_decay" for DoRA's magnitudes, None for the base."""
        if ".lora_magnitude_vector." in name:
            return "no_decay"
        return "decay" if ".lora_" in name else None

    def export(self, net: nn.Module, tensors: TensorSource, directory: Path) -> Export:
        """Write a peft adapter directory; it names the directory that the base was loaded from."""
        if not isinstance(net, PeftModel):
            raise MethodError(f"LoRA exports a network that it wrapped, not {type(net).__name__}")
        gathered = [(name, tensors.get(name)) for name in tensors.names()]
        weights = {name: tensor.contiguous() for name, tensor in gathered if tensor is not None}
        if weights:  # rank 0
            directory.mkdir(parents=True, exist_ok=True)
            adapter = get_peft_model_state_dict(net, state_dict=weights, save_embedding_layers=False)
            save_file(adapter, directory / "adapter_model.safetensors", metadata={"format": "pt"})
            config = copy.deepcopy(net.peft_config["default"])
            config.inference_mode = True
            if isinstance(config, LoraConfig) and isinstance(config.target_modules, set):
                config.target_modules = sorted(config.target_modules)  # equal results have equal files
            config.save_pretrained(str(directory))
        return Export(kind="adapter")


def _uniform(seed: int, name: str, shape: torch.Size) -> torch.Tensor:
    """Uniform in +-1/sqrt(inputs), float32 [rank, inputs], a function of seed and name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    fan_in = shape[1:].numel()
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


def _check_targets(net: nn.Module, targets: tuple[str, ...]) -> None:
    adaptable = sorted({name.rpartition(".")[2] for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))})
    names = [name for name, _ in net.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            near = difflib.get_close_matches(target, adaptable, 1)
            raise ConfigurationError(
                f"adapter.params.target_modules names {target!r}, which the model does not have",
                fix=f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(adaptable)}, or write all-linear",
            )
