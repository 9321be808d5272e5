"""JobService's verbs over real gRPC and real SQLite."""

from __future__ import annotations

import uuid
from typing import Any

import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2

from luthier.controller.service.queues import WaitingInfo
from luthier.controller.store.records import AttemptRecord, CheckpointRecord, GenerationRecord, JobState, NodeRecord
from luthier.errors import FieldViolation
from luthier.v1 import job_pb2, job_service_pb2

pb = job_service_pb2
pytestmark = pytest.mark.asyncio
J = job_pb2.Job


async def to(api: Any, name: str, *states: str, **changes: Any) -> str:
    """Walk a job through states like reconcile would; returns its uid."""
    job = await api.store.read(lambda reader: reader.job_named("tenant-a", name))
    for state in states:
        await api.store.transact(lambda tx, state=state: tx.transition(job.uid, JobState(state), message="test", **changes))
    return str(job.uid)


def create(name: str) -> pb.GetJobRequest:
    return pb.GetJobRequest(name=f"jobs/{name}")


# --- create ----------------------------------------------------------------------------------------------------------


async def test_create_returns_the_defaulted_job(api: Any, make_request: Any) -> None:
    """CreateJob answers with the queued job and every default filled in, and GetJob with the same."""
    request = make_request("base")
    request.job.labels["team"] = "a"
    request.job.display_name = "First"
    job = await api.jobs().CreateJob(request)
    got = await api.jobs().GetJob(create("base"))

    assert ("jobs/base", J.QUEUED, "tenant-a", "1", "First") == (job.name, job.state, job.tenant, job.etag, job.display_name)
    assert {"team": "a"} == dict(job.labels)
    assert (16, "adamw", 3.0, 1) == (
        job.spec.training.batch_size,
        job.spec.training.optimizer.name,
        job.spec.training.epochs,
        job.spec.resources.nodes.max,
    )
    assert job.spec == got.spec
    assert [job_pb2.CauseTime.QUEUED] == [c.cause for c in got.cause_times]


async def test_a_job_without_a_name_gets_a_readable_one(api: Any, make_request: Any) -> None:
    """The server's names are unique and say the method."""
    names = {(await api.jobs().CreateJob(make_request())).name for _ in range(5)}

    assert 5 == len(names)
    assert all(name.startswith("jobs/pretrain-") for name in names)


async def test_create_is_idempotent_by_request_id(api: Any, make_request: Any) -> None:
    """The same request id with the same body is the same job, one event and one row; another body is refused."""
    jobs, request = api.jobs(), make_request(request_id=str(uuid.uuid4()))
    first = await jobs.CreateJob(request)
    second = await jobs.CreateJob(request)
    other = make_request(request_id=request.request_id)
    other.job.labels["x"] = "y"

    assert first.uid == second.uid and first.name == second.name
    assert 1 == len((await jobs.ListJobs(pb.ListJobsRequest())).jobs)
    assert 1 == await api.store.read(lambda reader: reader.revision())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await jobs.CreateJob(other)
    assert grpc.StatusCode.ALREADY_EXISTS == caught.value.code()


async def test_many_retries_at_once_make_one_job(api: Any, make_request: Any) -> None:
    """Concurrent copies of one request are one job."""
    import asyncio

    jobs, request = api.jobs(), make_request(request_id=str(uuid.uuid4()))
    made = await asyncio.gather(*(jobs.CreateJob(request) for _ in range(10)))

    assert 1 == len({job.uid for job in made})


async def test_a_retry_finds_its_job_although_its_inputs_are_gone(start_api: Any, make_request: Any) -> None:
    """What the first call checked is not asked again of a retry."""
    found: list[FieldViolation] = []
    api = await start_api(premises={"inputs": lambda spec: found})
    request = make_request(request_id=str(uuid.uuid4()))
    first = await api.jobs().CreateJob(request)
    found.append(FieldViolation("spec.data.sources[0].uri", "the file is gone", "bring it back"))

    assert first.uid == (await api.jobs().CreateJob(request)).uid


async def test_request_id_reuse_and_form(api: Any, make_request: Any, refusal: Any) -> None:
    """REQUEST_ID_REUSED for another body; a request id that is no UUID4 is a violation; a deleted job is not made again."""
    jobs, request = api.jobs(), make_request("one", request_id=str(uuid.uuid4()))
    await jobs.CreateJob(request)
    reused = await refusal(jobs.CreateJob(make_request("two", request_id=request.request_id)))
    malformed = await refusal(jobs.CreateJob(make_request("two", request_id="once")))
    await jobs.CancelJob(pb.CancelJobRequest(name="jobs/one"))
    await jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/one"))
    gone = await refusal(jobs.CreateJob(request))

    assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == (reused.code, reused.reason)
    assert ("INVALID_ARGUMENT", ["request_id"]) == (malformed.code, malformed.fields)
    assert ("NOT_FOUND", "JOB_NOT_FOUND") == (gone.code, gone.reason)


async def test_a_taken_name_is_refused_with_the_fix(api: Any, make_request: Any, refusal: Any) -> None:
    """JOB_ID_TAKEN, also when only validating, and the fix travels as metadata."""
    await api.jobs().CreateJob(make_request("base"))
    for options in ({}, {"validate_only": True}):
        failure = await refusal(api.jobs().CreateJob(make_request("base", **options)))
        assert ("ALREADY_EXISTS", "JOB_ID_TAKEN", "base") == (failure.code, failure.reason, failure.metadata["job"])
        assert "choose another name" in failure.metadata["fix"]
    assert "jobs/base" == (await api.jobs("secret-b").CreateJob(make_request("base"))).name


async def test_all_violations_come_together_with_paths(api: Any, make_request: Any, refusal: Any) -> None:
    """Wrong fields of several parts are told in one answer, each by its proto path and with its fix."""
    request = make_request()
    request.job.spec.training.batch_size = 0
    request.job.spec.training.optimizer.beta1 = 1.5
    request.job.spec.faults.infra_retries = -1
    request.job.labels["k" * 64] = "v"
    failure = await refusal(api.jobs().CreateJob(request))
    bad = next(d for d in failure.details if isinstance(d, error_details_pb2.BadRequest))

    assert ("INVALID_ARGUMENT", "INVALID_FIELD") == (failure.code, failure.reason)
    assert {
        "spec.training.batch_size",
        "spec.training.optimizer.beta1",
        "spec.faults.infra_retries",
        "job.labels",
    } == set(failure.fields)
    assert all(v.description and v.reason == "INVALID_FIELD" for v in bad.field_violations)


def source(uri: str) -> Any:
    """Changes the address of the training rows."""
    return lambda request: setattr(request.job.spec.data.sources[0], "uri", uri)


SOURCE = "spec.data.sources[0].uri"
WRONG = {
    "method": (lambda r: setattr(r.job.spec.method, "name", "sftt"), "UNKNOWN_METHOD", "spec.method.name"),
    "parameter": (lambda r: r.job.spec.method.params.update({"hidden_sizes": 3}), "INVALID_FIELD", "spec.method.params.hidden_sizes"),
    "dependency": (source("job://nobody"), "UNKNOWN_DEPENDENCY", SOURCE),
    "upload": (source(f"upload://{'0' * 64}/x"), "CONTENT_MISSING", SOURCE),
    "root": (source("other:x.jsonl"), "FORBIDDEN_URI", SOURCE),
    "hub": (source("hf://org/name"), "FORBIDDEN_URI", SOURCE),
    "scheme": (source("file:///etc/passwd"), "FORBIDDEN_URI", SOURCE),
    "traversal": (source("data:../x"), "FORBIDDEN_URI", SOURCE),
    "queue": (lambda r: setattr(r.job.spec.scheduling, "queue", "nigth"), "INVALID_FIELD", "spec.scheduling.queue"),
    "secret": (lambda r: r.job.spec.secret_refs.add(env="HF", secret="hub"), "INVALID_FIELD", "spec.secret_refs[0].secret"),
    "profile": (lambda r: setattr(r.job.spec.resources, "node_profile", "big"), "INVALID_FIELD", "spec.resources.node_profile"),
    "job id": (lambda r: setattr(r, "job_id", "Upper"), "INVALID_FIELD", "job_id"),
    "display name": (lambda r: setattr(r.job, "display_name", "x" * 129), "INVALID_FIELD", "job.display_name"),
    "no job": (lambda r: r.ClearField("job"), "INVALID_FIELD", "job"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_created(api: Any, make_request: Any, refusal: Any, case: str) -> None:
    """Each wrong request names its reason, its field and a fix, and leaves nothing behind."""
    change, reason, field = WRONG[case]
    request = make_request()
    change(request)
    failure = await refusal(api.jobs().CreateJob(request))

    assert ("INVALID_ARGUMENT", reason) == (failure.code, failure.reason)
    assert [field] == failure.fields
    assert failure.metadata["fix"]
    assert 0 == await api.store.read(lambda reader: reader.revision())


async def test_validate_only_changes_nothing(api: Any, make_request: Any) -> None:
    """All checks, the defaulted job, no row, no event, no request id."""
    request = make_request("base", validate_only=True, request_id=str(uuid.uuid4()))
    job = await api.jobs().CreateJob(request)

    assert ("jobs/base", "", 16) == (job.name, job.uid, job.spec.training.batch_size)
    assert 0 == await api.store.read(lambda reader: reader.revision())
    assert None is await api.store.read(lambda reader: reader.find_request("tenant-a", request.request_id))


async def test_inputs_are_looked_at(start_api: Any, make_request: Any, refusal: Any) -> None:
    """What the operator's check finds at the files comes back as violations, and nothing is stored."""
    found = [FieldViolation("spec.data.sources[0].uri", "there is no file world.jsonl below data", "check the path")]
    api = await start_api(premises={"inputs": lambda spec: found})
    failure = await refusal(api.jobs().CreateJob(make_request()))

    assert ("INVALID_FIELD", ["spec.data.sources[0].uri"]) == (failure.reason, failure.fields)
    assert 0 == await api.store.read(lambda reader: reader.revision())


async def test_dependencies_are_pinned_and_make_the_job_wait(api: Any, make_request: Any) -> None:
    """`job://` names resolve in the tenant at submit; the job says that it waits."""
    base = await api.jobs().CreateJob(make_request("base"))
    tune = await api.jobs().CreateJob(make_request("tune", method="sft"))

    assert [("jobs/base", base.uid)] == [(d.job, d.uid) for d in tune.dependencies]
    assert (job_pb2.Waiting.DEPENDENCY, "waits for base") == (tune.waiting.reason, tune.waiting.message)


async def test_too_many_jobs_are_refused(start_api: Any, make_request: Any, refusal: Any) -> None:
    """The quota of unfinished jobs answers RESOURCE_EXHAUSTED with the time to wait."""
    api = await start_api(premises={"max_active_jobs": 2})
    for name in ("a", "b"):
        await api.jobs().CreateJob(make_request(name))
    failure = await refusal(api.jobs().CreateJob(make_request("c")))
    retry = [d for d in failure.details if isinstance(d, error_details_pb2.RetryInfo)]

    assert ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED") == (failure.code, failure.reason)
    assert [60] == [d.retry_delay.seconds for d in retry]


# --- get and list ----------------------------------------------------------------------------------------------------


async def test_other_tenants_see_nothing(api: Any, make_request: Any, refusal: Any) -> None:
    """A job of another tenant is NOT_FOUND for every verb, and not in its list."""
    await api.jobs().CreateJob(make_request("base"))
    other = api.jobs("secret-b")
    for call in (
        other.GetJob(create("base")),
        other.CancelJob(pb.CancelJobRequest(name="jobs/base")),
        other.PauseJob(pb.PauseJobRequest(name="jobs/base")),
        other.DeleteJob(pb.DeleteJobRequest(name="jobs/base")),
        other.ListEvents(pb.ListEventsRequest(parent="jobs/base")),
        other.QueryMetrics(pb.QueryMetricsRequest(name="jobs/base")),
    ):
        failure = await refusal(call)
        assert ("NOT_FOUND", "JOB_NOT_FOUND") == (failure.code, failure.reason)
        assert ["base"] == [d.resource_name for d in failure.details if isinstance(d, error_details_pb2.ResourceInfo)]
    assert [] == list((await other.ListJobs(pb.ListJobsRequest())).jobs)


async def test_list_pages_filters_and_orders(api: Any, make_request: Any, refusal: Any) -> None:
    """Pages by token over real calls; filter and order apply; wrong ones are refused with column and reason."""
    jobs = api.jobs()
    for n in range(7):
        request = make_request(f"j{n}")
        request.job.spec.scheduling.priority = n
        await jobs.CreateJob(request)
    names: list[str] = []
    token = ""
    while True:
        request = pb.ListJobsRequest(page_size=2, page_token=token, order_by="name desc", filter="priority >= 2 AND state = QUEUED")
        page = await jobs.ListJobs(request)
        names += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    first = await jobs.ListJobs(pb.ListJobsRequest(page_size=2))
    bad_filter = await refusal(jobs.ListJobs(pb.ListJobsRequest(filter="state = RUNNIG")))
    bad_token = await refusal(jobs.ListJobs(pb.ListJobsRequest(page_token=first.next_page_token, order_by="name")))
    bad_size = await refusal(jobs.ListJobs(pb.ListJobsRequest(page_size=-1)))

    assert [f"jobs/j{n}" for n in range(6, 1, -1)] == names
    assert ("INVALID_FILTER", "9", ["filter"]) == (bad_filter.reason, bad_filter.metadata["column"], bad_filter.fields)
    assert ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN") == (bad_token.code, bad_token.reason)
    assert ["page_size"] == bad_size.fields


async def test_large_pages_stay_below_the_message_limit(api: Any, make_request: Any) -> None:
    """A page that would be larger than clients accept is cut, and its token goes on where it was cut."""
    jobs = api.jobs()
    request = make_request()
    for n in range(8):
        request.job.spec.env[f"BIG_{n}"] = "x" * 8000
    for n in range(60):
        request.job_id = f"big-{n:02}"
        await jobs.CreateJob(request)
    names: list[str] = []
    token, pages = "", 0
    while True:
        page = await jobs.ListJobs(pb.ListJobsRequest(page_size=1000, page_token=token))
        names, token, pages = names + [job.name for job in page.jobs], page.next_page_token, pages + 1
        if not token:
            break

    assert [f"jobs/big-{n:02}" for n in range(59, -1, -1)] == names
    assert pages > 1


async def test_waiting_comes_from_the_scheduler(api: Any, make_request: Any) -> None:
    """Position and estimated start are what the queue view knows."""
    job = await api.jobs().CreateJob(make_request("base"))
    api.queues.waits[job.uid] = WaitingInfo(job.uid, "base", "tenant-a", "CAPACITY", "1 of 2 slots is free", 3, 1_800_000_000.5, None)
    waiting = (await api.jobs().GetJob(create("base"))).waiting

    assert (job_pb2.Waiting.CAPACITY, 3, "1 of 2 slots is free") == (waiting.reason, waiting.position, waiting.message)
    assert (1_800_000_000, 500_000_000) == (waiting.estimated_start_time.seconds, waiting.estimated_start_time.nanos)


# --- update ----------------------------------------------------------------------------------------------------------


async def test_update_changes_what_may_change(api: Any, make_request: Any) -> None:
    """By mask and without one: only what is named or populated changes, the etag moves, an event tells."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("base"))
    update = pb.UpdateJobRequest(job=J(name="jobs/base", etag="1"), update_mask=FieldMask(paths=["labels", "spec.scheduling.priority"]))
    update.job.labels["a"] = "b"
    update.job.spec.scheduling.priority = 7
    update.job.display_name = "not in the mask"
    first = await jobs.UpdateJob(update)
    unmasked = pb.UpdateJobRequest(job=J(name="jobs/base", display_name="Second"))
    unmasked.job.spec.faults.infra_retries = 0
    second = await jobs.UpdateJob(unmasked)
    events = (await jobs.ListEvents(pb.ListEventsRequest(parent="jobs/base"))).events

    assert ({"a": "b"}, 7, "", "2") == (dict(first.labels), first.spec.scheduling.priority, first.display_name, first.etag)
    assert ({"a": "b"}, 7, "Second", 0) == (
        dict(second.labels),
        second.spec.scheduling.priority,
        second.display_name,
        second.spec.faults.infra_retries,
    )
    assert ["CREATED", "UPDATED", "UPDATED"] == [event.type for event in events]
    assert ["jobs/base"] == [j.name for j in (await jobs.ListJobs(pb.ListJobsRequest(filter="priority = 7 AND labels.a = b"))).jobs]


async def test_a_whole_job_may_be_sent_back(api: Any, make_request: Any) -> None:
    """Get, change one field, update without a mask: the unchanged rest is no obstacle, and an update without change is none."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("base"))
    job = await jobs.GetJob(create("base"))
    same = await jobs.UpdateJob(pb.UpdateJobRequest(job=job))
    job.spec.scheduling.priority = 3
    changed = await jobs.UpdateJob(pb.UpdateJobRequest(job=job))
    changed.spec.scheduling.priority = 0
    changed.labels["x"] = "y"
    replaced = await jobs.UpdateJob(pb.UpdateJobRequest(job=changed, update_mask=FieldMask(paths=["*"])))

    assert ("1", "2", 3, "3") == (same.etag, changed.etag, 3, replaced.etag)
    assert (0, {"x": "y"}) == (replaced.spec.scheduling.priority, dict(replaced.labels))


async def test_updates_that_are_refused(api: Any, make_request: Any, refusal: Any) -> None:
    """Immutable, unknown and wrong fields, stale etags, and states in which nothing changes."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("base"))

    def request(path: str = "", **fields: Any) -> pb.UpdateJobRequest:
        return pb.UpdateJobRequest(job=J(name="jobs/base", **fields), update_mask=FieldMask(paths=[path] if path else []))

    training = request()
    training.job.spec.training.batch_size = 99
    queue = request("spec.scheduling.queue")
    queue.job.spec.scheduling.queue = "nowhere"
    nodes = request("spec.resources.nodes")
    nodes.job.spec.resources.nodes.min = 3
    nodes.job.spec.resources.nodes.max = 2
    expected = [
        (request("spec.training.seed"), "FAILED_PRECONDITION", "IMMUTABLE_FIELD", ["job.spec.training.seed"]),
        (training, "FAILED_PRECONDITION", "IMMUTABLE_FIELD", ["job.spec.training.batch_size"]),
        (request("state"), "FAILED_PRECONDITION", "IMMUTABLE_FIELD", ["job.state"]),
        (request("spec.colour"), "INVALID_ARGUMENT", "INVALID_FIELD", ["update_mask"]),
        (queue, "INVALID_ARGUMENT", "INVALID_FIELD", ["spec.scheduling.queue"]),
        (nodes, "INVALID_ARGUMENT", "INVALID_FIELD", ["spec.resources.nodes.min"]),
        (request("labels", etag="0"), "ABORTED", "ETAG_MISMATCH", []),
        (request("display_name", display_name="x" * 200), "INVALID_ARGUMENT", "INVALID_FIELD", ["job.display_name"]),
    ]
    for update, code, reason, fields in expected:
        for validate_only in (True, False):
            update.validate_only = validate_only
            failure = await refusal(jobs.UpdateJob(update))
            assert (code, reason, fields) == (failure.code, failure.reason, failure.fields)
    await to(api, "base", "STARTING")
    active = await refusal(jobs.UpdateJob(request("labels")))

    assert ("FAILED_PRECONDITION", "ILLEGAL_STATE", "STARTING") == (active.code, active.reason, active.metadata["state"])


async def test_update_validate_only_previews(api: Any, make_request: Any) -> None:
    """The job as it would be, and nothing written."""
    await api.jobs().CreateJob(make_request("base"))
    request = pb.UpdateJobRequest(job=J(name="jobs/base", display_name="New"), validate_only=True)

    assert "New" == (await api.jobs().UpdateJob(request)).display_name
    assert "" == (await api.jobs().GetJob(create("base"))).display_name


# --- verbs -----------------------------------------------------------------------------------------------------------


async def test_verbs_of_a_waiting_job(api: Any, make_request: Any) -> None:
    """Pause, resume, cancel and retry of a job without nodes are direct, and repeating a verb returns the job."""
    jobs, name = api.jobs(), "jobs/base"
    await jobs.CreateJob(make_request("base"))
    states = []
    for call, request in (
        (jobs.PauseJob, pb.PauseJobRequest(name=name)),
        (jobs.PauseJob, pb.PauseJobRequest(name=name)),
        (jobs.ResumeJob, pb.ResumeJobRequest(name=name)),
        (jobs.ResumeJob, pb.ResumeJobRequest(name=name)),
        (jobs.CancelJob, pb.CancelJobRequest(name=name)),
        (jobs.CancelJob, pb.CancelJobRequest(name=name, etag="4")),
        (jobs.RetryJob, pb.RetryJobRequest(name=name)),
        (jobs.RetryJob, pb.RetryJobRequest(name=name)),
    ):
        states.append(J.State.Name((await call(request)).state))

    assert ["PAUSED", "PAUSED", "QUEUED", "QUEUED", "CANCELLED", "CANCELLED", "QUEUED", "QUEUED"] == states
    events = (await jobs.ListEvents(pb.ListEventsRequest(parent=name))).events
    assert ["QUEUED", "PAUSED", "QUEUED", "CANCELLED", "QUEUED"] == [J.State.Name(e.state) for e in events]


async def test_verbs_of_an_active_job_only_write_the_wish(api: Any, make_request: Any) -> None:
    """Pause leads to PAUSING by the user, cancel to CANCELLING; cancel wins over pause."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("base"))
    uid = await to(api, "base", "STARTING", "RUNNING")
    pausing = await jobs.PauseJob(pb.PauseJobRequest(name="jobs/base"))
    record = await api.store.read(lambda reader: reader.job(uid))
    cancelling = await jobs.CancelJob(pb.CancelJobRequest(name="jobs/base"))
    again = await jobs.CancelJob(pb.CancelJobRequest(name="jobs/base"))

    assert (J.PAUSING, "user") == (pausing.state, record.pause_cause)
    assert [J.CANCELLING, J.CANCELLING] == [cancelling.state, again.state]


async def test_a_pause_during_a_preemption_becomes_the_users(api: Any, make_request: Any) -> None:
    """PAUSING by preemption ends in PAUSED once the user asks for it."""
    await api.jobs().CreateJob(make_request("base"))
    uid = await to(api, "base", "STARTING", "RUNNING")
    await to(api, "base", "PAUSING", pause_cause="preempted")
    await api.jobs().PauseJob(pb.PauseJobRequest(name="jobs/base"))

    assert "user" == (await api.store.read(lambda reader: reader.job(uid))).pause_cause


async def test_a_finished_plan_is_not_stopped_any_more(api: Any, make_request: Any) -> None:
    """After PlanFinished was accepted, pause and cancel return the job unchanged."""
    await api.jobs().CreateJob(make_request("base"))
    uid = await to(api, "base", "STARTING", "RUNNING")
    await api.store.transact(lambda tx: tx.update_job(uid, plan_finished=True))

    assert J.RUNNING == (await api.jobs().PauseJob(pb.PauseJobRequest(name="jobs/base"))).state
    assert J.RUNNING == (await api.jobs().CancelJob(pb.CancelJobRequest(name="jobs/base"))).state


async def test_verbs_in_the_wrong_state(api: Any, make_request: Any, refusal: Any) -> None:
    """Pause and resume of ended jobs, retry of active ones, resume while pausing, delete of active ones."""
    jobs, name = api.jobs(), "jobs/base"
    await jobs.CreateJob(make_request("base"))
    uid = await to(api, "base", "STARTING")
    retried = await refusal(jobs.RetryJob(pb.RetryJobRequest(name=name)))
    deleted = await refusal(jobs.DeleteJob(pb.DeleteJobRequest(name=name)))
    await to(api, "base", "PAUSING", pause_cause="user")
    resumed = await refusal(jobs.ResumeJob(pb.ResumeJobRequest(name=name)))
    stale = await refusal(jobs.CancelJob(pb.CancelJobRequest(name=name, etag="1")))
    await to(api, "base", "FAILED")
    paused = await refusal(jobs.PauseJob(pb.PauseJobRequest(name=name)))
    ended = await refusal(jobs.ResumeJob(pb.ResumeJobRequest(name=name)))
    attempt = AttemptRecord(job_uid=uid, number=1, num_nodes=1, executor="local", create_time=1.0)
    await api.store.transact(lambda tx: tx.insert_attempt(attempt))
    stopping = await refusal(jobs.DeleteJob(pb.DeleteJobRequest(name=name)))

    assert [("FAILED_PRECONDITION", "ILLEGAL_STATE")] * 4 == [(f.code, f.reason) for f in (retried, resumed, paused, ended)]
    assert [("FAILED_PRECONDITION", "JOB_ACTIVE")] * 2 == [(f.code, f.reason) for f in (deleted, stopping)]
    assert ("ABORTED", "ETAG_MISMATCH") == (stale.code, stale.reason)
    assert "luthier retry" in ended.metadata["fix"]


async def test_resume_with_a_node_count(api: Any, make_request: Any, refusal: Any) -> None:
    """Within the range and PAUSED it is kept for the next attempt; outside it is a wrong argument, in other states refused."""
    jobs, request = api.jobs(), make_request("base")
    request.job.spec.resources.nodes.min, request.job.spec.resources.nodes.max = 1, 3
    await jobs.CreateJob(request)
    outside = await refusal(jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/base", num_nodes=4)))
    queued = await refusal(jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/base", num_nodes=2)))
    await jobs.PauseJob(pb.PauseJobRequest(name="jobs/base"))
    job = await jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/base", num_nodes=2))
    record = await api.store.read(lambda reader: reader.job(job.uid))

    assert ("INVALID_ARGUMENT", ["num_nodes"]) == (outside.code, outside.fields)
    assert ("FAILED_PRECONDITION", "ILLEGAL_STATE") == (queued.code, queued.reason)
    assert (J.QUEUED, 2) == (job.state, record.wanted_nodes)


async def test_retry_starts_budgets_again_and_finds_new_dependencies(api: Any, make_request: Any, refusal: Any) -> None:
    """Failure and budgets are cleared, checkpoints stay; a dependency that was deleted is found again by its name."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("base"))
    await jobs.CreateJob(make_request("tune", method="sft"))
    uid = await to(api, "tune", "FAILED", budget_used={"infra": 5}, failure={"cause": "END_CAUSE_DEPENDENCY", "message": "gone"})
    record = CheckpointRecord(job_uid=uid, attempt=1, generation=1, phase_index=0, step=4, digest="d", path="p")
    await api.store.transact(lambda tx: tx.put_checkpoint(record))
    failed = await jobs.GetJob(create("tune"))
    await jobs.CancelJob(pb.CancelJobRequest(name="jobs/base"))
    await jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/base"))
    missing = await refusal(jobs.RetryJob(pb.RetryJobRequest(name="jobs/tune")))
    new = await jobs.CreateJob(make_request("base"))
    retried = await jobs.RetryJob(pb.RetryJobRequest(name="jobs/tune"))

    assert ("gone", {"infra": 5}) == (failed.failure.message, dict(failed.budget_used))
    assert "UNKNOWN_DEPENDENCY" == missing.reason
    assert (J.QUEUED, {}, False) == (retried.state, dict(retried.budget_used), retried.HasField("failure"))
    assert [new.uid] == [d.uid for d in retried.dependencies]
    assert 1 == len((await jobs.ListCheckpoints(pb.ListCheckpointsRequest(parent="jobs/tune"))).checkpoints)


async def test_delete_removes_rows_and_files(api: Any, make_request: Any, refusal: Any) -> None:
    """A terminal job goes with its folder; its name is free again."""
    jobs = api.jobs()
    job = await jobs.CreateJob(make_request("base"))
    folder = api.root / "store" / "tenant-a" / job.uid
    (folder / "output").mkdir(parents=True)
    (folder / "output" / "model.safetensors").write_bytes(b"x")
    await jobs.CancelJob(pb.CancelJobRequest(name="jobs/base"))
    await jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/base"))
    gone = await refusal(jobs.GetJob(create("base")))

    assert "JOB_NOT_FOUND" == gone.reason
    assert not folder.exists()
    assert job.uid != (await jobs.CreateJob(make_request("base"))).uid


# --- what happened ---------------------------------------------------------------------------------------------------


async def test_attempts_checkpoints_events_and_metrics(api: Any, make_request: Any, refusal: Any) -> None:
    """Lists page by page, newest or oldest first as documented, and series are thinned."""
    jobs = api.jobs()
    job = await jobs.CreateJob(make_request("base"))

    def fill(tx: Any) -> None:
        for number in (1, 2, 3):
            tx.insert_attempt(
                AttemptRecord(
                    job_uid=job.uid, number=number, num_nodes=1, executor="local", create_time=1.5, end_cause="KILLED", close_time=9.0
                )
            )
            tx.insert_generation(
                GenerationRecord(
                    job_uid=job.uid,
                    attempt=number,
                    number=1,
                    create_time=2.0,
                    resume_from={"fence": {"attempt": 1, "generation": 1}, "step": 4},
                )
            )
            tx.put_node(NodeRecord(job_uid=job.uid, attempt=number, index=0, state="gone", exit_code=-9))
            tx.put_checkpoint(
                CheckpointRecord(job_uid=job.uid, attempt=number, generation=1, phase_index=1, step=8, digest="d", path="p", eval_loss=0.5)
            )
        tx.add_samples(job.uid, [(n, 5.0, {"loss": float(n), "lr": 0.1}) for n in range(100)])
        for n in range(10):
            tx.append_event(job.uid, "NOTE", str(n), node=0, details={"n": n, "deep": {"list": [1, "a", None]}})

    await api.store.transact(fill)
    attempts: list[Any] = []
    checkpoints: list[Any] = []
    events: list[Any] = []
    for call, request, field, into in (
        (jobs.ListAttempts, pb.ListAttemptsRequest, "attempts", attempts),
        (jobs.ListCheckpoints, pb.ListCheckpointsRequest, "checkpoints", checkpoints),
        (jobs.ListEvents, pb.ListEventsRequest, "events", events),
    ):
        token = ""
        while True:
            page = await call(request(parent="jobs/base", page_size=2, page_token=token))
            into += getattr(page, field)
            token = page.next_page_token
            if not token:
                break
    metrics = (await jobs.QueryMetrics(pb.QueryMetricsRequest(name="jobs/base", series=["loss", "none"], max_points=10))).series
    negative = await refusal(jobs.QueryMetrics(pb.QueryMetricsRequest(name="jobs/base", max_points=-1)))
    crossed = await refusal(jobs.ListEvents(pb.ListEventsRequest(parent="jobs/base", page_token="AAAA")))

    assert [1, 2, 3] == [a.number for a in attempts]
    assert (job_pb2.END_CAUSE_KILLED, "a1g1/0/step-4", -9) == (
        attempts[0].end_cause,
        attempts[0].generations[0].resume_from,
        attempts[0].nodes[0].exit_code,
    )
    assert [f"jobs/base/checkpoints/a{n}g1-p1-step-8" for n in (3, 2, 1)] == [c.name for c in checkpoints]
    assert list(range(1, 12)) == [e.sequence for e in events]
    assert {"n": 9.0, "deep": {"list": [1.0, "a", None]}} == _plain(events[-1].details)
    assert [("loss", 10)] == [(s.name, len(s.points)) for s in metrics]
    assert ["max_points"] == negative.fields
    assert "INVALID_PAGE_TOKEN" == crossed.reason


def _plain(struct: Any) -> Any:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(struct)


async def test_what_later_releases_fill_says_so(api: Any, refusal: Any) -> None:
    """EstimateJob answers UNIMPLEMENTED with a reason and what to use meanwhile."""
    failure = await refusal(api.jobs().EstimateJob(pb.EstimateJobRequest()))

    assert ("UNIMPLEMENTED", "NOT_IMPLEMENTED") == (failure.code, failure.reason)
    assert "validate_only" in failure.metadata["fix"]


async def test_malformed_names_are_violations(api: Any, refusal: Any) -> None:
    """Names of another form name the field."""
    jobs = api.jobs()
    for call, field in (
        (jobs.GetJob(pb.GetJobRequest(name="base")), "name"),
        (jobs.GetJob(pb.GetJobRequest(name="jobs/a/b")), "name"),
        (jobs.UpdateJob(pb.UpdateJobRequest()), "job.name"),
        (jobs.ListEvents(pb.ListEventsRequest(parent="jobs/")), "parent"),
    ):
        failure = await refusal(call)
        assert ("INVALID_ARGUMENT", [field]) == (failure.code, failure.fields)
