"""FLOPs per token count what is multiplied, and weight gradients only where weights are trained."""

from __future__ import annotations

from torch import nn

from luthier.trainer_node.mfu import flops_per_token, peak_flops


class _Tiny(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.middle = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 10, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def test_an_input_embedding_costs_nothing_unless_it_is_the_head() -> None:
    """Six FLOPs per multiplied, trained parameter; a tied matrix is counted once."""
    assert 6.0 * (16 + 40) == flops_per_token(_Tiny(tied=False))
    assert 6.0 * (16 + 40) == flops_per_token(_Tiny(tied=True))


def test_frozen_weights_need_no_weight_gradient() -> None:
    """Four FLOPs for a frozen parameter, six for a trained one."""
    net = _Tiny(tied=False)
    net.head.weight.requires_grad_(False)

    assert 6.0 * 16 + 4.0 * 40 == flops_per_token(net)


def test_a_cpu_has_no_peak_in_the_table() -> None:
    """No MFU is better than an invented one."""
    assert peak_flops("cpu", "fp32") is None
