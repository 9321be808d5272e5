"""Resource names."""

from __future__ import annotations

import random
import uuid

import pytest

from luthier.controller.service.names import (
    artifact_of,
    check_job_id,
    check_request_id,
    generate_job_id,
    job_of,
    new_uid,
)
from luthier.errors import SpecError


def test_names_are_parsed() -> None:
    """The last segment, or job and artifact."""
    assert "tune-1" == job_of("jobs/tune-1")
    assert ("a", "result") == artifact_of("jobs/a/artifacts/result")


@pytest.mark.parametrize("name", ["", "jobs", "jobs/", "/jobs/a", "jobs/a/b", "queues/a", "jobs/a\n", "jobs/" + "x" * 200])
def test_other_forms_are_refused(name: str) -> None:
    """The violation names the field that was asked for."""
    with pytest.raises(SpecError) as caught:
        job_of(name, "parent")

    assert ["parent"] == [violation.field for violation in caught.value.violations]


def test_job_ids() -> None:
    """Lower case, beginning with a letter, at most 63 characters."""
    for good in ("a", "a-1", "x" * 63):
        check_job_id(good)
    for bad in ("", "A", "1a", "a-", "-a", "a_b", "x" * 64, "a b", "a\n"):
        with pytest.raises(SpecError):
            check_job_id(bad)


def test_request_ids_are_uuid4() -> None:
    """Any version-4 UUID in its usual form, nothing else."""
    check_request_id(str(uuid.uuid4()))
    check_request_id(str(uuid.uuid4()).upper())
    for bad in ("x", str(uuid.uuid1()), uuid.uuid4().hex, "{" + str(uuid.uuid4()) + "}"):
        with pytest.raises(SpecError):
            check_request_id(bad)


@pytest.mark.parametrize("method", ["sft", "3d_thing", "a" * 60, "___", "Half-FT"])
def test_generated_names_are_valid(method: str) -> None:
    """Whatever the method is called; the same seed makes the same name."""
    name = generate_job_id(method, random.Random(1))
    check_job_id(name)

    assert name == generate_job_id(method, random.Random(1))
    assert name != generate_job_id(method, random.Random(2))


def test_uids_fit_everywhere() -> None:
    """Lower-case letters and digits, one letter first, all different."""
    uids = {new_uid(random.Random(n)) for n in range(100)}

    assert 100 == len(uids)
    assert all(uid.isalnum() and uid[0] == "j" and len(uid) == 21 and uid == uid.lower() for uid in uids)
