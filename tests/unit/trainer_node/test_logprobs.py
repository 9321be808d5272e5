"""Token log-probabilities against the plain formula, in float64, values and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.methods.api import Batch
from luthier.trainer_node import logprobs as module
from luthier.trainer_node.logprobs import PhaseModels, Policy, learned_positions, place


def network(tied: bool = False) -> nn.Module:
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=53, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    net: nn.Module = LlamaForCausalLM(config)
    return net.to(torch.float64)


def padded_batch() -> Batch:
    """Three rows of 9, 5 and 7 tokens; the first two tokens of each are a prompt."""
    generator = torch.Generator().manual_seed(5)
    lengths = (9, 5, 7)
    ids = torch.randint(3, 53, (3, 9), generator=generator)
    labels, segments = ids.clone(), torch.zeros(3, 9, dtype=torch.int32)
    positions = torch.zeros(3, 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        labels[row, :2] = -100
        labels[row, length:] = -100
        ids[row, length:] = 0
        segments[row, :length] = 1
        positions[row, :length] = torch.arange(length)
    return Batch(ids, labels, positions, segments)


def reference(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of learned tokens by a full log_softmax over every position, row by row."""
    chosen, entropies = [], []
    for row in range(batch.input_ids.shape[0]):
        for segment in range(1, int(batch.segment_ids[row].max()) + 1):
            inside = batch.segment_ids[row] == segment
            ids, labels = batch.input_ids[row][inside], batch.labels[row][inside]
            log_p = torch.log_softmax(net(input_ids=ids[None]).logits[0], -1)
            for t in range(1, len(ids)):
                if labels[t] != -100:
                    chosen.append(log_p[t - 1, labels[t]])
                    entropies.append(-(log_p[t - 1].exp() * log_p[t - 1]).sum())
    return torch.stack(chosen), torch.stack(entropies)


@pytest.mark.parametrize("keep", [0, 1 << 21], ids=["recomputed", "kept"])
@pytest.mark.parametrize("chunk", [53 * 2, 1 << 23], ids=["chunks-of-2", "one-chunk"])
@pytest.mark.parametrize("tied", [False, True])
def test_values_and_gradients_match_log_softmax(keep: int, chunk: int, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities, entropies and the gradients of all parameters equal those of the full computation."""
    monkeypatch.setattr(module, "_KEEP_ELEMENTS", keep)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    net, plain, batch = network(tied), network(tied), padded_batch()
    weights = torch.linspace(0.1, 2.0, int(batch.learned().sum()), dtype=torch.float64)

    found = PhaseModels(Policy(net)).logprobs(place(batch, "cpu"), entropy=True)
    (found.logprobs * weights).sum().backward()
    expected, entropies = reference(plain, batch)
    (expected * weights).sum().backward()

    assert found.entropy is not None
    torch.testing.assert_close(found.logprobs, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.entropy, entropies, rtol=1e-10, atol=1e-12)
    for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_packed_rows_equal_separate_rows() -> None:
    """A row that holds several samples gives each the log-probabilities it has alone."""
    net, separate = network(), padded_batch()
    lengths = (9, 5, 7)
    ids = torch.cat([separate.input_ids[r, :n] for r, n in enumerate(lengths)])[None]
    labels = torch.cat([separate.labels[r, :n] for r, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    segments = torch.cat([torch.full((n,), r + 1, dtype=torch.int32) for r, n in enumerate(lengths)])[None]
    packed = Batch(ids, labels, positions, segments, packed=True)
    models = PhaseModels(Policy(net))

    one, many = models.logprobs(packed), models.logprobs(separate)

    torch.testing.assert_close(one.logprobs, many.logprobs, rtol=1e-9, atol=1e-12)
    assert torch.equal(one.segment, many.segment)
    assert torch.equal(many.row, many.segment)


def test_nothing_to_learn_still_runs_the_network() -> None:
    """A micro-batch without learned tokens gives an empty result whose sum has a gradient of zeros for every parameter."""
    net, batch = network(), padded_batch()
    empty = dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100))

    found = PhaseModels(Policy(net)).logprobs(empty)
    found.logprobs.sum().backward()

    assert (0,) == tuple(found.logprobs.shape)
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_changed_labels_are_noticed() -> None:
    """Positions found before the batch was placed are not used for labels that a method changed afterwards."""
    net, placed = network(), place(padded_batch(), "cpu")
    models = PhaseModels(Policy(net))
    before = models.logprobs(placed).logprobs.numel()

    placed.labels[0, 3] = -100
    in_place = models.logprobs(placed).logprobs.numel()
    replaced = models.logprobs(dataclasses.replace(placed, labels=torch.full_like(placed.labels, -100))).logprobs.numel()

    assert (15, 14, 0) == (before, in_place, replaced)


def test_a_wrapped_head_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is not a plain linear layer goes through its own forward, in chunks, with equal values and gradients."""
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 53 * 4)
    net, plain, batch = network(), network(), padded_batch()
    policy = Policy(net)
    policy._lean = False

    PhaseModels(policy).logprobs(batch).logprobs.sum().backward()
    reference(plain, batch)[0].sum().backward()

    for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_padding_and_segments_bound_what_is_learned() -> None:
    """The first token of a segment is never learned: it has no predecessor of its own."""
    batch = padded_batch()
    packed = dataclasses.replace(
        batch, segment_ids=torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0, 0]] * 3, dtype=torch.int32), labels=batch.input_ids.clone(), packed=True
    )

    positions = learned_positions(packed)

    learned = set(zip(positions.rows.tolist(), (positions.predictors + 1).tolist(), strict=True))
    assert all((row, 3) not in learned and (row, 0) not in learned for row in range(3))
