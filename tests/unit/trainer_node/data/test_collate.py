"""Micro-batches as tensors; packed rows never see each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.trainer_node.data.api import MicroBatch, VerdictReport
from luthier.trainer_node.data.collate import collate, network_inputs, packing_is_exact, padding_token


class Listed:
    """`TokenisedRows` over lists: the second half of every row is learned."""

    digest = "d"
    verdicts = VerdictReport()

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = rows

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self._rows], dtype=np.int32)

    @property
    def learned(self) -> np.ndarray:
        return np.array([len(row) - len(row) // 2 for row in self._rows], dtype=np.int32)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(self._rows[index], dtype=np.int32)
        labels = ids.copy()
        labels[: len(ids) // 2] = -100
        return ids, labels

    def prompt_and_answer(self, index: int) -> tuple[str, str]:
        return "", str(index)

    def columns(self, index: int) -> Mapping[str, float]:
        return {"task": float(index)}


ROWS = Listed([[5, 6, 7], [8, 9], [10, 11, 12, 13]])


def test_padded_rows_stand_left_with_padding_on_the_right() -> None:
    """Tokens, labels, positions and segments of a padded micro-batch."""
    batch = collate(MicroBatch(0, ((0,), (2,))), ROWS, pad_token=1)

    assert [[5, 6, 7, 1], [10, 11, 12, 13]] == batch.input_ids.tolist()
    assert [[-100, 6, 7, -100], [-100, -100, 12, 13]] == batch.labels.tolist()
    assert [[0, 1, 2, 3], [0, 1, 2, 3]] == batch.position_ids.tolist()
    assert [[1, 1, 1, 0], [1, 1, 1, 1]] == batch.segment_ids.tolist()
    assert ([0, 2], [0.0, 2.0], False) == (batch.sample["row"].tolist(), batch.sample["task"].tolist(), batch.packed)
    assert [torch.int64, torch.int64, torch.int64, torch.int32] == [
        t.dtype for t in (batch.input_ids, batch.labels, batch.position_ids, batch.segment_ids)
    ]


def test_packed_rows_are_segments_of_one_row() -> None:
    """Positions start anew in every segment; a segment's first token is never learned."""
    batch = collate(MicroBatch(0, ((0, 1), (2,))), ROWS, pad_token=1, packed=True)

    assert [[5, 6, 7, 8, 9], [10, 11, 12, 13, 1]] == batch.input_ids.tolist()
    assert [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]] == batch.position_ids.tolist()
    assert [[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]] == batch.segment_ids.tolist()
    assert [[False, True, True, False, True], [False, False, True, True, False]] == batch.learned().tolist()
    assert [[0, 0, 0, 1, 1], [2, 2, 2, 2, -1]] == batch.sample_index().tolist()
    assert [0, 1, 2] == batch.sample["row"].tolist()


def test_an_empty_micro_batch_has_nothing_to_learn() -> None:
    """One row, so that a rank without work still takes part."""
    batch = collate(MicroBatch(3), ROWS, pad_token=1)

    assert ((1, 2), 0, 0) == (tuple(batch.input_ids.shape), int(batch.learned().sum()), len(batch.sample["row"]))


def test_the_padding_token_is_what_the_tokenizer_has() -> None:
    """Padding, else end, else 0."""
    assert [7, 2, 0, 0] == [padding_token(7, 2), padding_token(None, 2), padding_token(None, None), padding_token(0, 2)]


def llama() -> LlamaForCausalLM:
    """Two layers with grouped heads."""
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    )


def mistral() -> MistralForCausalLM:
    """A sliding window of three tokens, shorter than the rows."""
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=3,
    )
    return MistralForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    """Learned absolute positions."""
    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))


@pytest.mark.parametrize("make", [llama, mistral, gpt2])
@torch.no_grad()
def test_packed_rows_have_the_logits_that_they_have_alone(make: Callable[[], torch.nn.Module]) -> None:
    """To 1e-5, for every token of every segment, in rows of several sequences with padding behind them."""
    network = make()
    network.train(False)
    generator = np.random.default_rng(0)
    rows = Listed([generator.integers(0, 64, size).tolist() for size in (5, 9, 3, 7, 12, 2)])
    batch = collate(MicroBatch(0, ((0, 1, 2), (3, 5), (4,))), rows, packed=True)
    packed = network(**network_inputs(batch)).logits
    samples = batch.sample_index()

    for number, row in enumerate(batch.sample["row"].tolist()):
        alone = collate(MicroBatch(0, ((row,),)), rows)
        expected = network(**network_inputs(alone)).logits[0]
        actual = packed[samples == number]
        assert float((expected - actual).abs().max()) < 1e-5


@torch.no_grad()
def test_padding_changes_no_logits() -> None:
    """A short row beside a long one has the logits that it has alone."""
    network = llama()
    rows = Listed([list(range(3)), list(range(20))])
    together = network(**network_inputs(collate(MicroBatch(0, ((0,), (1,))), rows, pad_token=9))).logits[0, :3]
    alone = network(**network_inputs(collate(MicroBatch(0, ((0,),)), rows))).logits[0]

    assert float((together - alone).abs().max()) < 1e-5


def test_networks_are_asked_whether_they_keep_packed_rows_apart() -> None:
    """A Llama does; one whose attention ignores positions does not. The network's mode stays."""
    network = llama().train()

    class Deaf(torch.nn.Module):
        """Forgets the position ids on the way."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            return self.inner(input_ids=input_ids)

    assert packing_is_exact(network, vocabulary_size=64)
    assert network.training
    assert not packing_is_exact(Deaf(), vocabulary_size=64)
