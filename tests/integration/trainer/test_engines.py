"""Every engine and ZeRO stage trains like one plain process, with parameters really partitioned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.zygote

STAGES = [0, 1, 2, 3]


def mostly_slow(combinations: list[tuple[Any, ...]], fast: list[tuple[Any, ...]]) -> list[Any]:
    """Parameters of which only some run in `make test`."""
    return [pytest.param(*c, marks=[] if c in fast else pytest.mark.slow) for c in combinations]


def close(one: Path, other: Path, tolerance: float) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("stage", "kind"),
    mostly_slow([(s, k) for s in STAGES for k in ("full", "lora")], [(0, "full"), (1, "full"), (2, "full"), (3, "full"), (3, "lora")]),
)
def test_two_ranks_equal_one_plain_process(ranks: Any, stage: int, kind: str) -> None:
    """Losses, gradient norms, weights and moments of ZeRO 0 to 3 on two ranks equal the plain engine's within float order."""
    plain = ranks("train_steps", 1, engine="plain", kind=kind, steps=5).checked()
    sharded = ranks("train_steps", 2, engine="deepspeed", stage=stage, kind=kind, steps=5).checked()

    one, two = plain.results[0], sharded.results[0]
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-6)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
    close(plain.directory / "gathered.safetensors", sharded.directory / "gathered.safetensors", 5e-4)
    assert two["after_close"] == pytest.approx(one["after_close"], abs=1e-2)
    assert (0.0 if stage == 3 else 1.0) == two["partitioned"]
    assert 0 == two["hooks"]
    assert sharded.results[0]["losses"] == sharded.results[1]["losses"]


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_accumulation_does_not_change_the_gradient(ranks: Any, stage: int) -> None:
    """Sixteen rows in 2 micro-batches of 8 and in 16 of 1 give the same losses and norms."""
    coarse = ranks("train_steps", 2, engine="deepspeed", stage=stage, steps=2, micro_batch_size=8).checked()
    fine = ranks("train_steps", 2, engine="deepspeed", stage=stage, steps=2, micro_batch_size=1).checked()

    assert coarse.results[0]["losses"] == pytest.approx(fine.results[0]["losses"], abs=2e-6)
    assert coarse.results[0]["norms"] == pytest.approx(fine.results[0]["norms"], rel=1e-4)


@pytest.mark.parametrize(("stage", "micro_batch_size"), mostly_slow([(s, m) for s in STAGES for m in (1, 8)], [(0, 8), (2, 8), (3, 1)]))
def test_gradient_is_normalised_by_global_counts(ranks: Any, stage: int, micro_batch_size: int) -> None:
    """The gradient of unlike rows on two ranks equals the float64 gradient of the mean over all tokens, however rows are split."""
    run = ranks(
        "train_steps",
        2,
        engine="deepspeed",
        stage=stage,
        steps=1,
        micro_batch_size=micro_batch_size,
        max_grad_norm=0,
        compare_gradient=True,
    ).checked()

    assert run.results[0]["gradient_error"] < 2e-6


def test_odd_micro_batches_are_padded(ranks: Any) -> None:
    """Three micro-batches on two ranks: the empty fourth keeps ranks in step and changes nothing."""
    plain = ranks("train_steps", 1, engine="plain", steps=2, micro_batch_size=6).checked()
    sharded = ranks("train_steps", 2, engine="deepspeed", stage=3, steps=2, micro_batch_size=6).checked()

    assert sharded.results[0]["losses"] == pytest.approx(plain.results[0]["losses"], abs=2e-6)


@pytest.mark.parametrize(("engine", "stage"), [("plain", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)])
def test_a_gradient_that_is_not_finite_changes_nothing(ranks: Any, engine: str, stage: int) -> None:
    """The poisoned step is reported as not applied; the run goes on as if the step had not been."""
    world_size = 1 if engine == "plain" else 2
    run = ranks("train_steps", world_size, engine=engine, stage=stage, steps=3, poison_step=1).checked()

    losses = run.results[0]["losses"]
    assert [True, False, True] == run.results[0]["applied"]
    assert losses[2] < losses[0]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run.directory / "state.safetensors").values())


@pytest.mark.parametrize(("stage", "kind"), mostly_slow([(s, k) for s in STAGES for k in ("full", "lora")], [(1, "full"), (3, "lora")]))
def test_fragments_resume_bit_exactly(ranks: Any, stage: int, kind: str, tmp_path: Path) -> None:
    """Fragments saved after 2 of 4 steps and loaded into a new engine give the same losses and state, bit for bit."""
    common: dict[str, Any] = {"engine": "deepspeed", "stage": stage, "kind": kind, "steps": 4}
    straight = ranks("train_steps", 2, **common, state={"save": str(tmp_path / "s"), "save_at": 2}).checked()
    resumed = ranks("train_steps", 2, **common, first_step=2, state={"load": str(tmp_path / "s")}).checked()

    assert straight.results[0]["losses"][2:] == resumed.results[0]["losses"]
    assert straight.results[0]["norms"][2:] == resumed.results[0]["norms"]
    close(straight.directory / "state.safetensors", resumed.directory / "state.safetensors", 0.0)


@pytest.mark.parametrize(
    ("source", "target"),
    mostly_slow(
        [((2, 3), (1, 0)), ((1, 0), (2, 3)), ((2, 2), (2, 3)), ((2, 1), (3, 2)), ((2, 3), (3, 3))], [((2, 3), (1, 0)), ((2, 1), (3, 2))]
    ),
)
def test_state_moves_between_world_sizes_and_stages(ranks: Any, source: tuple[int, int], target: tuple[int, int], tmp_path: Path) -> None:
    """What (ranks, stage) saved, another (ranks, stage) carries on from within float order."""

    def engine(ranks_and_stage: tuple[int, int]) -> dict[str, Any]:
        return {"engine": "plain" if ranks_and_stage == (1, 0) else "deepspeed", "stage": ranks_and_stage[1], "steps": 4}

    straight = ranks("train_steps", source[0], **engine(source), state={"save": str(tmp_path / "s"), "save_at": 2}).checked()
    moved = ranks("train_steps", target[0], **engine(target), first_step=2, state={"load": str(tmp_path / "s")}).checked()

    assert straight.results[0]["losses"][2:] == pytest.approx(moved.results[0]["losses"], abs=2e-6)


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_bf16_keeps_fp32_masters(ranks: Any, stage: int, tmp_path: Path) -> None:
    """bf16 losses stay near fp32's, and a bf16 run resumes bit for bit from its fp32 fragments."""
    exact = ranks("train_steps", 1, engine="plain", steps=4).checked()
    common: dict[str, Any] = {"engine": "deepspeed", "stage": stage, "precision": "bf16", "steps": 4}
    straight = ranks("train_steps", 2, **common, state={"save": str(tmp_path / "s"), "save_at": 2}).checked()
    resumed = ranks("train_steps", 2, **common, first_step=2, state={"load": str(tmp_path / "s")}).checked()

    assert straight.results[0]["losses"] == pytest.approx(exact.results[0]["losses"], abs=0.05)
    assert straight.results[0]["losses"][2:] == resumed.results[0]["losses"]
    close(straight.directory / "state.safetensors", resumed.directory / "state.safetensors", 0.0)
