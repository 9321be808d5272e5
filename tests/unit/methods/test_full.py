"""The full adapter: everything is trained, and the export opens in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from luthier.errors import MethodError
from luthier.methods.adapters.full import Full
from luthier.methods.adapters.spec import FullParams

from .conftest import LiveTensors, OtherRank, logits, open_model


def test_export_opens_in_plain_transformers_with_equal_logits(net: LlamaForCausalLM, tmp_path: Path) -> None:
    """What the source hands out is what the directory holds, also when the network's own tensors are gone (as under ZeRO-3)."""
    adapter = Full(FullParams())
    live = adapter.apply(net, seed=0)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.add_(0.01)
    expected = logits(live)
    source = LiveTensors(live, adapter)
    for parameter in live.parameters():
        parameter.data = torch.empty(0)
    export = adapter.export(live, source, tmp_path / "out")
    assert export.kind == "model"
    assert torch.equal(expected, logits(open_model(tmp_path / "out")))


def test_other_ranks_take_part_and_write_nothing(net: LlamaForCausalLM, tmp_path: Path) -> None:
    """A rank that is handed no tensors leaves no file."""
    adapter = Full(FullParams())
    adapter.export(net, OtherRank(net, adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_weight_is_trained(net: LlamaForCausalLM) -> None:
    """Matrices get weight decay, vectors none, nothing is frozen, also when it was before."""
    adapter = Full(FullParams())
    net.requires_grad_(False)
    adapter.apply(net, seed=0)
    groups = {name: adapter.trainable(name, p) for name, p in net.named_parameters()}
    assert {"decay", "no_decay"} == set(groups.values())
    assert all((tag == "no_decay") == name.endswith("norm.weight") for name, tag in groups.items())
    assert all(p.requires_grad for p in net.parameters())


def test_a_lost_weight_is_refused(net: LlamaForCausalLM, tmp_path: Path) -> None:
    """An export never fills a missing weight with the network's own."""

    class Lossy(LiveTensors):
        def names(self) -> list[str]:
            return list(super().names())[1:]

    adapter = Full(FullParams())
    with pytest.raises(MethodError, match=r"lacks 1 of the network's weights, first model.embed_tokens.weight"):
        adapter.export(net, Lossy(net, adapter), tmp_path / "out")


def test_other_networks_are_refused(tmp_path: Path) -> None:
    """A bare module cannot be written as a transformers directory."""
    adapter, module = Full(FullParams()), nn.Linear(2, 2)
    with pytest.raises(MethodError, match="not a transformers model"):
        adapter.export(module, LiveTensors(module, adapter), tmp_path / "out")
