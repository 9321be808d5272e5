"""YAML documents: shorthands, numbers, and every error with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.errors import SpecError
from luthier.spec import marks
from luthier.spec.convert import spec_from_proto, spec_to_proto
from luthier.spec.marks import LocatedViolation
from luthier.spec.models import JobSpec
from luthier.spec.yaml import Document, load_file, load_text, load_value
from luthier.v1 import spec_pb2

MINIMAL = "method: sft\n"


def load_one(text: str, **more: Any) -> Document:
    """The only document of a text."""
    [document] = load_text(text, file="job.yaml", **more)
    return document


def refused(text: str, **more: Any) -> list[tuple[str, str, str, str]]:
    """(where, field, description, fix) of every violation."""
    with pytest.raises(SpecError) as caught:
        load_text(text, file="job.yaml", **more)
    violations = [v for v in caught.value.violations if isinstance(v, LocatedViolation)]
    assert len(violations) == len(caught.value.violations)
    return [(v.where, v.field, v.description, v.fix) for v in violations]


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 6))


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: job://base", spec_pb2.JobSpec(model=spec_pb2.Model(uri="job://base"))),
        ("adapter: lora", spec_pb2.JobSpec(adapter=spec_pb2.Adapter(name="lora"))),
        ("objective: nll", spec_pb2.JobSpec(objective=spec_pb2.Objective(name="nll"))),
        ("data: cwd:a.jsonl", spec_pb2.JobSpec(data=spec_pb2.Data(sources=[spec_pb2.DataSource(uri="cwd:a.jsonl")]))),
        (
            "data: ['cwd:a', {uri: 'cwd:b', weight: 2}]",
            spec_pb2.JobSpec(data=spec_pb2.Data(sources=[spec_pb2.DataSource(uri="cwd:a"), spec_pb2.DataSource(uri="cwd:b", weight=2)])),
        ),
        ("data: {sources: cwd:a}", spec_pb2.JobSpec(data=spec_pb2.Data(sources=[spec_pb2.DataSource(uri="cwd:a")]))),
        ("resources: {nodes: 2}", spec_pb2.JobSpec(resources=spec_pb2.Resources(nodes=spec_pb2.NodeRange(min=2, max=2)))),
        ("training: {optimizer: adamw}", spec_pb2.JobSpec(training=spec_pb2.Training(optimizer=spec_pb2.Optimizer(name="adamw")))),
        ("training: {packing: off}", spec_pb2.JobSpec(training=spec_pb2.Training(packing=spec_pb2.Training.PACKING_OFF))),
        ("training: {steps: 1e3}", spec_pb2.JobSpec(training=spec_pb2.Training(steps=1000))),
        ("training: {max_grad_norm: 0}", spec_pb2.JobSpec(training=spec_pb2.Training(max_grad_norm=0))),
        ("data: {system_prompt: ''}", spec_pb2.JobSpec(data=spec_pb2.Data(system_prompt=""))),
        ("env: {A: 1.0, B: true}", spec_pb2.JobSpec(env={"A": "1.0", "B": "true"})),
        ("evaluation: {early_stop: 3}", spec_pb2.JobSpec(evaluation=spec_pb2.Evaluation(early_stop=spec_pb2.EarlyStop(patience=3)))),
        ("training: {}", spec_pb2.JobSpec(training=spec_pb2.Training())),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_shorthands(text: str, expected: spec_pb2.JobSpec) -> None:
    """Short forms mean the same as the long ones."""
    expected.method.name = "sft"

    assert expected == load_one(MINIMAL + text).job.spec


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("2h", 7200), ("1h30m", 5400), ("1.5m", 90), ("'45'", 45), ("1d", 86400)]
)
def test_durations(text: str, seconds: int) -> None:
    """Durations are seconds or have units."""
    assert seconds == load_one(f"{MINIMAL}scheduling: {{deadline: {text}}}").job.spec.scheduling.deadline.seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("007", 7),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("2026-11-22", "2026-11-22"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    """Numbers, booleans and null are those of YAML 1.2; everything else is text."""
    [document] = marks.compose(f"a: {text}", "x")
    plain = marks.plain(document)["a"]

    assert (value, type(value)) == (plain, type(plain))


def test_documents_of_a_pipeline(tmp_path: Path) -> None:
    """Several documents keep their order, names, lines and local paths; comments and empty documents are no jobs."""
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "m").mkdir()
    file = tmp_path / "p.yaml"
    file.write_text(
        "# two jobs\nname: base\nmethod: pretrain\ndata: a.jsonl\n---\n---\nname: tune\nmodel: m\nmethod: sft\n\ndata: a.jsonl\n"
    )

    base, tune = load_file(file)

    assert ("base", "tune") == (base.job_id, tune.job_id)
    assert {"spec.data.sources[0].uri": tmp_path / "a.jsonl"} == base.uploads
    assert {"spec.model.uri": tmp_path / "m", "spec.data.sources[0].uri": tmp_path / "a.jsonl"} == tune.uploads
    assert (f"{file}:11", f"{file}:7", f"{file}:9") == (
        tune.where("spec.data.sources[0].uri"),
        tune.where("job_id"),
        tune.where("spec.method.params.nothing"),
    )


def test_spec_below_a_key_is_the_same_as_flat() -> None:
    """`spec:` around the parts changes nothing but the nesting."""
    flat = load_one("name: a\nlabels: {k: v}\nmethod: sft\ntraining: {seed: 3}")
    nested = load_one("name: a\nlabels: {k: v}\nspec:\n  method: sft\n  training: {seed: 3}")

    assert flat.job == nested.job


def test_every_field_can_be_written_in_yaml() -> None:
    """A fully populated specification, dumped as YAML words, loads to the same model."""
    spec = JobSpec.model_validate({"method": {"name": "sft"}, "model": {"uri": "job://b"}, "evaluation": {"early_stop": {"patience": 2}}})
    dumped = spec.model_dump(mode="json", exclude_none=True)

    [document] = load_value(dumped)

    assert spec == spec_from_proto(document.job.spec)
    assert spec_to_proto(spec) == spec_to_proto(spec_from_proto(document.job.spec))


def test_set_uri_replaces_addresses() -> None:
    """Addresses of uploads are put where the local path stood, also into roles."""
    document = load_one("method: sft\nmodel: {uri: job://b, roles: {t: job://c}}\ndata: ['cwd:a', 'cwd:b']")
    document.set_uri("spec.data.sources[1].uri", "upload://x/")
    document.set_uri("spec.model.roles.t", "upload://y/")

    assert ("cwd:a", "upload://x/", "upload://y/") == (
        document.job.spec.data.sources[0].uri,
        document.job.spec.data.sources[1].uri,
        document.job.spec.model.roles["t"],
    )


# --- --set -----------------------------------------------------------------------------------------------------------


def test_overrides_replace_fields_in_long_and_short_form() -> None:
    """`--set` reaches into shorthands, replaces budgets, and can name one document."""
    text = "name: a\nmethod: sft\nadapter: lora\ntraining: {epochs: 3}\n---\nname: b\nmethod: sft\n"
    a, b = load_text(text, file="x", overrides=["training.steps=10", "a:adapter.params.rank=4", "data=cwd:x", "spec.training.packing=off"])

    assert (10, 4, "lora") == (a.job.spec.training.steps, a.job.spec.adapter.params["rank"], a.job.spec.adapter.name)
    assert (10, False) == (b.job.spec.training.steps, b.job.spec.HasField("adapter"))
    assert "cwd:x" == b.job.spec.data.sources[0].uri


@pytest.mark.parametrize(
    ("override", "violation"),
    [
        ("training.stepz=3", ("--set", "spec.training.stepz", "there is no field 'stepz' here", "did you mean 'steps'?")),
        ("training.batch_size=0", ("--set", "spec.training.batch_size", "0 is out of range", "give a value in [1, 65536]")),
    ],
)
def test_a_wrong_override_is_told_as_such(override: str, violation: tuple[str, str, str, str]) -> None:
    """Violations of values from the command line point at `--set`, not at a line."""
    assert [violation] == refused(MINIMAL, overrides=[override])


@pytest.mark.parametrize("override", ["training.steps", "=3", "a b=3", "nobody:training.steps=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    """What is not `[NAME:]KEY=VALUE` of this file is refused with an example."""
    with pytest.raises(SpecError, match="--set"):
        load_text("name: a\nmethod: sft", overrides=[override])


# --- what is refused, with the exact words ---------------------------------------------------------------------------

NAME_FIX = "use at most 63 lower-case letters, digits and '-', starting with a letter"
PARTS = (
    "one of adapter, data, display_name, env, evaluation, faults, labels, method, model, name, objective, output, resources, "
    "scheduling, secret_refs, training"
)
CORPUS: dict[str, tuple[str, list[tuple[str, str, str, str]]]] = {
    "unknown part": (
        "method: sft\ntraning: {}",
        [("job.yaml:2", "traning", "there is no field 'traning' here", "did you mean 'training'?")],
    ),
    "part of a part": ("method: sft\nnodes: 2", [("job.yaml:2", "nodes", "there is no field 'nodes' here", "write it under resources")]),
    "unknown field": (
        "method: sft\ntraining:\n  seed: 1\n  batchsize: 4",
        [("job.yaml:4", "spec.training.batchsize", "there is no field 'batchsize' here", "did you mean 'batch_size'?")],
    ),
    "range": (
        "method: sft\ntraining: {batch_size: 0}",
        [("job.yaml:2", "spec.training.batch_size", "0 is out of range", "give a value in [1, 65536]")],
    ),
    "int32": (
        "method: sft\ntraining: {batch_size: 99999999999}",
        [("job.yaml:2", "spec.training.batch_size", "99999999999 is out of range", "give a smaller number")],
    ),
    "fraction": (
        "method: sft\ntraining:\n  batch_size: 1.5",
        [("job.yaml:3", "spec.training.batch_size", "'1.5' is not a whole number", "give a whole number")],
    ),
    "quoted number": (
        "method: sft\ntraining: {batch_size: '8'}",
        [("job.yaml:2", "spec.training.batch_size", "'8' is not a whole number", "give a whole number")],
    ),
    "nan": (
        "method: sft\ntraining: {max_grad_norm: .nan}",
        [("job.yaml:2", "spec.training.max_grad_norm", "'.nan' is not a finite number", "give a number")],
    ),
    "yes": (
        "method: sft\ntraining: {gradient_checkpointing: yes}",
        [("job.yaml:2", "spec.training.gradient_checkpointing", "'yes' is not true or false", "write true or false")],
    ),
    "enum": (
        "method: sft\ntraining: {packing: pakced}",
        [("job.yaml:2", "spec.training.packing", "'pakced' is not a value of this field", "did you mean 'packed'?")],
    ),
    "duration": (
        "method: sft\nfaults: {hang_timeout: 3 weeks}",
        [("job.yaml:2", "spec.faults.hang_timeout", "'3 weeks' is not a duration", "write seconds, or for example 30s, 5m, 1h30m")],
    ),
    "empty": ("method: sft\ntraining:\n", [("job.yaml:2", "spec.training", "has no value", "give a value, or remove the key")]),
    "list for a mapping": (
        "method: sft\ntraining: [1]",
        [("job.yaml:2", "spec.training", "a list is not a mapping", "write the fields of this part below it, or remove the key")],
    ),
    "mapping for a value": (
        "method: sft\ntraining: {seed: {a: 1}}",
        [("job.yaml:2", "spec.training.seed", "a mapping is not a single value", "give one value")],
    ),
    "two budgets": (
        "method: sft\ntraining:\n  epochs: 1\n  steps: 2",
        [("job.yaml:4", "spec.training.steps", "is given beside epochs", "keep one of epochs, steps, tokens")],
    ),
    "duplicate": (
        "method: sft\nseed: 1\nmethod: sft",
        [("job.yaml:3", "", "the key 'method' stands twice in this mapping, first in line 1", "remove one of the two")],
    ),
    "tag": (
        "method: !!python/name:os.system x",
        [("job.yaml:1", "", "the tag tag:yaml.org,2002:python/name:os.system is not allowed here", "remove the tag")],
    ),
    "merge": ("a: &a {x: 1}\nb:\n  <<: *a", [("job.yaml:3", "", "merge keys (<<) are not part of YAML 1.2", "write the fields out")]),
    "name": (
        "name: My Job\nmethod: sft",
        [("job.yaml:1", "job_id", "'My Job' is not a job name", NAME_FIX)],
    ),
    "twins": (
        "name: a\nmethod: sft\n---\nname: a\nmethod: sft",
        [("job.yaml:4", "job_id", "the name 'a' stands twice in this file", "rename one")],
    ),
    "no method": ("data: cwd:a", [("job.yaml:1", "spec.method", "is required", "set method")]),
    "address": (
        "method: sft\nmodel: file:///x",
        [
            (
                "job.yaml:2",
                "spec.model.uri",
                "'file:///x': addresses with file:// are not allowed here",
                "use upload://, job://, hf:// or ROOT:path; the CLI uploads local paths",
            )
        ],
    ),
    "inexact": (
        "method: {name: sft, params: {a: 9007199254740993}}",
        [
            (
                "job.yaml:1",
                "spec.method.params.a",
                "9007199254740993 is too large to be carried exactly",
                "give a number up to 2^53, or quote it",
            )
        ],
    ),
    "beside spec": (
        "spec: {method: sft}\ntraining: {seed: 1}",
        [("job.yaml:2", "training", "stands beside spec", "move training below spec, or remove the key spec")],
    ),
    "scalar document": (
        "just text",
        [("job.yaml:1", "", "'just text' is not a job", "write fields such as `name:`, `method:` and `data:`")],
    ),
    "several": (
        "name: A\ntraining: {packing: x}\nmethod: sft\nfoo: 1",
        [
            ("job.yaml:1", "job_id", "'A' is not a job name", NAME_FIX),
            ("job.yaml:2", "spec.training.packing", "'x' is not a value of this field", "one of auto, length_grouped, off, packed"),
            ("job.yaml:4", "foo", "there is no field 'foo' here", PARTS),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CORPUS)
def test_refused_with_line_and_fix(case: str) -> None:
    """Each mistake is told with file and line, field, what is wrong, and how to fix it."""
    text, expected = CORPUS[case]

    assert expected == refused(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [("a: [1\nb: 2", "job.yaml:2"), ("a: b: c", "job.yaml:1"), ("a: *nobody", "job.yaml:1"), ("\ta: 1", "job.yaml:1")],
)
def test_what_is_not_yaml_is_told_with_its_line(text: str, where: str) -> None:
    """A syntax error names the line."""
    with pytest.raises(SpecError, match="not YAML") as caught:
        load_text(text, file="job.yaml")

    assert where == caught.value.where


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]",
        "a: " + "[" * 200 + "]" * 200,
        "a: " + "[" * 20_000,
        "a: " + "x" * (1 << 20),
    ],
    ids=["bomb", "cycle", "deep", "very deep", "long"],
)
def test_documents_have_limits(text: str) -> None:
    """Alias bombs, cycles, deep nesting and large texts end in an error at once."""
    with pytest.raises(SpecError, match="the document"):
        load_text(text, file="job.yaml")


def test_anchors_within_the_limits_work() -> None:
    """An alias repeats a value."""
    document = load_one("method: &m sft\nadapter: {name: *m}")

    assert "sft" == document.job.spec.adapter.name


def test_a_missing_local_file_suggests_its_neighbour(tmp_path: Path) -> None:
    """A path that does not exist is told with the absolute path and the nearest name."""
    (tmp_path / "train.jsonl").write_text("{}")

    assert [
        ("job.yaml:2", "spec.data.sources[0].uri", f"there is no file or directory {tmp_path}/trian.jsonl", "did you mean 'train.jsonl'?")
    ] == refused("method: sft\ndata: trian.jsonl", base_dir=tmp_path)


def test_a_model_file_is_refused(tmp_path: Path) -> None:
    """A model is a directory."""
    (tmp_path / "model.safetensors").write_text("")

    [(_, field, description, _)] = refused("method: sft\nmodel: model.safetensors", base_dir=tmp_path)

    assert ("spec.model.uri", f"{tmp_path}/model.safetensors is not a directory") == (field, description)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    """`submit sf.yaml` beside `sft.yaml` says so."""
    (tmp_path / "sft.yaml").write_text(MINIMAL)

    with pytest.raises(SpecError) as caught:
        load_file(tmp_path / "sf.yaml")

    assert "did you mean 'sft.yaml'?" == caught.value.fix


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    """A file in another encoding is told with the line of the first wrong byte."""
    file = tmp_path / "x.yaml"
    file.write_bytes(b"method: sft\n# caf\xe9\n")

    with pytest.raises(SpecError) as caught:
        load_file(file)

    assert f"{file}:2" == caught.value.where


def test_an_empty_file_holds_no_job() -> None:
    """Nothing but comments is an error with a fix."""
    with pytest.raises(SpecError, match="there is no job in it"):
        load_text("# nothing\n", file="job.yaml")
