"""`luthier describe`: the story of a job in order."""

from __future__ import annotations

import argparse
import datetime as dt
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from luthier.cli import exits
from luthier.cli.command import connection_arguments, output_arguments

if TYPE_CHECKING:
    from luthier.client import Job
    from luthier.v1 import artifact_service_pb2, job_pb2


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`describe NAME`."""
    parser.add_argument("name", metavar="NAME", help="job to describe")
    output_arguments(parser, ("table", "json", "yaml"))
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Gather everything about one job and tell it."""
    from luthier.cli import output
    from luthier.cli.session import connect

    with connect(arguments) as client:
        job = client.jobs.get(arguments.name)
        attempts, checkpoints = list(job.attempts()), list(job.checkpoints())
        artifacts = list(client.artifacts.list(job.name))
    if arguments.output in ("json", "yaml"):
        parts: dict[str, Any] = {"job": output.plain(job.pb)}
        for name, rows in (("attempts", attempts), ("checkpoints", checkpoints), ("artifacts", artifacts)):
            parts[name] = [output.plain(row) for row in rows]
        output.print_structured(arguments.output, parts)
        return exits.OK
    for title, lines in (
        ("", _head(job)),
        ("What was asked", _asked(job.pb)),
        ("Where it stands", _stands(job)),
        ("Attempts", _attempts(attempts)),
        ("Checkpoints", _checkpoints(checkpoints)),
        ("Result", _result(job.pb)),
        ("Artifacts", _artifacts(artifacts)),
        ("Samples", _samples(job.pb)),
        ("Failure", _failure(job)),
        ("Where the time went", _causes(job.pb)),
    ):
        text = list(lines)
        if text:
            output.write(("\n" + title + "\n" if title else "") + "".join(f"{'  ' if title else ''}{line}\n" for line in text))
    return exits.OK


def _when(stamp: Any) -> str:
    if not stamp.seconds:
        return "-"
    return str(stamp.ToDatetime(dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"))


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    shown = [(name, text) for name, text in pairs if text]
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{name + ':':<{width + 1}} {text}" for name, text in shown]


def _head(job: Job) -> list[str]:
    title = f"  {job.pb.display_name}" if job.pb.display_name else ""
    return [f"{job.name}{title}  {job.state}"]


def _params(part: Any) -> str:
    from luthier.spec.convert import struct_to_plain

    params = struct_to_plain(part.params)
    text = ", ".join(f"{name}={value}" for name, value in sorted(params.items()) if value is not None)
    return f"{part.name} ({text})" if text else str(part.name)


def _asked(pb: job_pb2.Job) -> list[str]:
    from luthier.cli.output import number

    spec, training = pb.spec, pb.spec.training
    budget = training.WhichOneof("budget")
    engine = type(training).EngineKind.Name(training.engine).removeprefix("ENGINE_KIND_").lower()
    nodes = spec.resources.nodes
    count = f"{nodes.max}" if nodes.min == nodes.max else f"{nodes.min} to {nodes.max}"
    held_out = [s.uri for s in spec.data.validation] or (
        [f"{spec.data.validation_fraction:g} of the rows"] if spec.data.validation_fraction else []
    )
    return _pairs(
        [
            ("model", spec.model.uri),
            ("method", f"{_params(spec.method)} version {spec.method.version}"),
            ("objective", _params(spec.objective)),
            ("adapter", _params(spec.adapter)),
            ("data", ", ".join(source.uri for source in spec.data.sources)),
            ("held out", ", ".join(held_out)),
            (
                "training",
                ", ".join(
                    [
                        f"batch {training.batch_size} (micro-batch {training.micro_batch_size})",
                        f"max length {training.max_length}",
                        f"{getattr(training, budget):g} {budget}" if budget else "3 epochs",
                        f"{training.optimizer.name} at {number(training.optimizer.learning_rate)}",
                        f"seed {training.seed}",
                    ]
                ),
            ),
            (
                "resources",
                f"{count} node(s) x {spec.resources.processes_per_node} process(es), ZeRO {training.zero_stage}, {engine}",
            ),
            ("queue", f"{spec.scheduling.queue}, priority {spec.scheduling.priority}"),
            ("labels", ", ".join(f"{key}={pb.labels[key]}" for key in sorted(pb.labels))),
            ("needs", ", ".join(f"{d.job}{'/' + d.artifact if d.artifact else ''}" for d in pb.dependencies)),
            ("uid", pb.uid),
        ]
    )


def _stands(job: Job) -> list[str]:
    from luthier.cli.output import age, duration, number
    from luthier.cli.progress import line_of

    pb, progress, now = job.pb, job.pb.progress, time.time()
    lines = [("state", line_of(pb) if job.state != "SUCCEEDED" else "SUCCEEDED")]
    lines.append(("created", f"{_when(pb.create_time)} ({age(pb.create_time, now)} ago)"))
    lines.append(("started", _when(pb.start_time) if pb.start_time.seconds else ""))
    if pb.end_time.seconds:
        span = pb.end_time.ToDatetime() - (pb.start_time if pb.start_time.seconds else pb.create_time).ToDatetime()
        lines.append(("ended", f"{_when(pb.end_time)} (after {duration(span.total_seconds())})"))
    if pb.waiting.HasField("retry_time"):
        lines.append(("next try", _when(pb.waiting.retry_time)))
    if pb.waiting.HasField("estimated_start_time"):
        lines.append(("expected start", _when(pb.waiting.estimated_start_time)))
    if pb.HasField("progress"):
        lines.append(("device", progress.device))
        step = f", step {progress.step} of {progress.total_steps or '?'}" if progress.step else ""
        steps = f"{progress.phase}{step}, {progress.fraction * 100:.0f} % of the plan"
        lines.append(("progress", steps))
        lines.append(("held-out loss", number(progress.eval_loss) if progress.HasField("eval_loss") else ""))
    if pb.budget_used:
        lines.append(("budgets used", ", ".join(f"{name} {pb.budget_used[name]}" for name in sorted(pb.budget_used))))
    return _pairs(lines)


def _cause(value: int) -> str:
    from luthier.v1 import job_pb2

    return str(job_pb2.EndCause.Name(value)).removeprefix("END_CAUSE_").lower() if value else "open"


def _attempts(attempts: Iterable[job_pb2.Attempt]) -> list[str]:
    from luthier.cli.progress import short

    lines = []
    for attempt in attempts:
        text = f"attempt {attempt.number}: {_cause(attempt.end_cause)}"
        lines.append(
            text + (f", {short(attempt.message)}" if attempt.message else "") + f" ({len(attempt.nodes)} nodes, {attempt.executor})"
        )
        for generation in attempt.generations:
            start = f" from {generation.resume_from}" if generation.resume_from else ""
            steps = f"steps {generation.start_step} to {generation.last_step}"
            lines.append(
                f"  generation {generation.number}: {_cause(generation.end_cause)}, {steps}{start}, formed {_when(generation.create_time)}"
            )
        for node in attempt.nodes:
            code = f", exit code {node.exit_code}" if node.HasField("exit_code") else ""
            lines.append(f"  node {node.index}: {node.state} on {node.host or '?'} ({node.handle or 'no handle'}){code}")
    return lines


def _checkpoints(checkpoints: Iterable[job_pb2.Checkpoint]) -> list[str]:
    from luthier.cli.output import number, size

    kept = [c for c in checkpoints if not c.removed]
    lines = []
    for c in kept[:5]:
        loss = f", held-out loss {number(c.eval_loss)}" if c.HasField("eval_loss") else ""
        lines.append(f"{c.name.rpartition('/')[2]}: step {c.step}, {size(c.size_bytes)}, {_when(c.create_time)}{loss}")
    return lines + ([f"… and {len(kept) - 5} more (luthier checkpoints)"] if len(kept) > 5 else [])


def _result(pb: job_pb2.Job) -> list[str]:
    from luthier.cli.output import number

    if not pb.HasField("result"):
        return []
    result = pb.result
    pairs = [("kind", result.kind), ("uri", result.uri), ("digest", result.digest)]
    pairs += [(name, number(result.metrics[name])) for name in sorted(result.metrics)]
    pairs.append(("rows", ", ".join(f"{result.verdicts[name]} {name}" for name in sorted(result.verdicts))))
    return _pairs(pairs)


def _artifacts(artifacts: Iterable[artifact_service_pb2.Artifact]) -> list[str]:
    from luthier.cli.output import size

    return [
        f"{a.name.rpartition('/')[2]}: {a.kind}, {len(a.files)} files, {size(a.size_bytes)}{', ' + a.local_path if a.local_path else ''}"
        for a in artifacts
    ]


def _samples(pb: job_pb2.Job) -> list[str]:
    lines = []
    for sample in pb.result.samples[:2]:
        lines += _pairs(
            [
                ("prompt", sample.prompt.strip()),
                ("expected", sample.expected.strip()),
                ("before", sample.before.strip()),
                ("after", sample.after.strip()),
            ]
        )
        lines.append("")
    return lines[:-1]


def _failure(job: Job) -> list[str]:
    failure = job.failure
    if failure is None:
        return []
    run = f"attempt {failure.attempt}, generation {failure.generation}" if failure.attempt else ""
    who = ", ".join(
        [f"node {failure.node}"] * failure.HasField("node")
        + [f"rank {failure.rank}"] * failure.HasField("rank")
        + [f"exit code {failure.exit_code}"] * failure.HasField("exit_code")
    )
    why, _, fix = failure.message.partition(" Fix: ")
    lines = _pairs(
        [
            ("cause", _cause(failure.cause)),
            ("why", why),
            ("fix", fix),
            ("in", run),
            ("first failing", who),
            ("after step", str(failure.step or "")),
        ]
    )
    if failure.log_lines:
        lines += ["last log lines:", *(f"  {line}" for line in failure.log_lines[-20:])]
    return lines


def _causes(pb: job_pb2.Job) -> list[str]:
    from luthier.cli.output import duration
    from luthier.v1 import job_pb2

    spent = [(c.cause, c.duration.seconds + c.duration.nanos / 1e9) for c in pb.cause_times]
    total = sum(seconds for _, seconds in spent)
    lines = [
        (job_pb2.CauseTime.Cause.Name(cause).lower().replace("_", " "), f"{duration(seconds):>7}  {seconds / total * 100:5.1f} %")
        for cause, seconds in spent
        if seconds > 0 and total > 0
    ]
    return _pairs([*lines, ("sum", f"{duration(total):>7}")]) if lines else []
