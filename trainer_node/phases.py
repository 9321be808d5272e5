"""Executes one phase of a plan: Train, Evaluate or Build. Keeps what the next phase can use again.

A Train phase leaves its engine running, so that an Evaluate of its model, and the export, need no rebuild. Its durable result is the
trained tensors in fp32 by parameter name (an artifact of kind "state"); a model is then (base directory, surgery, state).
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from luthier.errors import ConfigurationError, DataError, MethodError, StorageError
from luthier.methods.api import Artifact, Build, Evaluate, ModelRef, Surgery, Train
from luthier.trainer_node.alone import rank_zero_alone
from luthier.trainer_node.artifacts import Artifacts, artifact_from_json, artifact_to_json
from luthier.trainer_node.checkpoint import Checkpoints, Resumed, candidate_message, kept_from, open_newest
from luthier.trainer_node.context import LeaveRequested, RankContext
from luthier.trainer_node.control import Control
from luthier.trainer_node.data.collate import packing_is_exact, padding_token
from luthier.trainer_node.data.order import GlobalBatches, choose_policy
from luthier.trainer_node.data.rows import Rows
from luthier.trainer_node.engine.api import Engine, ParameterGroup
from luthier.trainer_node.engine.deepspeed import DeepSpeedEngine, deepspeed_config
from luthier.trainer_node.engine.parameters import evaluation_mode, parameter_groups
from luthier.trainer_node.engine.plain import PlainEngine
from luthier.trainer_node.environment import installed_versions
from luthier.trainer_node.evaluate import answer_rows, exact_match, held_out_loss, samples_json
from luthier.trainer_node.fragments import write_tensors
from luthier.trainer_node.jobview import JobView
from luthier.trainer_node.logprobs import PhaseModels, Policy, causal_lm
from luthier.trainer_node.loop import LoopState, Training, train
from luthier.trainer_node.mfu import flops_per_token, peak_flops
from luthier.trainer_node.network import base_digest, check_model, load_network, weight_files
from luthier.trainer_node.planner import RunPlan, plan_run
from luthier.trainer_node.rowsource import RowSource
from luthier.trainer_node.schedule import Schedule

__all__ = ["Live", "PhaseRunner"]

_STATE_FILE = "trained.safetensors"
_SAMPLES_IN_REPORT = 8


@dataclass
class Live:
    """The engine of the newest Train phase, and what it holds."""

    ref: ModelRef | None
    """The model it holds; None while the phase runs."""
    engine: Engine
    net: nn.Module
    surgery: Surgery
    groups: list[ParameterGroup]
    plan: RunPlan

    @property
    def names(self) -> list[str]:
        """Trained parameters."""
        return [name for group in self.groups for name in group.names]


class PhaseRunner:
    """Runs phases one after another for one plan."""

    def __init__(self, context: RankContext, job: JobView, artifacts: Artifacts, control: Control) -> None:
        self.context = context
        self.job = job
        self.artifacts = artifacts
        self.control = control
        self.rows = RowSource(context, context.launch.node.inputs, artifacts)
        self.live: Live | None = None
        self.train_metrics: dict[str, float] = {}
        self.plan_steps = 0
        """Optimiser steps of all Train phases so far."""
        self._surgeries: dict[str, Surgery] = {}
        self._base: tuple[Path, torch.dtype, nn.Module] | None = None
        self._told_start = False

    # --- models -----------------------------------------------------------------------------------------------------

    def remember(self, result: ModelRef, surgery: Surgery) -> None:
        """Which surgery a trained model needs; also told for phases that are replayed."""
        if result.state is not None:
            self._surgeries[result.state.digest] = surgery

    def _network(self, directory: Path, dtype: torch.dtype, plan: RunPlan | None = None) -> nn.Module:
        """A fresh network of a directory; one that an evaluation left untouched is handed out instead of read again.

        With the `plan` of a Train phase a large model comes sharded over the ranks.
        """
        kept, self._base = self._base, None
        if plan is not None and plan.sharded_load(sum(path.stat().st_size for path in weight_files(directory))):
            return load_network(directory, dtype=dtype, zero3=deepspeed_config(plan.options))
        if kept is not None and kept[:2] == (directory, dtype):
            return kept[2]
        return load_network(directory, dtype=dtype)

    def network_of(self, ref: ModelRef, dtype: torch.dtype) -> tuple[nn.Module, Surgery | None]:
        """The network of a model reference, ordinary parameters, with what training added to it."""
        net = self._network(self.job.model_path(ref), dtype)
        if ref.state is None:
            return net, None
        surgery = self._surgeries.get(ref.state.digest)
        if surgery is None:
            raise MethodError("the model's state was not made by a Train phase of this plan", where=ref.state.path)
        net = surgery.apply(net, self.job.seed)
        self._load_state(net, ref.state)
        return net, surgery

    def _load_state(self, net: nn.Module, state: Artifact) -> None:
        path = self.artifacts.path(state) / _STATE_FILE
        parameters = dict(net.named_parameters())
        try:
            with safe_open(path, framework="pt") as file, torch.no_grad():
                for name in file.keys():  # noqa: SIM118 - not a dict
                    parameters[name].copy_(file.get_tensor(name))
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise StorageError(f"the trained state cannot be used: {error}", where=str(path)) from error

    def close(self) -> None:
        """Take the live engine down."""
        if self.live is not None:
            self.live.engine.close()
            self.live = None

    # --- Train ------------------------------------------------------------------------------------------------------

    def train(self, index: int, fingerprint: str, phase: Train) -> ModelRef:
        """Train, and leave the engine running. Collective."""
        if phase.carry:
            raise MethodError("phases that carry the optimiser on come with the method system", where=phase.title, fix="leave carry out")
        context = self.context
        context.channel.beat("setup", 0)
        self.close()
        resumed, rejected = open_newest(context, index)
        plan = plan_run(context, micro_batch_size=int(resumed.content["micro_batch_size"]) if resumed else 0)
        check_model(self.job.model_path(phase.start))
        tokenizer_path = self.job.tokenizer_path(phase.start)
        tokenizer = self.rows.tokenizer(tokenizer_path)
        rows = self.rows.rows(phase.data, tokenizer_path)
        net, batches = self._prepare_network(phase, plan, rows)
        groups = parameter_groups(net, phase.surgery, context.spec.training.optimizer.weight_decay)
        engine: Engine = (PlainEngine if plan.engine == "plain" else DeepSpeedEngine)(net, groups, plan.options)
        live = self.live = Live(None, engine, net, phase.surgery, groups, plan)
        total_steps, max_tokens = self._budget(phase, batches, rows)
        training = Training(
            context=context, control=self.control, engine=engine, models=PhaseModels(engine.policy, self._frozen(phase, plan)),
            objective=phase.objective, rows=rows, batches=batches, schedule=self._schedule(total_steps),
            checkpoints=self._checkpoints(index, phase, plan, net, rows), evaluate=self._evaluation_of(live, phase),
            phase_index=index, total_steps=total_steps, max_tokens=max_tokens, plan_step_before=self.plan_steps, seed=self.job.seed,
            pad_token=padding_token(tokenizer.pad_token_id, tokenizer.eos_token_id), max_length=self.job.max_length,
            packed=batches.policy == "packed", flops_per_token=flops_per_token(net),
            peak_flops=peak_flops(context.device, plan.options.precision),
        )  # fmt: skip
        if resumed is not None:
            self._resume(training, resumed, phase, groups)
        self._tell_start(resumed, rejected)
        self.announce(index, "train", fingerprint, phase.title, total_steps, training.state.step)
        if context.group.rank == 0:
            print(f"train on {len(rows)} rows in {total_steps} steps: {plan.engine} engine, {batches.policy}; {'; '.join(plan.reasons)}")
        started = time.monotonic()
        state = train(training)
        self.plan_steps += state.step
        self.train_metrics = {"steps": float(state.step), "learned_tokens": float(state.learned_tokens)}
        self._phase_seconds("train", started)
        ref = self._keep_state(index, phase, live)
        self.remember(ref, phase.surgery)
        live.ref = ref
        return ref

    def _prepare_network(self, phase: Train, plan: RunPlan, rows: Rows) -> tuple[nn.Module, GlobalBatches]:
        training, device = self.context.spec.training, self.context.device
        net = self._network(self.job.model_path(phase.start), plan.dtype, plan)
        policy = choose_policy(training.packing, device, packable=self.job.packable)
        if policy == "packed" and not self._packs(net):
            if training.packing == "packed":
                raise ConfigurationError(
                    "this job cannot pack several rows into one sequence: the model or a plugin does not keep them apart",
                    where="training.packing", fix="set training.packing to length_grouped",
                )  # fmt: skip
            policy = "length_grouped"
        net = phase.surgery.apply(net, self.job.seed)
        if phase.start.state is not None:
            self._load_state(net, phase.start.state)
        if training.gradient_checkpointing:
            # The re-entrant variant loses the gradient of terms that layers emit.
            causal_lm(net).gradient_checkpointing_enable({"use_reentrant": False})
        batches = GlobalBatches(
            rows.lengths, batch_size=training.batch_size, micro_batch_size=plan.micro_batch_size, max_length=training.max_length,
            policy=policy, seed=training.seed, weights=rows.weights,
        )  # fmt: skip
        return net, batches

    def _packs(self, net: nn.Module) -> bool:
        """Whether network and plugins keep several rows of one sequence apart; a network that is sharded already cannot be asked."""
        if not self.job.packable or any(hasattr(parameter, "ds_id") for parameter in net.parameters()):
            return False
        return packing_is_exact(net, vocabulary_size=int(causal_lm(net).config.vocab_size))

    def _frozen(self, phase: Train, plan: RunPlan) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for role, ref in phase.models.items():
            net, _ = self.network_of(ref, plan.dtype)
            found[role] = Policy(net.to(self.context.device).requires_grad_(False)).eval()
        return found

    def _budget(self, phase: Train, batches: GlobalBatches, rows: Rows) -> tuple[int, int | None]:
        """(planned steps, learned tokens after which to end or None)."""
        budget = phase.budget or self.job.budget
        if budget.steps is not None:
            return budget.steps, None
        if budget.tokens is not None:
            per_step = int(rows.learned.sum()) / batches.steps_per_epoch
            if per_step == 0:
                raise DataError("the rows have nothing to learn", where="data", fix="check that rows have answers")
            return max(1, math.ceil(budget.tokens / per_step)), budget.tokens
        return max(1, math.ceil((budget.epochs or 1.0) * batches.steps_per_epoch)), None

    def _schedule(self, total_steps: int) -> Schedule:
        spec = self.context.spec.training.schedule
        return Schedule.make(spec.name, self.job.learning_rate, total_steps, spec.warmup_steps, spec.final_ratio)

    def _checkpoints(self, index: int, phase: Train, plan: RunPlan, net: nn.Module, rows: Rows) -> Checkpoints:
        context = self.context
        about: dict[str, Any] = {
            "job": context.launch.node.job_uid, "world_size": context.group.world_size, "stage": plan.options.stage, "engine": plan.engine,
            "precision": plan.options.precision, "threads": torch.get_num_threads(), "device": context.device.partition(":")[0],
            "machine": _machine(), "micro_batch_size": plan.micro_batch_size, "versions": installed_versions(),
            "method": context.spec.method.name, "adapter": self.job.adapter_name, "data": rows.digest,
        }  # fmt: skip
        frozen = any(not parameter.requires_grad for parameter in net.parameters())
        first = context.group.rank == 0
        base: Callable[[], str] | None = None
        if frozen and first:
            # In a thread that starts at once: hashing a large base model must not delay the first step.
            model = self.job.model_path(phase.start)
            base = ThreadPoolExecutor(1, "base-digest").submit(lambda: phase.start.digest or base_digest(model)).result
        return Checkpoints(
            context, index, about, base=base, kept=kept_from(context) if first else [], keep_last=context.spec.faults.checkpoint.keep_last
        )

    def _resume(self, training: Training, resumed: Resumed, phase: Train, groups: list[ParameterGroup]) -> None:
        """Set the engine and the loop to the checkpoint. A change that costs bit-exactness is said."""
        content, about, base = resumed.content, training.checkpoints.about, training.checkpoints.base
        if base is not None and content.get("base") not in (None, base()):
            raise DataError(
                "the frozen base model changed since the checkpoint was made", where=phase.start.base,
                fix="put the old model back, or start the job anew",
            )  # fmt: skip
        wanted = {name for group in groups for name in group.names}
        held = set(resumed.state.shapes)
        if wanted != held:
            odd = sorted(wanted ^ held)[0]
            raise StorageError(f"the checkpoint holds other parameters than are trained, for example {odd}", where=resumed.ref.path)
        training.engine.load(resumed.state)
        training.state = LoopState(**content["loop"])
        training.checkpoints.committed_step = training.checkpoints.begun_step = training.state.step
        exact = ("world_size", "stage", "engine", "precision", "threads", "device", "machine", "versions", "micro_batch_size", "data")
        changed = [name for name in exact if content.get(name) != about[name]]
        if changed and self.context.group.rank == 0:
            text = f"resumed with another {', '.join(changed)} than the checkpoint was made with: equal within rounding, not bit for bit"
            print(text)
            self.context.channel.fact("note", {"type": "RESUMED_INEXACTLY", "message": text, "severity": "warning"})

    def _tell_start(self, resumed: Resumed | None, rejected: list[str]) -> None:
        if self.context.group.rank == 0 and not self._told_start and (resumed or rejected or self.context.launch.resume_from):
            body: dict[str, Any] = {"rejected": rejected}
            if resumed is not None:
                body["checkpoint"] = candidate_message(resumed.ref)
            self.context.channel.fact("resumed_from", body)
        self._told_start = True

    def _evaluation_of(self, live: Live, phase: Train) -> Any:
        """Held-out loss during training, or None when nothing is held out."""
        held_out = self.job.validation
        if held_out is None or self.context.spec.evaluation.every_steps == 0:
            return None

        def evaluate() -> float | None:
            return self._loss(live.engine.policy, phase.start, Evaluate(phase.start, held_out), live.plan)

        return evaluate

    def _keep_state(self, index: int, phase: Train, live: Live) -> ModelRef:
        """Make the trained tensors durable. Collective."""
        context = self.context
        context.channel.beat("checkpoint", self.plan_steps)
        shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in live.net.named_parameters()}
        layout = {name: (torch.float32, shapes[name]) for name in live.names}
        gathered = live.engine.gather(live.names)
        state: Artifact | None = None
        if context.group.rank == 0:
            directory = self.artifacts.begin(index, phase.title).path
            stream = ((name, tensor.float()) for name, tensor in gathered if tensor is not None)
            write_tensors(directory / _STATE_FILE, stream, layout)
            state = self.artifacts.commit(directory, phase.title, "state", self.train_metrics)
        else:
            for _ in gathered:
                pass
        shared = context.group.broadcast_json(artifact_to_json(state) if state else None)
        return replace(phase.start, state=artifact_from_json(shared))

    # --- Evaluate ---------------------------------------------------------------------------------------------------

    def evaluate(self, index: int, fingerprint: str, phase: Evaluate) -> Artifact:
        """Held-out loss and answers. Collective."""
        context = self.context
        context.channel.beat("setup", 0)
        check_model(self.job.model_path(phase.model))
        tokenizer_path = self.job.tokenizer_path(phase.model)
        tokenizer, rows = self.rows.tokenizer(tokenizer_path), self.rows.rows(phase.data, tokenizer_path)
        started = time.monotonic()
        live = self.live if self.live is not None and self.live.ref == phase.model else None
        plan = live.plan if live else plan_run(context)
        untouched: nn.Module | None = None
        if live is not None:
            policy, view = live.engine.policy, live.engine.generation_view()
        else:
            self.close()
            untouched, policy, view = self._resting(phase.model, plan)
        self._tell_start(None, [])
        self.announce(index, "evaluate", fingerprint, phase.title, 0, 0)
        loss = self._loss(policy, phase.model, phase, plan)
        if loss is None:
            raise LeaveRequested(saved=True)
        metrics = {"eval_loss": loss}
        answers = []
        if phase.generate_rows > 0:
            found = answer_rows(
                context, self.control, view, rows, tokenizer, num_rows=phase.generate_rows,
                max_new_tokens=context.spec.evaluation.max_new_tokens,
                pad_token=padding_token(tokenizer.pad_token_id, tokenizer.eos_token_id),
            )  # fmt: skip
            if found is None:
                raise LeaveRequested(saved=True)
            answers = found
            metrics["exact_match"] = exact_match(answers)
        if untouched is not None and phase.model.state is None:
            self._base = (self.job.model_path(phase.model), plan.dtype, untouched)
        self._phase_seconds("evaluate", started)
        report: Artifact | None = None
        if context.group.rank == 0:
            directory = self.artifacts.begin(index, phase.title).path
            (directory / "report.json").write_text(json.dumps({"title": phase.title, "rows": len(rows), "metrics": metrics}))
            (directory / "samples.json").write_text(samples_json(answers))
            samples = [{"prompt": a.prompt, "expected": a.expected, "answer": a.answer} for a in answers[:_SAMPLES_IN_REPORT]]
            report = self.artifacts.commit(directory, phase.title, "report", metrics, samples)
            row = {"step": 0, "phase_index": index, "values": metrics, "total_steps": 0, "plan_step": self.plan_steps}
            context.channel.samples([row])
            context.channel.gauges({"luthier_train_eval_loss": loss})
        return artifact_from_json(context.group.broadcast_json(artifact_to_json(report) if report else None))

    def _resting(self, ref: ModelRef, plan: RunPlan) -> tuple[nn.Module, nn.Module, Any]:
        """(network, policy, view) of a model without an optimiser; every rank holds it whole."""
        net, _ = self.network_of(ref, plan.dtype)
        net = net.to(self.context.device)
        autocast = torch.bfloat16 if plan.options.precision == "bf16" and plan.dtype == torch.float32 else None
        policy = Policy(net, autocast).eval()

        @contextlib.contextmanager
        def view() -> Iterator[nn.Module]:
            with evaluation_mode(net, autocast, self.context.device):
                yield net

        return net, policy, view()

    def _loss(self, policy: nn.Module, ref: ModelRef, phase: Evaluate, plan: RunPlan) -> float | None:
        tokenizer_path = self.job.tokenizer_path(ref)
        tokenizer = self.rows.tokenizer(tokenizer_path)
        return held_out_loss(
            self.context, self.control, policy, self.rows.rows(phase.data, tokenizer_path), objective=phase.objective,
            max_rows=self.context.spec.evaluation.max_rows, micro_batch_size=plan.micro_batch_size,
            pad_token=padding_token(tokenizer.pad_token_id, tokenizer.eos_token_id), max_length=self.job.max_length, step=self.plan_steps,
        )  # fmt: skip

    # --- Build ------------------------------------------------------------------------------------------------------

    def build(self, index: int, fingerprint: str, phase: Build) -> Artifact:
        """Run the function on rank 0; the others wait outside collectives."""
        context = self.context
        self._tell_start(None, [])
        self.announce(index, "build", fingerprint, phase.title, 0, 0)
        started = time.monotonic()
        made: list[Artifact] = []
        place = self.artifacts.place(index, phase.name)

        def work() -> None:
            context.channel.beat("shard", 0)
            out = self.artifacts.begin(index, phase.name)
            metrics = phase.fn(out, dict(phase.inputs), self.job) or {}
            made.append(self.artifacts.commit(out.path, phase.name, phase.kind, {k: float(v) for k, v in metrics.items()}))

        rank_zero_alone(context, place.with_name(f"{place.name}.done"), work)
        self._phase_seconds("build", started)
        return artifact_from_json(context.group.broadcast_json(artifact_to_json(made[0]) if made else None))

    # --- facts ------------------------------------------------------------------------------------------------------

    def announce(self, index: int, kind: str, fingerprint: str, title: str, total_steps: int, start_step: int) -> None:
        """The fact that a phase began; rank 0 speaks."""
        context = self.context
        if context.group.rank != 0:
            return
        kind_of_device = context.device.partition(":")[0]
        device = kind_of_device if context.group.world_size == 1 else f"{kind_of_device}/{context.group.backend}"
        body = {"index": index, "kind": kind, "fingerprint": fingerprint, "total_steps": total_steps, "start_step": start_step}
        context.channel.fact("phase_started", {**body, "device": device, "title": title})

    def _phase_seconds(self, kind: str, started: float) -> None:
        if self.context.group.rank == 0:
            self.context.channel.gauges({f'luthier_train_phase_seconds_total{{phase="{kind}"}}': time.monotonic() - started})


def _machine() -> str:
    """What computes: results are promised bit for bit on the same kind only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
