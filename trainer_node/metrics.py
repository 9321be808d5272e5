"""Every metric of a node, declared once, and their present values.

Ranks send numbers by metric name (`RankChannel.gauges`): a gauge is set, a counter is increased by the number, a histogram observes it.
A label is written into the name, `luthier_train_gpu_memory_bytes{kind="allocated"}`. Rank 0 sends what is global (loss, rate, steps),
every rank what is its own (its tokens, its memory). Methods may send gauges of their own named `luthier_method_*`. prometheus_client is
imported by the first scrape, so that it costs nothing at the start of a node.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

__all__ = ["CATALOGUE", "METHOD_PREFIX", "Metric", "NodeMetrics"]

METHOD_PREFIX = "luthier_method_"

_STEP_BUCKETS = tuple(0.01 * 2**i for i in range(14))
_SAVE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_MAX_SERIES = 500
"""Series of one node; more would be a label that is not bounded."""


@dataclass(frozen=True)
class Metric:
    """One metric: its labels beside `tuning_job` and `node`, and bucket bounds for a histogram."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE: tuple[Metric, ...] = (
    Metric("luthier_train_steps_total", "counter", "Completed optimiser steps, repeated ones included."),
    Metric("luthier_train_tokens_total", "counter", "Non-padding tokens that the ranks of this node trained on."),
    Metric("luthier_train_step_duration_seconds", "histogram", "Wall time of an optimiser step.", buckets=_STEP_BUCKETS),
    Metric("luthier_train_phase_seconds_total", "counter", "Wall time by kind of the plan's phase.", ("phase",)),
    Metric("luthier_train_section_seconds_total", "counter", "Wall time by what the ranks were doing.", ("section",)),
    Metric("luthier_train_loss", "gauge", "Training loss of the newest logged step."),
    Metric("luthier_train_eval_loss", "gauge", "Newest held-out loss."),
    Metric("luthier_train_learning_rate", "gauge", "Learning rate of the newest logged step."),
    Metric("luthier_train_grad_norm", "gauge", "Global gradient norm before clipping at the newest logged step."),
    Metric("luthier_train_mfu_ratio", "gauge", "Model FLOPs of the newest steps over the device's peak, where the peak is known."),
    Metric("luthier_train_tokens_per_second", "gauge", "Non-padding tokens per second over all ranks."),
    Metric("luthier_train_gpu_memory_bytes", "gauge", "Device memory of this node's ranks.", ("kind",)),
    Metric(
        "luthier_train_checkpoint_save_seconds",
        "histogram",
        "Time to save a checkpoint, from the copy to the manifest.",
        buckets=_SAVE_BUCKETS,
    ),
    Metric("luthier_train_checkpoint_last_success_timestamp_seconds", "gauge", "When the newest checkpoint was committed."),
    Metric("luthier_train_checkpoint_bytes", "gauge", "Size of the newest checkpoint."),
    Metric("luthier_train_restarts_total", "counter", "Ends of ranks that were not asked for, by reason.", ("reason",)),
    Metric("luthier_train_nonfinite_steps_total", "counter", "Steps whose loss or gradient was not finite."),
    Metric("luthier_train_wall_seconds_total", "counter", "Wall time of this node by cause.", ("cause",)),
    Metric("luthier_node_info", "gauge", "1; versions and device of the node.", ("version", "torch", "deepspeed", "device")),
    Metric("luthier_node_ranks", "gauge", "Ranks that run on this node."),
    Metric("luthier_node_rank_silence_seconds", "gauge", "Longest time since a rank's last sign of life."),
    Metric("luthier_node_spooled_facts", "gauge", "Facts that the controller has not acknowledged yet."),
    Metric("luthier_node_attached", "gauge", "1 while the stream to the controller is up."),
)

_BY_NAME = {metric.name: metric for metric in CATALOGUE}
_KEY = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^{}]*)\})?")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="?([^",]*)"?\s*')


@dataclass
class _Histogram:
    counts: list[int]
    sum: float = 0.0


@dataclass(eq=False)  # a collector is told apart by identity
class NodeMetrics:
    """Present values. `fixed` are the labels that every series carries."""

    fixed: Mapping[str, str]
    _values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)
    _histograms: dict[str, dict[tuple[str, ...], _Histogram]] = field(default_factory=dict)
    _methods: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge, increase a counter, or let a histogram observe. Raises KeyError for a name or label that is not declared."""
        metric = _BY_NAME[name]
        if set(labels) != set(metric.labels):
            raise KeyError(f"{name} has labels {metric.labels}, not {tuple(labels)}")
        key = tuple(labels[label] for label in metric.labels)
        if metric.kind == "histogram":
            histogram = self._histograms.setdefault(name, {}).setdefault(key, _Histogram([0] * (len(metric.buckets) + 1)))
            histogram.counts[bisect.bisect_left(metric.buckets, value)] += 1
            histogram.sum += value
            return
        series = self._values.setdefault(name, {})
        if key not in series and sum(map(len, self._values.values())) >= _MAX_SERIES:
            return
        series[key] = series.get(key, 0.0) + value if metric.kind == "counter" else value

    def receive(self, values: Mapping[str, float]) -> list[str]:
        """Take what a rank sent; returns the names that are not declared."""
        unknown = []
        for text, value in values.items():
            match = _KEY.fullmatch(text)
            if match and match[1].startswith(METHOD_PREFIX) and len(self._methods) < _MAX_SERIES:
                self._methods[match[1]] = float(value)
                continue
            try:
                if match is None:
                    raise KeyError(text)
                self.record(match[1], float(value), **dict(_LABEL.findall(match[2] or "")))
            except KeyError:
                unknown.append(text)
        return unknown

    def collect(self) -> Iterator[Family]:
        """For prometheus_client: this object is a collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        names, values = tuple(self.fixed), tuple(self.fixed.values())
        for metric in CATALOGUE:
            labels = names + metric.labels
            if metric.kind == "histogram":
                family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
                for key, histogram in self._histograms.get(metric.name, {}).items():
                    total, buckets = 0, []
                    for bound, count in zip((*metric.buckets, float("inf")), histogram.counts, strict=True):
                        total += count
                        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
                    family.add_metric(values + key, buckets, histogram.sum)
                yield family
                continue
            simple = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(metric.name, metric.help, labels=labels)
            for key, value in self._values.get(metric.name, {}).items():
                simple.add_metric(values + key, value)
            yield simple
        for name, value in self._methods.items():
            gauge = GaugeMetricFamily(name, "Gauge of the job's method.", labels=names)
            gauge.add_metric(values, value)
            yield gauge

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
