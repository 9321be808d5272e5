"""A tiny Llama on disk, and a tensor source over a live network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.methods.api import Surgery

Network = TypeVar("Network", bound=nn.Module)


class LiveTensors:
    """`TensorSource` over the trainable parameters of a network on one process."""

    def __init__(self, net: nn.Module, surgery: Surgery) -> None:
        self._tensors = {n: p.detach() for n, p in net.named_parameters() if surgery.trainable(n, p) is not None}

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def get(self, name: str) -> Tensor | None:
        return self._tensors[name]


class OtherRank(LiveTensors):
    """What a rank other than 0 sees."""

    def get(self, name: str) -> Tensor | None:
        return None


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A transformers directory of a two-layer Llama with random weights."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="float32",
    )
    torch.manual_seed(7)
    directory = tmp_path / "base"
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def net(base: Path) -> LlamaForCausalLM:
    """The network of `base`."""
    return open_model(base)


def open_model(directory: Path) -> LlamaForCausalLM:
    """A network from disk, in evaluation mode."""
    model = LlamaForCausalLM.from_pretrained(directory)
    return evaluating(model)


def evaluating(model: Network) -> Network:
    """The network without dropout."""
    model.train(False)
    return model


def logits(model: nn.Module) -> Tensor:
    """Logits [2, 9, 64] for fixed tokens."""
    ids = torch.arange(18).reshape(2, 9)
    with torch.no_grad():
        output: Tensor = model(input_ids=ids).logits
    return output
