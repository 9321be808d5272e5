"""Runs a method's plan: phase by phase, journalled, replayed after a restart, and exported at the end.

Every rank runs the same generator. Rank 0 reads the journal chain that the controller named and shares it; phases it holds are not run
again but answered from it. A phase is done when all ranks are done, its outputs are durable and its entry is in the journal.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ConfigurationError, MethodError, PlanDiverged, SpecError, StorageError
from luthier.methods.api import Artifact, Build, Evaluate, ModelRef, Phase, Result, Train, fingerprint
from luthier.trainer_node.alone import rank_zero_alone
from luthier.trainer_node.artifacts import Artifacts, seal
from luthier.trainer_node.context import LeaveRequested, RankContext
from luthier.trainer_node.control import Control
from luthier.trainer_node.engine.parameters import evaluation_mode, parameter_groups
from luthier.trainer_node.export import EngineTensors, NetworkTensors, export_model, probe_logits
from luthier.trainer_node.jobview import JobView
from luthier.trainer_node.journal import Entry, check_fingerprint, read_chain, result_from_json, result_to_json, write_entry
from luthier.trainer_node.launch import JournalRef
from luthier.trainer_node.lineage import read_manifest
from luthier.trainer_node.phases import PhaseRunner

__all__ = ["run_plan"]

_KINDS = {"Train": "train", "Scan": "scan", "Generate": "generate", "Build": "build", "Evaluate": "evaluate"}


def run_plan(context: RankContext) -> dict[str, Any]:
    """Run the job's plan to its end; returns `luthier.v1.Result` as proto JSON (rank 0's counts).

    Raises `LeaveRequested`, one of the `JobEnd` errors, or whatever the method raises.
    """
    launch = context.launch
    artifacts = Artifacts(launch.node.prefix, launch.fence)
    try:
        job = JobView(context.spec, launch.node.inputs, launch.node.prefix, artifacts)
    except SpecError as error:
        raise ConfigurationError(error.message, fix=error.fix, where=error.where) from error
    if context.spec.output.form == "adapter" and job.adapter_name == "full":
        raise ConfigurationError(
            "output.form is adapter, but the adapter full trains every weight and leaves no adapter",
            where="output.form", fix="set output.form to auto, or choose another adapter",
        )  # fmt: skip
    control = Control(context.channel, context.group)
    runner = PhaseRunner(context, job, artifacts, control)
    try:
        result, index = _Replay(context, job, runner, control).run()
        return _finish(context, job, runner, result, index)
    except SpecError as error:
        raise ConfigurationError(error.message, fix=error.fix, where=error.where) from error


class _Replay:
    """The generator, its journal, and the phase it is in."""

    def __init__(self, context: RankContext, job: JobView, runner: PhaseRunner, control: Control) -> None:
        self._context = context
        self._job = job
        self._runner = runner
        self._control = control
        self._head = context.launch.journal_head

    def run(self) -> tuple[Result, int]:
        """(what the plan returned, number of its phases)."""
        context = self._context
        head = self._head
        entries = self._shared_entries(head)
        plan = self._job.method.plan(self._job)
        answer: Any = None
        index = 0
        while True:
            try:
                phase: Phase = plan.send(answer)
            except StopIteration as stop:
                if not isinstance(stop.value, Result):
                    kind_of = type(stop.value).__name__
                    raise MethodError(f"the plan returned {kind_of}, not a Result", where=context.spec.method.name) from None
                return stop.value, index
            kind = _KINDS.get(type(phase).__name__)
            if kind is None:
                raise MethodError(f"the plan yields {type(phase).__name__}, which is no phase", where=context.spec.method.name)
            print_of_phase = self._same_everywhere(fingerprint(phase), index, phase.title)
            entry = check_fingerprint(entries, index, kind, phase.title, print_of_phase)
            if entry is not None:
                answer = result_from_json(entry.result)
                self._runner.plan_steps = entry.plan_steps
            else:
                answer = self._execute(index, kind, print_of_phase, phase)
                self._record(index, kind, print_of_phase, phase, answer)
            if isinstance(phase, Train) and isinstance(answer, ModelRef):
                self._runner.remember(answer, phase.surgery)
            index += 1

    def _shared_entries(self, head: JournalRef | None) -> list[Entry]:
        context = self._context
        if head is None:
            return []
        shared: list[dict[str, Any]] = []
        if context.group.rank == 0:
            shared = [asdict(entry) for entry in read_chain(context.launch.node.prefix, head)]
        return [Entry(**entry) for entry in context.group.broadcast_json(shared)]

    def _same_everywhere(self, found: str, index: int, title: str) -> str:
        """Rank 0's fingerprint of the phase. Raises `PlanDiverged` on a rank that yields another one."""
        if self._context.group.world_size == 1:
            return found
        shared: str = self._context.group.broadcast_json(found)
        if shared != found:
            raise PlanDiverged(
                f"the plan yields another phase {title!r} here than on rank 0", where=f"phase {index}",
                fix="a plan may depend on its parameters and journalled results alone: no clock, no random numbers, no files of its own",
            )  # fmt: skip
        return shared

    def _execute(self, index: int, kind: str, found: str, phase: Phase) -> ModelRef | Artifact:
        if not isinstance(phase, Train) and self._control.leave_asked():
            raise LeaveRequested(saved=True)  # everything so far is in the journal
        if isinstance(phase, Train):
            return self._runner.train(index, found, phase)
        if isinstance(phase, Evaluate):
            return self._runner.evaluate(index, found, phase)
        if isinstance(phase, Build):
            return self._runner.build(index, found, phase)
        raise MethodError(
            f"{kind} phases come with the method system and cannot run yet", where=phase.title, fix="use a method without them"
        )

    def _record(self, index: int, kind: str, found: str, phase: Phase, result: ModelRef | Artifact) -> None:
        """Journal the phase after every rank is done with it; rank 0 writes and speaks. Collective."""
        context, runner = self._context, self._runner
        context.group.barrier()
        node = context.launch.node
        if context.group.rank == 0:
            previous = asdict(self._head) if self._head else None
            entry = Entry(index, kind, phase.title, found, result_to_json(result), runner.plan_steps, previous)
            self._head = head = write_entry(node.prefix, node.attempt, context.launch.generation, entry)
            artifact = result.state if isinstance(result, ModelRef) else result
            if artifact is not None:
                context.channel.fact("artifact", _artifact_message(artifact, node.prefix, index))
            metrics = dict(runner.train_metrics) if isinstance(phase, Train) else dict(artifact.metrics if artifact else {})
            fence = {"attempt": head.attempt, "generation": head.generation}
            journal = {"fence": fence, "index": head.index, "digest": head.digest, "path": head.path}
            context.channel.fact("phase_done", {"index": index, "kind": kind, "journal": journal, "metrics": metrics})
        else:
            self._head = JournalRef(node.attempt, context.launch.generation, index, "", "")


def _artifact_message(artifact: Artifact, prefix: Path, index: int) -> dict[str, Any]:
    """`luthier.v1.ArtifactMade` in proto JSON."""
    size = read_manifest(prefix / artifact.path, artifact.digest).size_bytes
    return {
        "name": artifact.name, "kind": artifact.kind, "digest": artifact.digest, "path": artifact.path, "size_bytes": size,
        "phase_index": index,
    }  # fmt: skip


# --- the result -----------------------------------------------------------------------------------------------------


def _finish(context: RankContext, job: JobView, runner: PhaseRunner, result: Result, index: int) -> dict[str, Any]:
    """Export what the plan returned and put the job's result together. Collective."""
    kind, digest = "none", ""
    if result.model is not None:
        context.channel.beat("checkpoint", runner.plan_steps)
        kind, digest = _export(context, job, runner, result.model, index)
    return {
        "uri": f"job://{context.launch.node.job_name}" if kind != "none" else "",
        "digest": digest,
        "kind": kind,
        "metrics": {name: float(value) for name, value in result.metrics.items()},
        "samples": [{name: str(sample.get(name, "")) for name in ("prompt", "expected", "before", "after")} for sample in result.samples],
        "verdicts": dict(runner.rows.verdicts),
        "report": dict(result.report),
    }


def _export(context: RankContext, job: JobView, runner: PhaseRunner, ref: ModelRef, index: int) -> tuple[str, str]:
    """Write `output/a<k>g<g>/`, compare, seal; returns (kind, digest). Collective."""
    prefix, rank = context.launch.node.prefix, context.group.rank
    directory = prefix / "output" / context.launch.fence
    if rank == 0:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    live = runner.live if runner.live is not None and runner.live.ref == ref else None
    tensors: EngineTensors | NetworkTensors
    if live is not None:
        net, surgery, precision = live.net, live.surgery, live.plan.options.precision
        partly = any(not parameter.requires_grad for parameter in net.parameters())
        dtype = torch.float32 if partly or precision == "fp32" else torch.bfloat16
        tensors = EngineTensors(live.engine, live.names, dtype)
        view = live.engine.generation_view()
    else:
        found = runner.network_of(ref, torch.float32)
        net, surgery, precision = found[0], found[1] or job.adapter, "fp32"
        names = [name for group in parameter_groups(net, surgery, 0.0) for name in group.names]
        tensors = NetworkTensors(net, names, rank, torch.float32)
        view = evaluation_mode(net, None, "cpu")  # type: ignore[assignment]
    logits: Tensor | None = None
    with view:
        if rank == 0:
            logits = probe_logits(net, context.device if live is not None else "cpu")
    marker = directory.with_name(f"{directory.name}.done")
    kind = export_model(
        net, surgery, tensors, directory, form=context.spec.output.form, base=job.model_path(ref), tokenizer=job.tokenizer_path(ref),
        live=logits, precision=precision, rank=rank, alone=lambda work: rank_zero_alone(context, marker, work, runner.plan_steps),
    )  # fmt: skip
    digest = ""
    if rank == 0:
        digest = seal(directory, {"name": "result", "kind": kind, "base": ref.base})
        artifact = Artifact("result", kind, digest, str(directory.relative_to(prefix)))
        _publish(context, directory)
        context.channel.fact("artifact", _artifact_message(artifact, prefix, index))
    return kind, str(context.group.broadcast_json(digest))


def _publish(context: RankContext, directory: Path) -> None:
    """Copy the result to `output.uri`, where the job names one, so that it appears whole or not at all."""
    uri = context.spec.output.uri
    if not uri:
        return
    inputs: Mapping[str, str] = context.launch.node.inputs
    if uri not in inputs:
        raise ConfigurationError(
            f"output.uri {uri!r} was not resolved to a path on this node", where="output.uri", fix="use root:relative/path"
        )
    target = Path(inputs[uri])
    draft = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(directory, draft)
        if target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)
    except OSError as error:
        raise StorageError(f"the result cannot be copied: {error.strerror}", where=str(target)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
