"""The batch plan: nothing lost, nothing doubled, the same for every world size."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.trainer_node.data.api import MicroBatch
from luthier.trainer_node.data.order import WINDOW, GlobalBatches, Policy, choose_policy, in_order, permutation

POLICIES: tuple[Policy, ...] = ("off", "length_grouped", "packed")
lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=200)


def plan(
    lengths: list[int] | np.ndarray, policy: Policy, *, batch: int = 8, micro: int = 3, seed: int = 0, limit: int = 32
) -> GlobalBatches:
    """A plan over rows of these lengths."""
    return GlobalBatches(
        np.asarray(lengths, dtype=np.int32), batch_size=batch, micro_batch_size=micro, max_length=limit, policy=policy, seed=seed
    )


def rows_in(micro_batches: list[MicroBatch]) -> list[int]:
    """Row numbers in order."""
    return [row for micro in micro_batches for sequence in micro.sequences for row in sequence]


@settings(deadline=None)
@given(lengths_of, st.sampled_from(POLICIES), st.integers(1, 17), st.integers(1, 17), st.integers(0, 2**62))
def test_every_epoch_holds_every_row_once(lengths: list[int], policy: Policy, batch: int, micro: int, seed: int) -> None:
    """Two epochs, any sizes: each row exactly once an epoch, full batches but the last, at most `micro` rows in a micro-batch."""
    batches = plan(lengths, policy, batch=batch, micro=micro, seed=seed)
    steps = batches.steps_per_epoch
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            micro_batches = list(batches.micro_batches(step))
            rows = rows_in(micro_batches)
            expected = batch if step < (epoch + 1) * steps - 1 else len(lengths) - batch * (steps - 1)
            assert expected == len(rows)
            assert -(-len(rows) // min(micro, batch)) == len(micro_batches)
            assert list(range(len(micro_batches))) == [m.index for m in micro_batches]
            assert all(1 <= sum(len(s) for s in m.sequences) <= min(micro, batch) for m in micro_batches)
            assert sorted(rows) == sorted(batches.rows(step).tolist())
            seen += rows
        assert list(range(len(lengths))) == sorted(seen)


@settings(deadline=None)
@given(lengths_of, st.integers(1, 17), st.integers(1, 17))
def test_packed_sequences_fit(lengths: list[int], batch: int, micro: int) -> None:
    """No sequence holds more tokens than the maximum length, and no micro-batch has more sequences than rows."""
    batches = plan(lengths, "packed", batch=batch, micro=micro)
    for step in range(batches.steps_per_epoch):
        for sequence in (s for m in batches.micro_batches(step) for s in m.sequences):
            assert sum(min(lengths[row], 32) for row in sequence) <= 32


@pytest.mark.parametrize("policy", POLICIES)
def test_a_plan_is_a_function_of_its_arguments(policy: Policy) -> None:
    """Asked in any order, by another object, the same step is the same; other seeds and epochs are others."""
    lengths = (np.arange(100) * 7) % 29 + 1
    first, second = plan(lengths, policy, seed=5), plan(lengths, policy, seed=5)
    steps = first.steps_per_epoch
    forwards = [first.micro_batches(step) for step in range(3 * steps)]
    backwards = [second.micro_batches(step) for step in reversed(range(3 * steps))][::-1]

    assert forwards == backwards
    assert forwards[:steps] != forwards[steps : 2 * steps]
    assert forwards[:steps] != [plan(lengths, policy, seed=6).micro_batches(step) for step in range(steps)]


def test_the_order_of_a_release_stays() -> None:
    """A resume by a later version draws the same rows: these numbers may never change."""
    assert [6, 5, 3, 9, 2, 7, 1, 4, 8, 0] == permutation(10, 1, 0, "order").tolist()


def test_length_grouping_wastes_little() -> None:
    """Rows of a batch are of similar length: less than half of the padding of a shuffled batch."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 500, 4096)

    def padded(policy: Policy) -> int:
        batches = plan(lengths, policy, batch=16, micro=8, limit=512)
        micro_batches = [m for step in range(batches.steps_per_epoch) for m in batches.micro_batches(step)]
        return sum(len(m.sequences) * max(int(lengths[s[0]]) for s in m.sequences) for m in micro_batches)

    real = int(lengths.sum())
    assert 2 * (padded("length_grouped") - real) < padded("off") - real


def test_length_grouped_batches_stay_shuffled() -> None:
    """Within a window the batches do not come sorted, and windows hold random rows."""
    lengths = np.arange(1, 16 * WINDOW * 4 + 1)
    batches = plan(lengths, "length_grouped", batch=16, micro=8, limit=10_000)
    means = [float(lengths[batches.rows(step)].mean()) for step in range(batches.steps_per_epoch)]
    windows = [means[start : start + WINDOW] for start in range(0, len(means), WINDOW)]

    assert all(window != sorted(window) and window != sorted(window, reverse=True) for window in windows)
    assert np.ptp([np.mean(window) for window in windows]) < 0.3 * len(lengths)


def test_packing_fills_sequences() -> None:
    """Short rows share sequences: at least four fifths of the computed positions are tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 1000)
    batches = plan(lengths, "packed", batch=32, micro=16, limit=128)
    micro_batches = [m for step in range(batches.steps_per_epoch) for m in batches.micro_batches(step)]
    computed = sum(len(m.sequences) * max(int(lengths[list(s)].sum()) for s in m.sequences) for m in micro_batches)

    assert lengths.sum() > 0.8 * computed


def test_weights_are_expected_draws_per_epoch() -> None:
    """Weight 2.5: every row twice and half of the rows once more; weight 0.25: a quarter of them, another one each epoch."""
    weights = np.repeat([2.5, 0.25], 40)
    batches = GlobalBatches(
        np.ones(80, dtype=np.int32), batch_size=8, micro_batch_size=8, max_length=8, policy="off", seed=3, weights=weights
    )
    steps = batches.steps_per_epoch
    epochs = [np.concatenate([batches.rows(step) for step in range(e * steps, (e + 1) * steps)]) for e in range(2)]
    draws = [np.bincount(epoch, minlength=80) for epoch in epochs]

    assert 110 == batches.rows_per_epoch
    for drawn in draws:
        assert ({2, 3}, {0, 1}) == (set(drawn[:40].tolist()), set(drawn[40:].tolist()))
        assert (100, 10) == (int(drawn[:40].sum()), int(drawn[40:].sum()))
    assert draws[0].tolist() != draws[1].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_million_rows_are_ordered_quickly(policy: Policy) -> None:
    """The first step of an epoch over 10^6 rows takes well under two seconds, the following ones no time."""
    lengths = np.random.default_rng(0).integers(1, 512, 1_000_000)
    started = time.perf_counter()
    batches = plan(lengths, policy, batch=64, micro=16, limit=512)
    batches.micro_batches(0)
    first = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(1, 101):
        batches.micro_batches(step)

    assert first < 2.0
    assert time.perf_counter() - started < 1.0


def test_evaluation_takes_the_first_rows_once() -> None:
    """In order of length, so that little is padded."""
    assert [MicroBatch(0, ((1,), (0,))), MicroBatch(1, ((2,),))] == in_order(np.array([5, 9, 1, 7]), 2, max_rows=3)
    assert [0, 1, 2, 3] == sorted(rows_in(in_order(np.array([5, 9, 1, 7]), 3)))


def test_auto_is_grouping_on_cpu_and_packing_on_accelerators() -> None:
    """What was measured to be faster; a method or network that cannot be packed is grouped everywhere."""
    assert ["length_grouped", "packed", "length_grouped"] == [
        choose_policy("auto", "cpu"),
        choose_policy("auto", "cuda:0"),
        choose_policy("auto", "cuda:0", packable=False),
    ]
    assert ["off", "packed"] == [choose_policy("off", "cuda"), choose_policy("packed", "cpu")]


def test_no_rows_are_no_plan() -> None:
    """An empty plan would train for ever on nothing."""
    with pytest.raises(ValueError, match="at least one row"):
        plan([], "off")
