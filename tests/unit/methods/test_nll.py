"""The nll objective: counts and sums equal torch's cross-entropy over the learned tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from luthier.methods.api import Batch, TokenLogprobs
from luthier.methods.objectives.nll import Nll
from luthier.methods.objectives.spec import NllParams


class OneNetwork:
    """`Models` over one network, with whole logits."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def logprobs(self, batch: Batch, *, role: str = "policy", entropy: bool = False) -> TokenLogprobs:
        logits = self.net(input_ids=batch.input_ids).logits[:, :-1]
        learned = batch.learned()[:, 1:]
        picked = logits.log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        rows: Any = learned.nonzero()[:, 0]
        return TokenLogprobs(picked[learned], rows, rows)

    def network(self, role: str = "policy") -> nn.Module:
        return self.net


def test_counts_and_sum_equal_cross_entropy(net: LlamaForCausalLM) -> None:
    """With prompts masked and padding, the term is torch's summed cross-entropy and its count the number of summands."""
    ids = torch.arange(24).reshape(2, 12)
    segments = torch.ones(2, 12, dtype=torch.int32)
    segments[1, 8:] = 0
    labels = ids.clone()
    labels[0, :5] = -100
    labels[1, 8:] = -100  # row 1 learns from its first token, which has no predecessor
    batch = Batch(ids, labels, torch.arange(12).repeat(2, 1), segments, {"row": torch.arange(2)})
    objective = Nll(NllParams())
    assert {"tokens": 7 + 7} == dict(objective.counts(batch))
    with torch.no_grad():
        term = objective(OneNetwork(net), batch).terms["nll"]
        logits = net(input_ids=ids).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100)
    assert torch.allclose(expected, term.sum, rtol=1e-5)
    assert ("tokens", 1.0) == (term.count, term.coefficient)


def test_packed_segments_do_not_predict_each_other() -> None:
    """The first token of a segment is not counted: its predecessor belongs to another sample."""
    ids = torch.arange(6)[None]
    batch = Batch(
        ids, ids.clone(), torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.tensor([[1, 1, 1, 2, 2, 2]]), {"row": torch.arange(2)}, packed=True
    )
    assert {"tokens": 4} == dict(Nll(NllParams()).counts(batch))
