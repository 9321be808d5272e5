"""The contract holds three unlike published methods: LoRAMoE (surgery with a loss of its own), logit fusion (decoder), SPIN (loop).

These are designs on paper, typed against the contract and run as far as their plan and their arithmetic; the full methods come later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from luthier.methods.api import (
    Artifact,
    ArtifactWriter,
    Batch,
    Budget,
    Build,
    DataRef,
    Decoder,
    Emitted,
    Export,
    Generate,
    Job,
    JobData,
    Loss,
    Method,
    ModelRef,
    Models,
    Objective,
    Phase,
    Plan,
    Probe,
    Result,
    Scan,
    Surgery,
    TensorSource,
    Term,
    Train,
    current_batch,
    emit,
    emitting,
    fingerprint,
)
from luthier.methods.objectives.nll import Nll
from luthier.methods.objectives.spec import NllParams
from luthier.methods.sft.method import Sft
from luthier.methods.sft.spec import SftParams


class PaperParams(BaseModel):
    """Base of the parameters in this file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- LoRAMoE: a surgery whose layers read a column of the batch and own a loss term -----------------------------------


class LoraMoeParams(PaperParams):
    experts: int = 4
    rank: int = 2
    alpha: float = 8.0
    beta: float = 0.1
    delta: float = 0.1


class ExpertLinear(nn.Module):
    """y = W x + alpha/rank sum_e gate_e B_e A_e x; all experts in two matrices."""

    def __init__(self, base: nn.Linear, params: LoraMoeParams, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.params = base, params
        bound = base.in_features**-0.5
        rows = params.experts * params.rank
        self.moe_a = nn.Parameter((torch.rand(rows, base.in_features, generator=generator) * 2 - 1) * bound)
        self.moe_router = nn.Parameter((torch.rand(params.experts, base.in_features, generator=generator) * 2 - 1) * bound)
        self.moe_b = nn.Parameter(torch.zeros(base.out_features, rows))

    def forward(self, x_BTD: Tensor) -> Tensor:
        params = self.params
        gates_BTE = torch.softmax((x_BTD @ self.moe_router.T).float(), dim=-1)
        self._balance(gates_BTE)
        hidden = (x_BTD @ self.moe_a.T).view(*x_BTD.shape[:-1], params.experts, params.rank) * gates_BTE[..., None]
        out: Tensor = self.base(x_BTD) + params.alpha / params.rank * (hidden.flatten(-2) @ self.moe_b.T)
        return out

    def _balance(self, gates_BTE: Tensor) -> None:  # noqa: N803  # shape suffix
        """Localized balancing constraint: squared coefficient of variation of each expert's mean weight in each sample."""
        batch = current_batch()
        if batch is None or self.params.beta == 0:
            return
        index = batch.sample_index()
        real = index >= 0
        kinds = batch.sample["task_type"]
        load_NE = torch.zeros(len(kinds), self.params.experts).index_add(0, index[real], gates_BTE[real])
        load_NE = load_NE / torch.bincount(index[real], minlength=len(kinds)).clamp(min=1)[:, None]
        group_E = (torch.arange(self.params.experts) < self.params.experts // 2).float()
        matches = torch.eq(kinds[:, None], group_E[None, :])
        z = load_NE * torch.where(matches, 1 + self.params.delta, 1 - self.params.delta)
        emit("balance", z.var() / (z.mean() ** 2 + 1e-10), coefficient=self.params.beta)


class Experts:
    """Adapter `loramoe`."""

    def __init__(self, params: LoraMoeParams) -> None:
        self.params = params

    def apply(self, net: nn.Module, seed: int) -> nn.Module:
        net.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, child in list(net.named_children()):
            if isinstance(child, nn.Linear):
                setattr(net, name, ExpertLinear(child, self.params, generator))
        return net

    def trainable(self, name: str, parameter: nn.Parameter) -> str | None:
        return "decay" if name.rpartition(".")[2].startswith("moe_") else None

    def export(self, net: nn.Module, tensors: TensorSource, directory: Path) -> Export:
        for name in tensors.names():
            tensors.get(name)
        return Export(kind="adapter")


# --- dynamic logit fusion: several models, one decoder, no training ----------------------------------------------------


class FusionParams(PaperParams):
    step: float = 0.1
    largest: float = 2.0


class DynamicFusion:
    """Next-token logits L + alpha (E - S), with alpha chosen per row so that the shift in KL equals the expert's from its base."""

    def __init__(self, params: FusionParams) -> None:
        self.params = params

    def step(self, logits: Mapping[str, Tensor], state: dict[str, Any]) -> Tensor:
        large, small, expert = (logits[role].float() for role in ("policy", "small", "expert"))
        grid = torch.arange(0, self.params.largest + 1e-9, self.params.step)
        fused_ABV = large + grid[:, None, None] * (expert - small)
        forward = (kl(fused_ABV, large.expand_as(fused_ABV)) - kl(expert, small)) ** 2
        reverse = (kl(large.expand_as(fused_ABV), fused_ABV) - kl(small, expert)) ** 2
        best_B = (forward + reverse).argmin(0)
        state.setdefault("alpha", []).append(grid[best_B])
        return fused_ABV[best_B, torch.arange(large.shape[0])]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q) over the last dimension."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class Fusion:
    """Method `dynamic_logit_fusion`: the plan is one Generate phase."""

    def __init__(self, params: FusionParams) -> None:
        self.params = params

    def plan(self, job: Job) -> Plan:
        assert job.model is not None
        models = {"policy": job.model, "small": job.roles["small"], "expert": job.roles["expert"]}
        answers: Artifact = yield Generate(job.train, models, decoder=DynamicFusion(self.params))
        return Result(metrics=answers.metrics)


# --- SPIN: generate, build pairs, scan reference log-probabilities, train; repeat --------------------------------------


class SpinParams(PaperParams):
    iterations: int = 2
    beta: float = 0.1


class SpinLoss:
    """-log sigmoid of beta times the difference of log-ratios; a pair is two consecutive samples, the real one first."""

    def __init__(self, params: SpinParams) -> None:
        self.params = params

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {"pairs": len(batch.sample["row"]) // 2}

    def __call__(self, models: Models, batch: Batch) -> Loss:
        tokens = models.logprobs(batch)
        sums_N = torch.zeros(len(batch.sample["row"])).index_add(0, tokens.segment, tokens.logprobs)
        ratio_N = sums_N - batch.sample["reference"]
        h = self.params.beta * (ratio_N[0::2] - ratio_N[1::2])
        wins = (h.detach() > 0).float().sum()
        return Loss({"spin": Term(nn.functional.softplus(-h).sum(), "pairs")}, {"accuracy": Term(wins, "pairs")})


class ReferenceLogprobs:
    """Probe: summed log-probability of every row under a frozen model."""

    params = None

    def attach(self, net: nn.Module, num_rows: int) -> Callable[[], None]:
        self.sums = torch.zeros(num_rows, dtype=torch.float64)
        return lambda: None

    def update(self, models: Models, batch: Batch) -> None:
        tokens = models.logprobs(batch)
        self.sums.index_add_(0, batch.sample["row"][tokens.segment], tokens.logprobs.double())

    def state(self) -> dict[str, Tensor]:
        return {"reference": self.sums}

    def finish(self, reduced: Mapping[str, Tensor], out: ArtifactWriter) -> Mapping[str, float] | None:
        (out.path / "reference.json").write_text(json.dumps(reduced["reference"].tolist()))
        return None


def real_against_generated(out: ArtifactWriter, inputs: Mapping[str, Any], job: Job) -> Mapping[str, float]:
    """Rows with the real answer first and the generated one second."""
    raise NotImplementedError("on paper only: a Build function is identified, not run, here")


def with_columns(out: ArtifactWriter, inputs: Mapping[str, Any], job: Job) -> Mapping[str, float]:
    """The rows with the scan's numbers as a column."""
    raise NotImplementedError("on paper only: a Build function is identified, not run, here")


class Spin:
    """Method `spin`."""

    def __init__(self, params: SpinParams) -> None:
        self.params = params

    def plan(self, job: Job) -> Plan:
        assert job.model is not None
        current = job.model
        for _ in range(self.params.iterations):
            mine: Artifact = yield Generate(job.train, {"policy": current}, sampling={"temperature": 1.0})
            pairs: Artifact = yield Build("pairs", "rows", real_against_generated, {"gold": job.train, "mine": mine})
            scan: Artifact = yield Scan(ReferenceLogprobs(), DataRef(artifact=pairs), current)
            rows: Artifact = yield Build("pairs-with-reference", "rows", with_columns, {"rows": pairs, "columns": scan})
            current = yield Train(SpinLoss(self.params), DataRef(artifact=rows), current, job.adapter)
        return Result(model=current)


# --- a job and a runner on paper -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaperJob:
    """A job as a plan sees it."""

    adapter: Surgery
    objective: Objective = field(default_factory=lambda: Nll(NllParams()))
    model: ModelRef | None = field(default_factory=lambda: ModelRef("job://base", "aa"))
    roles: Mapping[str, ModelRef] = field(default_factory=lambda: {"small": ModelRef("job://small"), "expert": ModelRef("job://expert")})
    train: DataRef = field(default_factory=DataRef)
    validation: DataRef | None = None
    budget: Budget = field(default_factory=lambda: Budget(epochs=1.0))
    seed: int = 0
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    max_length: int = 64

    @property
    def data(self) -> JobData:
        raise AssertionError("only inside Build functions")

    def model_path(self, ref: ModelRef) -> Path:
        raise AssertionError("only inside Build functions")

    def artifact_path(self, artifact: Artifact) -> Path:
        raise AssertionError("only inside Build functions")


def replay(method: Method, job: Job) -> tuple[list[Phase], list[str], Result]:
    """Run the plan with made-up results that depend on the phase alone, as a runner with a full journal does."""
    phases: list[Phase] = []
    prints: list[str] = []
    plan = method.plan(job)
    answer: Any = None
    while True:
        try:
            phase = plan.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return phases, prints, result
        phases.append(phase)
        prints.append(fingerprint(phase))
        made = Artifact(phase.title, "paper", prints[-1], f"phases/{len(phases)}")
        answer = replace(phase.start, state=made) if isinstance(phase, Train) else made


def a_batch(**columns: Tensor) -> Batch:
    """Three samples in two rows; the second row is packed."""
    ids = torch.arange(12).reshape(2, 6)
    segments = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 0]], dtype=torch.int32)
    labels = torch.where(segments > 0, ids, -100)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]])
    return Batch(ids, labels, positions, segments, {"row": torch.arange(3), **columns}, packed=True)


ADAPTER: Surgery = Experts(LoraMoeParams())
METHODS: dict[str, tuple[Method, Job, list[type]]] = {
    "loramoe": (Sft(SftParams()), PaperJob(ADAPTER), [Train]),
    "fusion": (Fusion(FusionParams()), PaperJob(ADAPTER), [Generate]),
    "spin": (Spin(SpinParams()), PaperJob(ADAPTER), [Generate, Build, Scan, Build, Train] * 2),
}


@pytest.mark.parametrize("name", METHODS)
def test_plan_yields_its_phases_and_replays_to_equal_fingerprints(name: str) -> None:
    """Two replays of a plan give the expected kinds of phases, the same fingerprints and the same result."""
    method, job, kinds = METHODS[name]
    phases, prints, result = replay(method, job)
    again_phases, again_prints, again_result = replay(method, job)
    assert kinds == [type(p) for p in phases]
    assert prints == again_prints
    assert result == again_result
    assert len(phases) == len(again_phases)
    assert len(prints) == len(set(prints))


@pytest.mark.parametrize(
    ("method", "job"),
    [
        (Sft(SftParams()), PaperJob(Experts(LoraMoeParams(beta=0.2)))),
        (Fusion(FusionParams(step=0.2)), PaperJob(ADAPTER)),
        (Spin(SpinParams(beta=1.0)), PaperJob(ADAPTER)),
    ],
    ids=list(METHODS),
)
def test_a_changed_parameter_changes_a_fingerprint(method: Method, job: Job, request: pytest.FixtureRequest) -> None:
    """One changed parameter of a role makes some fingerprint of the plan another one."""
    original, original_job, _ = METHODS[request.node.callspec.id]
    assert replay(original, original_job)[1] != replay(method, job)[1]


def test_spin_chains_its_opponents() -> None:
    """Iteration k generates with, scans with and starts from what iteration k - 1 trained, never from the first model."""
    phases, _, result = replay(*METHODS["spin"][:2])
    trained = [p for p in phases if isinstance(p, Train)]
    second_generate, second_scan = [p for p in phases if isinstance(p, Generate)][1], [p for p in phases if isinstance(p, Scan)][1]
    assert trained[1].start == second_generate.models["policy"] == second_scan.model
    assert trained[0].start.state is None
    assert trained[1].start.state is not None
    assert result.model is not None
    assert result.model.state != trained[1].start.state


def test_spin_loss_starts_at_log_two() -> None:
    """With the reference equal to the policy the loss is log 2 per pair."""

    class Same:
        def logprobs(self, batch: Batch, *, role: str = "policy", entropy: bool = False) -> Any:
            index = batch.sample_index()[batch.learned()]
            return type("T", (), {"logprobs": torch.full(index.shape, -0.5), "segment": index})()

        def network(self, role: str = "policy") -> nn.Module:
            raise AssertionError

    batch = a_batch()
    batch.segment_ids[1] = torch.tensor([1, 1, 1, 1, 1, 0])
    batch.sample["row"] = torch.arange(2)
    sums = torch.tensor([-0.5 * 3, -0.5 * 4])
    batch.sample["reference"] = sums
    objective: Objective = SpinLoss(SpinParams())
    assert objective.counts(batch) == {"pairs": 1}
    assert torch.log(torch.tensor(2.0)) == objective(Same(), batch).terms["spin"].sum
    probe: Probe = ReferenceLogprobs()
    probe.attach(nn.Identity(), 2)
    probe.update(Same(), batch)
    assert sums.tolist() == probe.state()["reference"].tolist()


def test_layers_emit_one_term_per_micro_batch() -> None:
    """Emissions add up and reach their parameters; recomputation after `take` and passes without gradients add nothing."""
    net = ADAPTER.apply(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), seed=0)
    first, second = net.children()
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    batch = a_batch(task_type=torch.tensor([0.0, 1.0, 1.0]))
    with emitting(batch) as emitted:
        with torch.no_grad():
            net(x)
        net(x)
        terms = emitted.take()
        net(x)
        torch.autograd.backward([terms["balance"].coefficient * terms["balance"].sum])
    assert torch.allclose(emitted_by(first, x, batch) + emitted_by(second, first(x), batch), terms["balance"].sum)
    assert {"balance"} == set(terms)
    assert terms["balance"].count == "micro_batches"
    routers = [p.grad for n, p in net.named_parameters() if n.endswith("moe_router")]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in routers)
    assert {"decay", None} == {ADAPTER.trainable(n, p) for n, p in net.named_parameters()}
    assert current_batch() is None


def emitted_by(layer: nn.Module, x: Tensor, batch: Batch) -> Tensor:
    """What one layer emits."""
    with emitting(batch) as emitted:
        layer(x)
        return emitted.take()["balance"].sum


def test_emissions_of_one_name_agree() -> None:
    """Two layers that give one term different coefficients are refused."""
    emitted = Emitted(a_batch())
    emitted.add("balance", Term(torch.ones(()), "micro_batches", 0.1))
    with pytest.raises(ValueError, match="different"):
        emitted.add("balance", Term(torch.ones(()), "micro_batches", 0.2))


def test_fresh_experts_leave_the_network_as_it_was() -> None:
    """Before training an expert layer computes what the base layer computes."""
    base = nn.Sequential(nn.Linear(8, 8))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    expected = base(x)
    assert torch.equal(expected, ADAPTER.apply(base, seed=0)(x))


def test_fusion_solves_for_alpha() -> None:
    """With large = small alpha is 1 and the fused distribution is the expert's; with expert = small alpha is 0 and nothing changes."""
    generator = torch.Generator().manual_seed(0)
    small, expert = torch.randn(4, 16, generator=generator), torch.randn(4, 16, generator=generator)
    decoder: Decoder = DynamicFusion(FusionParams())
    state: dict[str, Any] = {}
    fused = decoder.step({"policy": small, "small": small, "expert": expert}, state)
    assert torch.allclose(expert, fused, atol=1e-5)
    assert torch.allclose(torch.ones(4), state["alpha"][0])
    assert torch.equal(expert, decoder.step({"policy": expert, "small": small, "expert": small}, state))
    assert torch.equal(torch.zeros(4), state["alpha"][1])


def test_sample_index_numbers_segments_row_by_row() -> None:
    """Samples are numbered through the rows of a packed batch; padding has -1."""
    assert [[0, 0, 0, 0, -1, -1], [1, 1, 1, 2, 2, -1]] == a_batch().sample_index().tolist()
