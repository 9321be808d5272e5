"""Every metric of the controller, declared once. Labels are bounded sets; per-job series come from the nodes."""

from __future__ import annotations

import platform
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from luthier._version import __version__

__all__ = ["ControllerMetrics"]

_QUEUE_WAIT = tuple(2.5 * 2**i for i in range(-1, 14))
_RPC = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class ControllerMetrics:
    """One registry of its own, so that tests and several controllers in one process do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.jobs = Gauge("luthier_jobs", "Jobs by state and queue; finished jobs are not counted.", ["state", "queue"], registry=registry)
        self.jobs_finished = Counter(
            "luthier_jobs_finished_total",
            "Jobs that ended, by state, cause of failure (empty unless FAILED) and method.",
            ["state", "reason", "method"],
            registry=registry,
        )
        self.queue_wait = Histogram(
            "luthier_queue_wait_seconds", "Time from entry into the queue to admission.", ["queue"], buckets=_QUEUE_WAIT, registry=registry
        )
        self.queue_slots = Gauge("luthier_queue_slots", "Slots of a queue by kind and use.", ["queue", "kind", "use"], registry=registry)
        self.schedule = Histogram("luthier_schedule_duration_seconds", "Duration of an admission pass.", buckets=_SHORT, registry=registry)
        self.reconcile = Histogram("luthier_reconcile_duration_seconds", "Duration of one job's pass.", buckets=_SHORT, registry=registry)
        self.reconcile_errors = Counter(
            "luthier_reconcile_errors_total", "Passes that raised, by class of the error.", ["reason"], registry=registry
        )
        self.watch_restarts = Counter(
            "luthier_watch_restarts_total", "Times that the executor's stream of wake-ups had to be opened again.", registry=registry
        )
        self.commit = Histogram(
            "luthier_db_commit_duration_seconds", "Duration of a group commit of the database.", buckets=_SHORT, registry=registry
        )
        self.leader = Gauge("luthier_leader", "1 while this controller may write to the database.", registry=registry)
        self.heartbeat_age = Gauge(
            "luthier_heartbeat_age_seconds", "Longest time that any attached node has been silent; 0 without nodes.", registry=registry
        )
        self.nodes_attached = Gauge("luthier_nodes_attached", "Nodes with an open stream.", registry=registry)
        self.facts = Counter("luthier_facts_total", "Facts of nodes that were stored, by kind.", ["kind"], registry=registry)
        self.sections = Counter(
            "luthier_section_seconds_total",
            "Time that nodes spent by section of their work, over all jobs.",
            ["section"],
            registry=registry,
        )
        self.grpc_duration = Histogram(
            "grpc_server_call_duration_seconds",
            "End-to-end time of RPCs (gRFC A66); streams count until they end.",
            ["grpc_method", "grpc_status"],
            buckets=_RPC,
            registry=registry,
        )
        self.build = Gauge("luthier_build_info", "Constant 1; labels tell the build.", ["version", "python"], registry=registry)
        self.build.labels(version=__version__, python=platform.python_version()).set(1)

    def on_heartbeat_age(self, ask: Callable[[], float]) -> None:
        """Have the age computed when the metrics are read."""
        self.heartbeat_age.set_function(ask)
