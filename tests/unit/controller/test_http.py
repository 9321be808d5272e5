"""Metrics and health over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from luthier.controller.http import HttpServer, Pulse, SdTarget
from luthier.controller.metrics import ControllerMetrics
from luthier.errors import Unavailable


@dataclass
class Served:
    """A server on a free port with a clock of its own."""

    now: float = 0.0
    targets: list[SdTarget] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pulse = Pulse(lambda: self.now)
        self.metrics = ControllerMetrics()
        self.server = HttpServer("127.0.0.1", 0, self.metrics.registry, self.pulse, lambda: self.targets)
        self.server.start()

    def get(self, path: str, *, method: str = "GET") -> tuple[int, str]:
        """Status and body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.server.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def served() -> Iterator[Served]:
    """A running server."""
    made = Served()
    yield made
    made.server.close()


def test_health_follows_the_event_loop(served: Served) -> None:
    """Healthy while the loop turns, ready when it says so and turns."""
    assert [served.get(p)[0] for p in ("/healthz", "/readyz")] == [200, 503]
    served.pulse.ready = True
    assert served.get("/readyz") == (200, "ok\n")
    served.now = 60.0
    assert [served.get(p)[0] for p in ("/healthz", "/readyz")] == [503, 503]
    served.pulse.beat()
    assert [served.get(p)[0] for p in ("/healthz", "/readyz")] == [200, 200]


def test_metrics_are_prometheus_text(served: Served) -> None:
    """Every metric has help and a name of ours or of gRFC A66, and none has a label that could grow without bound."""
    status, text = served.get("/metrics")
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}

    assert status == 200
    assert all(name.startswith(("luthier_", "grpc_server_")) for name in names)
    labels = {label for collector in served.metrics.registry.collect() for sample in collector.samples for label in sample.labels}
    assert labels <= {
        "state",
        "queue",
        "reason",
        "method",
        "kind",
        "use",
        "section",
        "grpc_method",
        "grpc_status",
        "version",
        "python",
        "le",
    }


def test_discovery_lists_targets(served: Served) -> None:
    """Prometheus HTTP discovery: a list of targets with labels."""
    served.targets = [{"targets": ["127.0.0.1:9"], "labels": {"tuning_job": "tune", "node": "0"}}]

    assert json.loads(served.get("/sd")[1]) == served.targets


def test_anything_else_is_refused(served: Served) -> None:
    """Unknown paths are 404 with what there is, other methods 405."""
    assert served.get("/")[0] == 404
    assert "/metrics" in served.get("/x")[1]
    assert served.get("/metrics", method="POST")[0] == 405


def test_a_port_in_use_says_what_to_do(served: Served) -> None:
    """The error names the port and the flag."""
    with pytest.raises(Unavailable, match="--http-listen"):
        HttpServer("127.0.0.1", served.server.port, served.metrics.registry, served.pulse, list)
