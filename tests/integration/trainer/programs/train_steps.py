"""Trains a toy Llama for a few steps on fixed rows, over any number of ranks and any engine, and tells what happened.

Arguments: engine, stage, precision, kind ("full" or "lora"), steps, micro_batch_size, max_grad_norm, weight_decay,
poison_step (a step whose gradient is made infinite), state ({"save": dir} after `save_at` steps, {"load": dir} before the first).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.methods.adapters.full import Full
from luthier.methods.adapters.lora import Lora
from luthier.methods.adapters.spec import FullParams, LoraParams
from luthier.methods.api import Batch
from luthier.trainer_node.engine.api import MOMENTS, WEIGHT, EngineOptions, Key
from luthier.trainer_node.engine.parameters import parameter_groups
from luthier.trainer_node.logprobs import PhaseModels, Policy, place

ROWS, VOCABULARY = 16, 64


def rows() -> list[tuple[Tensor, Tensor]]:
    """16 rows of 6 to 40 tokens with prompts of unlike length; one has nothing to learn."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for index in range(ROWS):
        length = int(torch.randint(6, 41, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        labels = ids.clone()
        labels[: length // 3 if index != 5 else length] = -100
        found.append((ids, labels))
    return found


def batch_of(chosen: list[tuple[Tensor, Tensor]]) -> Batch:
    width = max((len(ids) for ids, _ in chosen), default=2)
    lines = max(len(chosen), 1)
    ids, labels = torch.zeros(lines, width, dtype=torch.int64), torch.full((lines, width), -100)
    segments = torch.zeros(lines, width, dtype=torch.int32)
    for line, (row, targets) in enumerate(chosen):
        ids[line, : len(row)], labels[line, : len(row)], segments[line, : len(row)] = row, targets, 1
    return Batch(ids, labels, torch.arange(width).expand(lines, width), segments)


def network(kind: str, dropout: float = 0.0) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=kind == "full",
    )  # fmt: skip
    net: nn.Module = LlamaForCausalLM(config)
    surgery: Any = Full(FullParams()) if kind == "full" else Lora(LoraParams(rank=4, alpha=8, dropout=dropout))
    return surgery.apply(net, 7), surgery


class Merged:
    """A `StateSource` over whole tensors in one file."""

    def __init__(self, path: Path) -> None:
        self.tensors = load_file(path)
        self.optimizer_steps = int(self.tensors.pop("steps"))

    def read(self, name: str, key: Key, start: int, length: int) -> Tensor:
        return self.tensors[f"{key}/{name}"][start : start + length]


def merged(engine: Any, group: Any, names: list[str], shapes: dict[str, int]) -> dict[str, Tensor]:
    """Every trained tensor and moment, put together from all ranks' fragments; NaN where a rank forgot something."""
    import torch.distributed as dist

    found: dict[str, Tensor] = {}
    mine = {fragment.name: fragment for fragment in engine.fragments()}
    for key in (WEIGHT, *MOMENTS):
        for name in names:
            total, owned = torch.zeros(shapes[name]), torch.zeros(shapes[name])
            if name in mine:
                part = slice(mine[name].start, mine[name].start + mine[name].length)
                total[part], owned[part] = mine[name].read(key).float().cpu(), 1.0
            if group.world_size > 1:
                dist.all_reduce(total)
                dist.all_reduce(owned)
            assert bool((owned == 1).all()), f"{key} of {name} is not covered exactly once"
            found[f"{key}/{name}"] = total
    return found


def reference_gradient() -> dict[str, Tensor]:
    """Gradient of sum of token losses / all learned tokens, in float64, row by row with a plain log_softmax."""
    net = network("full")[0].to(torch.float64)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, labels in rows():
        log_p = torch.log_softmax(net(input_ids=ids[None]).logits[0, :-1], -1)
        learned = labels[1:] != -100
        total = total - log_p[learned].gather(1, labels[1:][learned][:, None]).sum()
        count += int(learned.sum())
    (total / count).backward()
    return {name: p.grad.flatten() for name, p in net.named_parameters() if p.grad is not None}


def main(group: Any, arguments: dict[str, Any], directory: Path) -> dict[str, Any]:
    options = EngineOptions(
        stage=arguments.get("stage", 0), precision=arguments.get("precision", "fp32"),
        max_grad_norm=arguments.get("max_grad_norm", 0.5), beta1=0.9, beta2=0.95, epsilon=1e-8, device="cpu",
        persistence_threshold=arguments.get("persistence_threshold", 0),
    )  # fmt: skip
    if arguments["engine"] == "plain":
        from luthier.trainer_node.engine.plain import PlainEngine as Engine
    else:
        from luthier.trainer_node.engine.deepspeed import DeepSpeedEngine as Engine  # type: ignore[assignment]
    net, surgery = network(arguments.get("kind", "full"))
    shapes = {name: p.numel() for name, p in net.named_parameters()}
    groups = parameter_groups(net, surgery, arguments.get("weight_decay", 0.01))
    names = [name for g in groups for name in g.names]
    engine = Engine(net, groups, options)
    state = arguments.get("state", {})
    if "load" in state:
        engine.load(Merged(Path(state["load"])))
    partitioned = 1.0
    if options.stage == 3:
        partitioned = sum(p.numel() for p in net.parameters()) / sum(vars(p)["ds_numel"] for p in net.parameters())
    models = PhaseModels(engine.policy)
    data, size = rows(), arguments.get("micro_batch_size", 4)
    micros = [data[i : i + size] for i in range(0, ROWS, size)]
    per_rank = -(-len(micros) // group.world_size)
    losses, norms, applied = [], [], []
    for step in range(arguments.get("first_step", 0), arguments["steps"]):
        mine = [micros[i] if i < len(micros) else [] for i in range(group.rank, per_rank * group.world_size, group.world_size)]
        batches = [place(batch_of(chosen), "cpu") for chosen in mine]
        count = group.sum_ints([sum(int(b.learned().sum()) for b in batches)])[0]
        total = 0.0
        for batch in batches:
            loss = -models.logprobs(batch).logprobs.sum() / count
            if step == arguments.get("poison_step"):
                loss = loss * float("inf")
            engine.backward(loss)
            total += float(loss.detach())
        result = engine.step(1e-2 * (0.9**step))
        losses.append(group.sum_floats([total])[0])
        norms.append(result.grad_norm)
        applied.append(result.applied)
        if "save" in state and step + 1 == state["save_at"]:
            whole = merged(engine, group, names, shapes)
            if group.rank == 0:
                save_file({**whole, "steps": torch.tensor(engine.optimizer_steps)}, state["save"])
    whole = merged(engine, group, names, shapes)
    gathered = dict(engine.gather(names))
    if group.rank == 0:
        save_file(whole, directory / "state.safetensors")
        save_file({n: t.contiguous() for n, t in gathered.items() if t is not None}, directory / "gathered.safetensors")
    with engine.generation_view() as view:
        ids = torch.arange(3, 3 + 4 + group.rank)[None]  # unlike lengths on purpose
        generated = view(input_ids=ids).logits[0, -1].argmax().item()
    ordinary = engine.close()
    sizes = {name: p.numel() for name, p in ordinary.named_parameters()}
    assert sizes == shapes, "closing gives the whole network back"
    check = -PhaseModels(Policy(ordinary)).logprobs(batch_of(data[:2])).logprobs.sum()
    error = 0.0
    if arguments.get("compare_gradient"):  # after one step, unclipped, the first moment is a tenth of the gradient
        ours = torch.cat([whole[f"exp_avg/{name}"] / 0.1 for name in names]).double()
        theirs = torch.cat([reference_gradient()[name] for name in names])
        error = float((ours - theirs).norm() / theirs.norm())
    return {
        "gradient_error": error,
        "losses": losses,
        "norms": norms,
        "applied": applied,
        "partitioned": partitioned,
        "generated": generated,
        "after_close": float(check.detach()),
        "hooks": sum(len(m._forward_hooks) for m in ordinary.modules()),
    }
