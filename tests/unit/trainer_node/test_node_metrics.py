"""The node's catalogue and what it shows."""

from __future__ import annotations

import re

import pytest

from luthier.trainer_node.metrics import CATALOGUE, NodeMetrics


def node() -> NodeMetrics:
    """Metrics of a node of job `tune`."""
    return NodeMetrics({"tuning_job": "tune", "node": "0"})


def test_gauges_are_set_counters_added_histograms_observed() -> None:
    """The same message twice: the gauge has the newest value, the counter the sum, the histogram both."""
    metrics = node()
    for loss in (2.0, 1.5):
        unknown = metrics.receive(
            {"luthier_train_loss": loss, "luthier_train_tokens_total": 100, "luthier_train_step_duration_seconds": 0.03}
        )
        assert [] == unknown
    text = metrics.exposition().decode()

    assert 'luthier_train_loss{node="0",tuning_job="tune"} 1.5' in text
    assert 'luthier_train_tokens_total{node="0",tuning_job="tune"} 200.0' in text
    assert 'luthier_train_step_duration_seconds_bucket{le="0.04",node="0",tuning_job="tune"} 2.0' in text
    assert 'luthier_train_step_duration_seconds_bucket{le="0.02",node="0",tuning_job="tune"} 0.0' in text
    assert 'luthier_train_step_duration_seconds_count{node="0",tuning_job="tune"} 2.0' in text


def test_labels_are_written_into_the_name() -> None:
    """A declared label is taken, another one is not."""
    metrics = node()

    assert [] == metrics.receive({'luthier_train_gpu_memory_bytes{kind="allocated"}': 7})
    bad = {'luthier_train_gpu_memory_bytes{colour="red"}': 1.0, "luthier_train_gpu_memory_bytes": 1.0, "nonsense": 1.0, "a b": 1.0}
    assert list(bad) == metrics.receive(bad)
    assert 'luthier_train_gpu_memory_bytes{kind="allocated",node="0",tuning_job="tune"} 7.0' in metrics.exposition().decode()


def test_methods_have_gauges_of_their_own() -> None:
    """Names with the prefix of methods need no declaration."""
    metrics = node()

    assert [] == metrics.receive({"luthier_method_balance": 0.25})
    assert 'luthier_method_balance{node="0",tuning_job="tune"} 0.25' in metrics.exposition().decode()


def test_the_number_of_series_is_bounded() -> None:
    """A label that takes ever new values does not fill the memory."""
    metrics = node()
    for index in range(2000):
        metrics.record("luthier_train_restarts_total", 1, reason=f"r{index}")

    assert metrics.exposition().decode().count("luthier_train_restarts_total{") <= 500


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: object) -> None:
    """Prefix, base units, `_total` for counters alone, help text, no label that other systems use."""
    name, kind, labels = metric.name, metric.kind, metric.labels  # type: ignore[attr-defined]

    assert re.fullmatch(r"luthier_(train|node)_[a-z_]+", name)
    assert (kind == "counter") == name.endswith("_total")
    assert not {"job", "instance", "step", "path"} & set(labels)
    assert metric.help.endswith(".")  # type: ignore[attr-defined]


def test_the_minimum_catalogue_is_there() -> None:
    """What dashboards and alerts of every installation may rely on."""
    wanted = (
        "steps_total tokens_total step_duration_seconds phase_seconds_total loss eval_loss learning_rate grad_norm mfu_ratio "
        "tokens_per_second "
        "gpu_memory_bytes checkpoint_save_seconds checkpoint_last_success_timestamp_seconds checkpoint_bytes restarts_total "
        "nonfinite_steps_total wall_seconds_total"
    )

    assert {f"luthier_train_{name}" for name in wanted.split()} <= {metric.name for metric in CATALOGUE}
