"""What a job's record says, read the same way by the asynchronous and the synchronous handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.v1 import job_pb2

__all__ = ["ENDED", "JobRecord", "job_id_of", "job_name", "state_name"]

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
"""Terminal states."""


def job_name(name: str) -> str:
    """`base` -> `jobs/base`; a resource name stays itself."""
    return name if name.startswith("jobs/") else f"jobs/{name}"


def job_id_of(name: str) -> str:
    """`jobs/base` -> `base`."""
    return name.rpartition("/")[2]


def state_name(job: job_pb2.Job) -> str:
    """The state as its word, for example `RUNNING`."""
    return str(job_pb2.Job.State.Name(job.state))


class JobRecord:
    """The newest record that a handle has seen; `refresh()` reads it again."""

    @property
    def pb(self) -> job_pb2.Job:
        """The record as the server sent it."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The job's name, without `jobs/`."""
        return job_id_of(self.pb.name)

    @property
    def uid(self) -> str:
        """The identity that outlives the name."""
        return self.pb.uid

    @property
    def state(self) -> str:
        """QUEUED, STARTING, RUNNING, PAUSING, PAUSED, CANCELLING, SUCCEEDED, FAILED or CANCELLED."""
        return state_name(self.pb)

    @property
    def done(self) -> bool:
        """True in a terminal state."""
        return self.state in ENDED

    @property
    def result(self) -> job_pb2.Result | None:
        """What came out; None before success."""
        return self.pb.result if self.pb.HasField("result") else None

    @property
    def failure(self) -> job_pb2.Failure | None:
        """Why it failed; None otherwise."""
        return self.pb.failure if self.pb.HasField("failure") else None

    @property
    def labels(self) -> Mapping[str, str]:
        """The job's labels."""
        return self.pb.labels

    def to_dict(self) -> dict[str, Any]:
        """The record in the proto JSON mapping, with proto field names."""
        from google.protobuf import json_format

        plain: dict[str, Any] = json_format.MessageToDict(self.pb, preserving_proto_field_name=True)
        return plain

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state}>"
