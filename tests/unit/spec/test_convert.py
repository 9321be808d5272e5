"""Protos to validated models and back."""

from __future__ import annotations

import os
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.errors import SpecError
from luthier.spec import convert, models
from luthier.spec.convert import from_plain, spec_from_proto, spec_to_proto, to_plain
from luthier.v1 import job_pb2, spec_pb2

EXAMPLES = int(os.environ.get("LUTHIER_SPEC_EXAMPLES", "150"))

# --- valid specifications ------------------------------------------------------------------------------------------------

_name = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
_nanos = st.integers(1, 10**17).map(lambda n: n / 10**9)
_json = st.recursive(
    # Adding zero makes -0.0 a 0.0: JSON's whole numbers have no signed zero.
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
    | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_name, inner, max_size=3),
    max_leaves=8,
)
_params = st.dictionaries(_name, _json, max_size=4)


def _floats(low: float, high: float, **bounds: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, **bounds)


_sources = st.lists(
    st.builds(
        models.DataSource,
        uri=st.just("cwd:a.jsonl"),
        format=st.sampled_from(["auto", "jsonl", "json", "parquet", "csv", "text"]),
        shape=st.sampled_from(["auto", "prompt_completion", "messages", "alpaca", "text"]),
        weight=_floats(0, 1000, exclude_min=True),
        max_rows=st.integers(0, 2**62),
        columns=st.dictionaries(_name, _text, max_size=3),
    ),
    max_size=3,
).map(tuple)

_training = st.builds(
    lambda budget, **rest: models.TrainingSpec(**{**rest, **budget}),
    budget=st.one_of(
        st.just({}),
        st.builds(lambda v: {"epochs": v}, _floats(0, 10000, exclude_min=True)),
        st.builds(lambda v: {"steps": v}, st.integers(1, 10**8)),
        st.builds(lambda v: {"tokens": v}, st.integers(1, 10**15)),
    ),
    batch_size=st.integers(8, 65536),
    micro_batch_size=st.none() | st.integers(1, 8),
    max_length=st.integers(8, 1048576),
    packing=st.sampled_from(["auto", "off", "length_grouped", "packed"]),
    optimizer=st.builds(
        models.OptimizerSpec, learning_rate=st.none() | _floats(0, 10, exclude_min=True), beta1=_floats(0, 1, exclude_max=True)
    ),
    schedule=st.builds(
        models.ScheduleSpec, name=st.sampled_from(["cosine", "linear", "constant"]), warmup_steps=st.none() | st.integers(0, 10**8)
    ),
    max_grad_norm=_floats(0, 1e6),
    seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    zero_stage=st.none() | st.integers(0, 3),
    engine=st.sampled_from(["auto", "deepspeed", "plain"]),
    gradient_checkpointing=st.booleans(),
    threads_per_rank=st.none() | st.integers(1, 1024),
)

SPECS = st.builds(
    models.JobSpec,
    model=st.none()
    | st.builds(models.ModelSpec, uri=st.just("job://base"), tokenizer_uri=_text, roles=st.dictionaries(_name, _text, max_size=2)),
    data=st.builds(
        models.DataSpec,
        sources=_sources,
        validation=_sources,
        validation_fraction=_floats(0, 0.5),
        on_bad_row=st.sampled_from(["fail", "skip"]),
        overlong=st.sampled_from(["auto", "truncate_right", "truncate_left", "drop", "split"]),
        system_prompt=st.none() | _text,
        recipes=st.lists(st.builds(models.DataRecipeSpec, name=_name, params=_params), max_size=2).map(tuple),
    ),
    method=st.builds(models.MethodSpec, name=_name, version=_text, params=_params),
    objective=st.none() | st.builds(models.ObjectiveSpec, name=_name, params=_params),
    adapter=st.none() | st.builds(models.AdapterSpec, name=_name, params=_params),
    training=_training,
    resources=st.builds(
        models.ResourceSpec,
        nodes=st.builds(lambda a, b: models.NodeRange(min=min(a, b), max=max(a, b)), st.integers(1, 1024), st.integers(1, 1024)),
        processes_per_node=st.integers(1, 64),
        accelerator=st.sampled_from(["auto", "cpu", "cuda"]),
        cpu=_floats(0, 1024),
        memory_bytes=st.integers(0, 2**62),
    ),
    scheduling=st.builds(models.SchedulingSpec, queue=_name, priority=st.integers(-1000, 1000), deadline=st.none() | _nanos),
    faults=st.builds(
        models.FaultSpec,
        infra_retries=st.integers(0, 1000),
        checkpoint=st.builds(models.CheckpointPolicy, every_steps=st.integers(0, 10**8), every=_nanos),
        hang_timeout=st.integers(10**9, 86400 * 10**9).map(lambda n: n / 10**9),
        non_finite=st.sampled_from(["skip", "rewind", "stop"]),
    ),
    output=st.builds(models.OutputSpec, uri=_text, form=st.sampled_from(["auto", "adapter", "merged"])),
    evaluation=st.builds(
        models.EvaluationSpec,
        every_steps=st.integers(0, 10**6),
        max_rows=st.integers(0, 10**6),
        early_stop=st.none() | st.builds(models.EarlyStop, patience=st.integers(1, 1000), min_delta=_floats(0, 100)),
    ),
    env=st.dictionaries(
        st.from_regex(r"[A-Z]{3}_[A-Z0-9_]{0,8}", fullmatch=True).filter(lambda n: not models.ENV_REFUSED.match(n)), _text, max_size=3
    ),
    secret_refs=st.lists(st.builds(models.SecretRef, env=_name, secret=_text.filter(bool)), max_size=2).map(tuple),
)

# --- tests -----------------------------------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS)
def test_round_trip_is_exact(spec: models.JobSpec) -> None:
    """Every valid specification survives model -> proto -> bytes -> proto -> model unchanged."""
    wire = spec_to_proto(spec).SerializeToString()

    assert spec == spec_from_proto(spec_pb2.JobSpec.FromString(wire))


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS)
def test_plain_round_trip_is_exact(spec: models.JobSpec) -> None:
    """`from_plain(to_plain(message))` is the message, for every specification."""
    message = spec_to_proto(spec)

    assert message == from_plain(to_plain(message), spec_pb2.JobSpec)


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_with_paths(data: bytes) -> None:
    """Whatever parses as a proto is either a valid model or a `SpecError` whose violations all have a path below spec."""
    message = spec_pb2.JobSpec()
    try:
        message.ParseFromString(data)
    except Exception:
        return
    refused: SpecError | None = None
    try:
        spec_from_proto(message)
    except SpecError as error:
        refused = error

    assert refused is None or refused.violations
    assert refused is None or all(v.field.startswith("spec") and v.description for v in refused.violations)


def _violations(pb: spec_pb2.JobSpec) -> list[tuple[str, str, str]]:
    with pytest.raises(SpecError) as caught:
        spec_from_proto(pb)
    return [(v.field, v.description, v.fix) for v in caught.value.violations]


def test_all_violations_come_together() -> None:
    """One violation per problem, each with its proto path, value and range."""
    pb = spec_pb2.JobSpec(
        method=spec_pb2.Method(name="sft"),
        data=spec_pb2.Data(sources=[spec_pb2.DataSource(uri="cwd:a", format="jsom"), spec_pb2.DataSource(weight=0)]),
        training=spec_pb2.Training(batch_size=0, packing=99),  # type: ignore[arg-type]
        resources=spec_pb2.Resources(nodes=spec_pb2.NodeRange(min=3, max=2)),
    )

    assert [
        ("spec.training.packing", "99 is not a value of Packing", "one of auto, off, length_grouped, packed"),
        ("spec.data.sources[0].format", "'jsom' is not a value of this field", "did you mean 'json'?"),
        ("spec.data.sources[1].uri", "is required", "set uri"),
        ("spec.data.sources[1].weight", "0.0 is out of range", "give a value in (0, 1000]"),
        ("spec.training.batch_size", "0 is out of range", "give a value in [1, 65536]"),
        ("spec.resources.nodes.min", "min 3 is larger than max 2", ""),
    ] == _violations(pb)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_numbers_are_refused(value: float) -> None:
    """NaN and infinities are refused in fields and inside parameters, with the path of each."""
    pb = spec_pb2.JobSpec(method=spec_pb2.Method(name="sft"), training=spec_pb2.Training(max_grad_norm=value))
    pb.method.params.update({"a": {"b": [1, value]}})

    assert ["spec.method.params.a.b[1]", "spec.training.max_grad_norm"] == [v[0] for v in _violations(pb)]


def test_integral_doubles_of_a_struct_become_ints() -> None:
    """A Struct holds doubles: 8.0 is read as 8, 8.5 stays."""
    struct = Struct()
    struct.update({"rank": 8, "alpha": 8.5, "list": [1, 2.5], "none": None, "flag": True})

    plain = convert.struct_to_plain(struct)

    assert {"rank": 8, "alpha": 8.5, "list": [1, 2.5], "none": None, "flag": True} == plain
    assert (int, float, bool) == (type(plain["rank"]), type(plain["alpha"]), type(plain["flag"]))


def _deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"a": "x" * (convert.MAX_TEXT + 1)}, "has 65537 characters"),
        (_deep(convert.MAX_PARAM_DEPTH + 1), "is nested deeper than 16 levels"),
        ({"a": [0] * convert.MAX_PARAM_VALUES}, "has too many values"),
        ({"k" * 300: 1}, "a key has 300 characters"),
    ],
    ids=["text", "depth", "values", "key"],
)
def test_parameters_have_limits(params: dict[str, Any], said: str) -> None:
    """Long texts, deep nesting, many values and long keys are refused."""
    pb = spec_pb2.JobSpec(method=spec_pb2.Method(name="sft"))
    pb.method.params.update(params)

    assert [said] == [description for _, description, _ in _violations(pb)]


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [(Duration(seconds=90), 90.0), (Duration(nanos=1), 1e-9), (Duration(seconds=1, nanos=100_000_000), 1.1), (Duration(seconds=-1), -1.0)],
    ids=str,
)
def test_durations_are_exact(duration: Duration, seconds: float) -> None:
    """Durations become the nearest float of seconds and come back the same."""
    assert seconds == convert.duration_to_seconds(duration)
    assert duration == convert.seconds_to_duration(seconds)


def test_an_invalid_duration_is_a_violation() -> None:
    """Seconds and nanos of unlike sign are refused with the field's path."""
    pb = spec_pb2.JobSpec(method=spec_pb2.Method(name="sft"), faults=spec_pb2.Faults(hang_timeout=Duration(seconds=1, nanos=-1)))

    assert ["spec.faults.hang_timeout"] == [v[0] for v in _violations(pb)]


def test_unset_and_unspecified_take_the_default() -> None:
    """An absent field and an enum at UNSPECIFIED mean the same default."""
    pb = spec_pb2.JobSpec(method=spec_pb2.Method(name="sft"), training=spec_pb2.Training(packing=spec_pb2.Training.PACKING_UNSPECIFIED))

    assert models.JobSpec(method=models.MethodSpec(name="sft")) == spec_from_proto(pb)


def test_plain_values_keep_wide_integers() -> None:
    """`to_plain` writes 64-bit integers as numbers, also inside maps."""
    message = job_pb2.Result(verdicts={"ok": 2**60}, metrics={"loss": 1.5})
    message.report.update({"rows": 3})

    plain = to_plain(message)

    assert {"metrics": {"loss": 1.5}, "verdicts": {"ok": 2**60}, "report": {"rows": 3}} == plain
    assert message == from_plain(plain, job_pb2.Result)


def test_from_plain_refuses_what_does_not_fit() -> None:
    """An unknown field is a `SpecError`, not a lost value."""
    with pytest.raises(SpecError, match=r"not a luthier\.v1\.Result"):
        from_plain({"nonsense": 1}, job_pb2.Result)
