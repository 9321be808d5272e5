"""The lora adapter: exact start, scaling, trainable set, determinism, and an export that plain peft opens to equal logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaForCausalLM

from luthier.errors import ConfigurationError
from luthier.methods import registry
from luthier.methods.adapters.lora import Lora
from luthier.methods.adapters.spec import LoraParams

from .conftest import LiveTensors, OtherRank, evaluating, logits, open_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21, transformers 5

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
    "two-modules": {"target_modules": ("q_proj", "down_proj")},
    "dropout": {"dropout": 0.5},
}


def tuned(net: nn.Module, params: LoraParams, seed: int = 0) -> nn.Module:
    """The wrapped network with every adapter weight moved away from its start."""
    wrapped = Lora(params).apply(net, seed)
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return evaluating(wrapped)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_adapter_changes_nothing(net: LlamaForCausalLM, variant: str) -> None:
    """Before training the wrapped network computes what the base does."""
    expected = logits(net)
    wrapped = Lora(LoraParams(rank=4, **VARIANTS[variant])).apply(net, seed=0)
    assert torch.allclose(expected, logits(evaluating(wrapped)), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_opens_in_plain_peft_with_equal_logits(base: Path, net: LlamaForCausalLM, tmp_path: Path, variant: str) -> None:
    """peft opens the exported directory over the base and computes the live network's logits bit for bit."""
    adapter = Lora(LoraParams(rank=4, alpha=8.0, **VARIANTS[variant]))
    live = tuned(net, adapter.params)
    plain = logits(open_model(base))
    expected = logits(live)
    assert not torch.allclose(plain, expected, atol=1e-3)
    export = adapter.export(live, LiveTensors(live, adapter), tmp_path / "out")
    assert export.kind == "adapter"
    assert torch.equal(expected, logits(PeftModel.from_pretrained(open_model(base), tmp_path / "out")))
    assert torch.equal(expected, logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")))
    named = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(named["target_modules"]) == named["target_modules"]
    assert str(base) == named["base_model_name_or_path"]
    assert {"adapter_config.json", "adapter_model.safetensors"} == {p.name for p in (tmp_path / "out").iterdir()}


def test_other_ranks_take_part_and_write_nothing(net: LlamaForCausalLM, tmp_path: Path) -> None:
    """A rank that is handed no tensors leaves no file."""
    adapter = Lora(LoraParams(rank=2))
    live = adapter.apply(net, 0)
    adapter.export(live, OtherRank(live, adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_scale(net: LlamaForCausalLM, use_rslora: bool) -> None:
    """The update is scaled by alpha / rank, and by alpha / sqrt(rank) with rsLoRA."""
    wrapped = Lora(LoraParams(rank=16, alpha=24.0, use_rslora=use_rslora)).apply(net, 0)
    scales = {module.scaling["default"] for module in wrapped.modules() if isinstance(module, LoraLayer)}
    assert {24.0 / math.sqrt(16) if use_rslora else 24.0 / 16} == scales


def test_only_adapter_weights_are_trainable(net: LlamaForCausalLM) -> None:
    """All seven linears of every layer get A and B; nothing else has a gradient or a group; magnitudes of DoRA get no weight decay."""
    adapter = Lora(LoraParams(rank=4, use_dora=True))
    wrapped = adapter.apply(net, 0)
    groups = {name: adapter.trainable(name, p) for name, p in wrapped.named_parameters()}
    trained = {name for name, tag in groups.items() if tag is not None}
    assert trained == {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert 2 * 7 * 3 == len(trained)
    assert {"no_decay"} == {groups[n] for n in trained if "magnitude" in n}
    assert not any("lm_head" in n or "embed" in n for n in trained)


def test_start_depends_on_the_seed_alone(base: Path) -> None:
    """Two ranks with different random states draw the same A; another seed draws another; A lies within +-1/sqrt(inputs)."""

    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        wrapped = Lora(LoraParams(rank=4)).apply(open_model(base), seed)
        return {n: p.detach() for n, p in wrapped.named_parameters() if ".lora_A." in n}

    one, two, three = start(3, 1), start(3, 2), start(4, 1)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert not any(torch.equal(one[n], three[n]) for n in one)
    for name, a in one.items():
        bound = a.shape[1] ** -0.5
        assert a.abs().max() <= bound, name
        assert a.std() > bound / 3, name
    assert len({tuple(a.flatten()[:4].tolist()) for a in one.values()}) == len(one)


def test_unknown_module_is_a_clear_error(net: LlamaForCausalLM) -> None:
    """A module that the model lacks is refused with the nearest name, although another target exists."""
    with pytest.raises(ConfigurationError, match=r"'qproj'.*did you mean 'q_proj'"):
        Lora(LoraParams(target_modules=("v_proj", "qproj"))).apply(net, 0)


def test_dora_refuses_sharded_weights_at_submit() -> None:
    """DoRA reads whole base weights, so its needs leave out ZeRO-3; plain LoRA allows every stage."""
    spec = registry.find("adapter", "lora")
    assert frozenset({0, 1, 2}) == spec.needs(LoraParams(use_dora=True)).zero
    assert frozenset({0, 1, 2, 3}) == spec.needs(LoraParams()).zero
