"""`job://` dependencies: when they are met, what they are pinned to, and when they never can be."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.controller.store.api import Reader
from luthier.controller.store.records import JobRecord, JobState

__all__ = ["broken_dependency", "pinned_dependencies", "unmet_dependency"]

RESULT = "result"
"""Name of the artifact that a job's result is stored under."""


def _needed(reader: Reader, job: JobRecord, dependency: Mapping[str, str]) -> JobRecord | None:
    uid = dependency.get("uid", "")
    if uid:
        found = reader.job(uid)
        return found if found is not None and found.tenant == job.tenant else None
    return reader.job_named(job.tenant, dependency["job"].removeprefix("jobs/"))


def broken_dependency(reader: Reader, job: JobRecord) -> str:
    """Why the job can never start: a needed job failed, was cancelled or deleted, or lacks the artifact; "" while it can."""
    for dependency in job.dependencies:
        name = dependency["job"].removeprefix("jobs/")
        needed = _needed(reader, job, dependency)
        if needed is None:
            return f"the job {name} that this one needs was deleted; submit it again, then retry this one"
        if needed.state in (JobState.FAILED, JobState.CANCELLED):
            verb = "failed" if needed.state == JobState.FAILED else "was cancelled"
            return f"the job {name} that this one needs {verb}; retry {name}, then retry this one"
        if needed.state == JobState.SUCCEEDED:
            wanted = dependency.get("artifact") or RESULT
            names = sorted(a.name for a in reader.artifacts(needed.uid))
            if wanted not in names:
                return f"the job {name} made no artifact {wanted!r}; it made {', '.join(names) or 'none'}"
    return ""


def unmet_dependency(reader: Reader, job: JobRecord) -> str:
    """Which needed job has not ended yet; "" when none is left."""
    waits = []
    for dependency in job.dependencies:
        needed = _needed(reader, job, dependency)
        if needed is not None and needed.state != JobState.SUCCEEDED:
            waits.append(needed.name)
    return f"waits for {', '.join(dict.fromkeys(waits))}" if waits else ""


def pinned_dependencies(reader: Reader, job: JobRecord) -> tuple[dict[str, str], ...]:
    """The dependencies with uid, digest and path of what they have become; all of them are met."""
    pinned = []
    for dependency in job.dependencies:
        needed = _needed(reader, job, dependency)
        assert needed is not None
        wanted = dependency.get("artifact") or RESULT
        artifact = next(a for a in reader.artifacts(needed.uid) if a.name == wanted)
        pinned.append({**dependency, "uid": needed.uid, "digest": artifact.digest, "path": artifact.path})
    return tuple(pinned)
