"""Jobs through the whole control plane: a real controller, real agents, ranks that do what the job's variable SCRIPT says.

See `tests/unit/trainer_node/scripted_zygote.py` for the words of a script.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from luthier.controller.config import ControllerConfig
from luthier.controller.executors.api import Launch
from luthier.controller.executors.processes import Identity
from luthier.controller.main import Controller
from luthier.controller.store.records import EventRecord, JobRecord, JobState
from luthier.controller.store.states import is_legal
from luthier.errors import ExecutorError
from luthier.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, spec_pb2

pytestmark = [pytest.mark.zygote, pytest.mark.timeout(180)]

S = JobState
SECONDS = 60.0


class World:
    """One state directory, and the controller that serves it now."""

    def __init__(self, root: Path, zygote: Path) -> None:
        (root / "data" / "model").mkdir(parents=True)
        (root / "data" / "model" / "config.json").write_text("{}")
        (root / "data" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        self.config = ControllerConfig(
            listen="127.0.0.1:0",
            state_dir=root / "state",
            roots={"data": root / "data"},
            cpu_slots=4,
            accelerators=(),
            zygote_dir=zygote,
            backoff_seconds=0.2,
            stop_grace_seconds=5.0,
            cause_wait_seconds=2.0,
        )
        self.config.state_dir.mkdir()
        self._controller: Controller | None = None
        self._channel: Any = None

    @property
    def controller(self) -> Controller:
        assert self._controller is not None
        return self._controller

    async def up(self) -> Controller:
        """Start the controller, or the next one."""
        made = Controller(self.config)
        await made.start()
        self._controller = made
        self._channel = grpc.aio.insecure_channel(made.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.jobs: Any = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {self.config.token_file.read_text()}"),)
        return made

    async def down(self) -> None:
        """Stop it as SIGTERM does: nodes run on."""
        if self._controller is not None:
            await self._channel.close()
            await self._controller.stop()
            self._controller = None

    async def call(self, verb: str, **fields: Any) -> Any:
        """One call of JobService."""
        request = getattr(job_service_pb2, f"{verb}Request")(**fields)
        return await getattr(self.jobs, verb)(request, metadata=self._metadata, timeout=20)

    async def submit(self, name: str, script: str, *, nodes: int = 1, model: str = "data:model", **parts: Any) -> None:
        """Create a job whose ranks run `script`."""
        spec = spec_pb2.JobSpec(
            model=spec_pb2.Model(uri=model),
            data=spec_pb2.Data(sources=[spec_pb2.DataSource(uri="data:rows.jsonl")]),
            method=spec_pb2.Method(name="sft"),
            resources=spec_pb2.Resources(nodes=spec_pb2.NodeRange(min=nodes, max=nodes)),
            env={"SCRIPT": script},
            **parts,
        )
        await self.call("CreateJob", job_id=name, job=job_pb2.Job(spec=spec))

    async def job(self, name: str) -> JobRecord:
        """The job as it is stored."""
        found = await self.controller.store.read(lambda r: r.job_named("default", name))
        assert found is not None
        return found

    async def events(self, name: str) -> list[EventRecord]:
        """All its events."""
        uid = (await self.job(name)).uid
        return await self.controller.store.read(lambda r: r.events(uid))

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Wait until a condition holds; its value."""
        deadline = time.monotonic() + SECONDS
        while not (value := await condition()):
            assert time.monotonic() < deadline, f"{what} did not happen"
            await asyncio.sleep(0.02)
        return value

    async def reach(self, name: str, *states: JobState) -> JobRecord:
        """Wait until the job is in one of the states."""

        async def there() -> JobRecord | None:
            job = await self.job(name)
            return job if job.state in states else None

        try:
            found: JobRecord = await self.until(there, f"{name} in {states}")
        except AssertionError:
            told = "\n".join(f"{e.type} {e.message}" for e in await self.events(name))
            raise AssertionError(f"{name} is {(await self.job(name)).state}, not in {states}:\n{told}") from None
        return found

    async def steps(self, name: str, step: int) -> None:
        """Wait until the job has done steps."""

        async def done() -> bool:
            return int((await self.job(name)).progress.get("step", 0)) >= step

        await self.until(done, f"step {step} of {name}")

    async def event(self, name: str, type: str, count: int = 1) -> EventRecord:
        """Wait until an event was told so often; the last one."""

        async def told() -> Any:
            found = [e for e in await self.events(name) if e.type == type]
            return found[-1] if len(found) >= count else None

        found: EventRecord = await self.until(told, f"{count} x {type} of {name}")
        return found

    async def agents(self, name: str) -> list[int]:
        """Pids of the agents of the newest attempt."""
        job = await self.job(name)
        folder = self.config.nodes_dir / f"{job.uid}-a{job.attempt}"
        found = [Identity.read(p) for p in sorted(folder.glob("n*/pid.json"))]
        return [i.pid for i in found if i is not None and i.lives()]


@pytest_asyncio.fixture
async def world(tmp_path: Path, scripted_zygote: Path) -> AsyncIterator[World]:
    """A controller that runs; at the end every job is cancelled and every process gone."""
    made = World(tmp_path, scripted_zygote)
    await made.up()
    yield made
    if made._controller is None:
        await made.up()
    jobs = await made.controller.store.read(lambda r: r.unfinished_jobs())
    for job in jobs:
        await made.call("CancelJob", name=f"jobs/{job.name}")

    async def idle() -> bool:
        return not await made.controller.store.read(lambda r: r.unfinished_jobs())

    await made.until(idle, "the end of all jobs")
    for job in jobs:
        _check_history(await made.events(job.name))
    await made.down()


def _check_history(events: Collection[EventRecord]) -> None:
    """States follow the table, and sequence numbers have no gap."""
    states = [JobState(e.state) for e in events if e.state]
    assert all(is_legal(a, b) for a, b in itertools.pairwise(states)), states
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))


def _exact_time(job: JobRecord) -> None:
    """Causes sum to the wall time of a finished job."""
    assert job.end_time is not None
    assert sum(job.cause_seconds.values()) == pytest.approx(job.end_time - job.create_time, abs=1e-5)


@pytest.mark.asyncio
async def test_a_job_of_two_nodes_runs_to_its_end(world: World) -> None:
    """Admitted, launched, formed, run, reported, gone, SUCCEEDED; every second is charged; nothing is left."""
    await world.submit("tune", "start@0 steps:5", nodes=2)
    job = await world.reach("tune", S.SUCCEEDED)
    types = [e.type for e in await world.events("tune")]

    assert types[:3] == ["CREATED", "STATE_CHANGED", "DEVICE_CHOSEN"]
    assert [t for t in types if t in ("GENERATION_FORMED", "PHASE_STARTED", "PLAN_FINISHED", "ATTEMPT_ENDED")] == [
        "GENERATION_FORMED",
        "PHASE_STARTED",
        "PLAN_FINISHED",
        "ATTEMPT_ENDED",
    ]
    assert job.result == {"kind": "none", "metrics": {"rank": 0.0}}
    _exact_time(job)
    _check_history(await world.events("tune"))
    assert list(world.config.nodes_dir.iterdir()) == []
    attempt = await world.controller.store.read(lambda r: r.attempt(job.uid, 1))
    assert attempt is not None
    assert (attempt.end_cause, attempt.close_time is not None) == ("FINISHED", True)
    assert (world.controller.logs.folder("default", job.uid) / "a1" / "n1.log").stat().st_size > 0


@pytest.mark.asyncio
async def test_a_killed_rank_starts_a_generation_in_place(world: World) -> None:
    """kill -9 of one rank: same attempt, same agents, next generation, one retry of the budget."""
    await world.submit("tune", "start@0 steps:400", nodes=2)
    await world.steps("tune", 3)
    agents = await world.agents("tune")
    beats = world.controller.sessions.live_nodes()
    assert len(beats) == 2
    _kill_a_rank(agents[1])
    await world.event("tune", "GENERATION_FORMED", 2)
    await world.event("tune", "PHASE_STARTED", 2)
    job = await world.job("tune")

    assert (job.state, job.attempt, job.generation, job.budget_used) == (S.RUNNING, 1, 2, {"infra": 1})
    assert await world.agents("tune") == agents
    ended = await world.event("tune", "GENERATION_ENDED")
    assert ended.details["cause"] == "KILLED"


def _kill_a_rank(agent: int) -> None:
    """SIGKILL a rank of an agent: a rank's working directory is its node's folder."""
    folder = os.readlink(f"/proc/{agent}/cwd")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != agent:
            try:
                place = os.readlink(entry / "cwd")
            except OSError:
                continue
            if place == folder:
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise AssertionError(f"no rank works in {folder}")


@pytest.mark.asyncio
async def test_a_killed_agent_costs_an_attempt(world: World) -> None:
    """kill -9 of an agent: its ranks die with it, the other node leaves, a second attempt starts when both are gone."""
    await world.submit("tune", "start@0 steps:400", nodes=2)
    await world.steps("tune", 3)
    agents = await world.agents("tune")
    os.kill(agents[0], signal.SIGKILL)
    await world.event("tune", "PHASE_STARTED", 2)
    job = await world.job("tune")
    attempts = await world.controller.store.read(lambda r: r.attempts(job.uid))

    assert [(a.number, a.end_cause) for a in attempts] == [(1, "NODE_LOST"), (2, "")]
    assert (job.attempt, job.budget_used) == (2, {"infra": 1})
    assert not any(Identity.of(pid) for pid in agents)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "cause", "code", "says"),
    [
        ("start@0 steps:2 raise:data", "END_CAUSE_DATA", 65, "rows.jsonl:3: not JSON"),
        ("start@0 steps:2 raise:bug@1 barrier", "END_CAUSE_METHOD", 70, "division by zero"),
    ],
)
async def test_a_user_error_fails_at_once(world: World, script: str, cause: str, code: int, says: str) -> None:
    """FAILED with cause, exit code, rank and the last lines, without a retry; the job can be retried by hand."""
    await world.submit("tune", script, nodes=2)
    job = await world.reach("tune", S.FAILED)
    failure = job.failure or {}

    assert (failure["cause"], failure["exit_code"], job.attempt, job.budget_used) == (cause, code, 1, {})
    assert says in failure["message"]
    assert failure["log_lines"]
    _exact_time(job)
    await world.call("RetryJob", name="jobs/tune")
    await world.event("tune", "GENERATION_FORMED", 2)
    assert (await world.job("tune")).attempt == 2


@pytest.mark.asyncio
async def test_the_same_end_at_the_same_step_twice_fails(world: World) -> None:
    """A rank that kills itself at step 3 is given one chance in place, then it is no accident."""
    await world.submit("tune", "start@0 steps:3 kill:9")
    job = await world.reach("tune", S.FAILED)

    assert ((job.failure or {})["cause"], job.generation, job.budget_used) == ("END_CAUSE_KILLED", 2, {"infra": 1})
    assert "no accident" in (job.failure or {})["message"]


@pytest.mark.asyncio
async def test_pause_saves_and_resume_goes_on(world: World) -> None:
    """PAUSING until the save is durable and all nodes are gone, then PAUSED without nodes; resume makes the next attempt."""
    await world.submit("tune", "start@0 steps:400", nodes=2)
    await world.steps("tune", 3)
    await world.call("PauseJob", name="jobs/tune")
    paused = await world.reach("tune", S.PAUSED)
    checkpoints = await world.controller.store.read(lambda r: r.checkpoints(paused.uid))

    async def free() -> bool:
        return world.controller.admissions.describe(None)[0].cpu_slots_used == 0

    assert len(checkpoints) >= 1
    assert await world.agents("tune") == []
    await world.until(free, "the slots' release")
    await world.call("ResumeJob", name="jobs/tune")
    await world.reach("tune", S.RUNNING)
    assert ((await world.job("tune")).attempt, (await world.job("tune")).budget_used) == (2, {})


@pytest.mark.asyncio
@pytest.mark.parametrize("script", ["sleep:600", "start@0 steps:4000"], ids=["in setup", "in steps"])
async def test_cancel_ends_a_job_wherever_it_is(world: World, script: str) -> None:
    """CANCELLED when all nodes are gone, soon, and its slots are free again."""
    await world.submit("tune", script, nodes=2)
    await world.event("tune", "GENERATION_FORMED")
    await world.call("CancelJob", name="jobs/tune")
    began = time.monotonic()
    await world.reach("tune", S.CANCELLED)

    assert time.monotonic() - began < 30
    assert await world.agents("tune") == []


@pytest.mark.asyncio
async def test_pause_before_the_first_phase_leaves_at_once(world: World) -> None:
    """Nothing was learned, so nothing is saved: the ranks are still in their setup."""
    await world.submit("tune", "sleep:600")
    await world.event("tune", "GENERATION_FORMED")
    await world.call("PauseJob", name="jobs/tune")
    job = await world.reach("tune", S.PAUSED)

    assert await world.controller.store.read(lambda r: r.checkpoints(job.uid)) == []


@pytest.mark.asyncio
async def test_an_evicted_node_costs_no_budget(world: World) -> None:
    """SIGTERM to one agent: all ranks save and leave at one step, another attempt follows."""
    await world.submit("tune", "start@0 steps:400", nodes=2)
    await world.steps("tune", 3)
    os.kill((await world.agents("tune"))[1], signal.SIGTERM)
    await world.event("tune", "PHASE_STARTED", 2)
    job = await world.job("tune")
    attempts = await world.controller.store.read(lambda r: r.attempts(job.uid))

    assert ([a.end_cause for a in attempts], job.budget_used) == (["EVICTED", ""], {})
    assert "CHECKPOINT_COMMITTED" in [e.type for e in await world.events("tune")]


@pytest.mark.asyncio
async def test_a_restarted_controller_adopts_running_nodes(world: World) -> None:
    """Nodes train on while the controller is away; the next one takes their reports, without a new generation."""
    await world.submit("tune", "start@0 steps:150", nodes=2)
    await world.steps("tune", 3)
    agents = await world.agents("tune")
    before = (await world.job("tune")).progress["step"]
    await world.down()
    assert all(Identity.of(pid) for pid in agents)
    await asyncio.sleep(0.5)
    await world.up()
    job = await world.reach("tune", S.SUCCEEDED)

    assert (job.attempt, job.generation, job.budget_used) == (1, 1, {})
    assert job.progress["step"] > before
    assert not any(Identity.of(pid) for pid in agents)


@pytest.mark.asyncio
async def test_a_rank_that_dies_while_the_controller_is_away_is_restarted_after(world: World) -> None:
    """The report waits on the node; the next controller answers it with a generation in place."""
    await world.submit("tune", "start@0 steps:2000", nodes=2)
    await world.steps("tune", 3)
    agents = await world.agents("tune")
    await world.down()
    _kill_a_rank(agents[0])
    await asyncio.sleep(0.3)
    await world.up()
    await world.event("tune", "GENERATION_FORMED", 2)
    job = await world.job("tune")

    assert (job.attempt, job.generation, job.budget_used) == (1, 2, {"infra": 1})
    assert await world.agents("tune") == agents


@pytest.mark.asyncio
async def test_a_node_that_ended_while_the_controller_was_away_is_noticed(world: World) -> None:
    """An agent that was killed meanwhile costs an attempt when the next controller looks."""
    await world.submit("tune", "start@0 steps:2000")
    await world.steps("tune", 3)
    [agent] = await world.agents("tune")
    await world.down()
    os.kill(agent, signal.SIGKILL)
    await world.up()
    await world.event("tune", "PHASE_STARTED", 2)

    assert (await world.job("tune")).attempt == 2


@pytest.mark.asyncio
async def test_a_launch_whose_record_was_lost_is_not_repeated(world: World) -> None:
    """A controller that died between launching and writing so launches again: the nodes that run are adopted."""
    await world.submit("tune", "start@0 steps:2000", nodes=2)
    await world.steps("tune", 3)
    agents = await world.agents("tune")
    uid = (await world.job("tune")).uid
    await world.controller.store.transact(lambda tx: tx.update_attempt(uid, 1, launch_time=None))
    await world.down()
    await world.up()

    async def launched() -> bool:
        attempt = await world.controller.store.read(lambda r: r.attempt(uid, 1))
        return attempt is not None and attempt.launch_time is not None

    await world.until(launched, "the second launch")
    assert (await world.agents("tune"), (await world.job("tune")).attempt) == (agents, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(("retry", "state", "attempts"), [(True, S.SUCCEEDED, 2), (False, S.FAILED, 1)])
async def test_a_launch_that_fails_is_tried_again_where_that_can_help(
    world: World, monkeypatch: pytest.MonkeyPatch, retry: bool, state: JobState, attempts: int
) -> None:
    """An executor's error ends the attempt by LAUNCH: another follows, or the job fails with the reason."""
    executor = world.controller.executor
    launch = executor.launch

    async def fail_once(wanted: Launch) -> None:
        monkeypatch.setattr(executor, "launch", launch)
        raise ExecutorError("no room", retry=retry, fix="make room")

    monkeypatch.setattr(executor, "launch", fail_once)
    await world.submit("tune", "start@0 steps:1")
    job = await world.reach("tune", state)
    first = await world.controller.store.read(lambda r: r.attempt(job.uid, 1))

    assert (job.attempt, first.end_cause if first else "") == (attempts, "LAUNCH")
    assert retry or "no room Fix: make room" in (job.failure or {})["message"]


@pytest.mark.asyncio
async def test_suspension_is_a_pause_that_the_next_start_ends(world: World) -> None:
    """Ctrl-C: jobs save and leave, QUEUED (SUSPENDED), nothing is admitted; the next controller carries on."""
    await world.submit("tune", "start@0 steps:400", nodes=2)
    await world.steps("tune", 3)
    await world.submit("later", "start@0 steps:1", nodes=4)
    assert await world.controller.reconciler.suspend() == 1
    job = await world.reach("tune", S.QUEUED)

    async def gone() -> bool:
        return not await world.controller.reconciler.open_attempts()

    await world.until(gone, "the end of all nodes")
    assert job.waiting_reason == "SUSPENDED"
    assert ((await world.job("tune")).state, (await world.job("later")).state) == (S.QUEUED, S.QUEUED)
    await world.down()
    await world.up()
    await world.event("tune", "PHASE_STARTED", 2)
    assert (await world.job("tune")).budget_used == {}


@pytest.mark.asyncio
async def test_a_dependency_is_waited_for_and_its_failure_passed_on(world: World) -> None:
    """A job that needs another waits for it by name; when that fails, so does this one, with the fix."""
    await world.submit("base", "start@0 steps:20 raise:data")
    await world.submit("tune", "start@0 steps:1", model="job://base")
    await world.reach("base", S.RUNNING)
    waiting = await world.job("tune")
    job = await world.reach("tune", S.FAILED)

    assert (waiting.waiting_reason, waiting.waiting_message) == ("DEPENDENCY", "waits for base")
    assert ((job.failure or {})["cause"], job.attempt) == ("END_CAUSE_DEPENDENCY", 0)
    assert "retry base" in (job.failure or {})["message"]


@pytest.mark.asyncio
async def test_jobs_wait_for_slots_and_say_why(world: World) -> None:
    """Four slots: two jobs of two nodes run, a third waits with its place, one of five nodes with what it needs."""
    for name in ("one", "two"):
        await world.submit(name, "start@0 steps:400", nodes=2)
        await world.reach(name, S.STARTING, S.RUNNING)
    await world.submit("three", "start@0 steps:1", nodes=2)
    await world.submit("huge", "start@0 steps:1", nodes=5)

    async def explained() -> bool:
        return bool((await world.job("three")).waiting_reason and (await world.job("huge")).waiting_reason)

    await world.until(explained, "reasons")
    shown = {n: (await world.call("GetJob", name=f"jobs/{n}")).waiting for n in ("three", "huge")}
    assert (shown["three"].position, shown["huge"].position) == (1, 0)
    assert shown["huge"].message.startswith("needs 5 CPU slots, the queue has 4 CPU slots: ask for fewer nodes")
    await world.call("CancelJob", name="jobs/one")
    await world.reach("three", S.SUCCEEDED)
    assert (await world.job("huge")).state == S.QUEUED


@pytest.mark.asyncio
async def test_a_missing_file_is_refused_at_submit(world: World) -> None:
    """INVALID_ARGUMENT with the field, before anything is stored."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.submit("tune", "start@0", model="data:missing")

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "spec.model.uri" in str(refused.value.details())
    assert await world.controller.store.read(lambda r: r.job_named("default", "tune")) is None


@pytest.mark.asyncio
async def test_an_input_that_goes_away_while_waiting_fails_the_job(world: World) -> None:
    """What was there at submit and is gone at admission is a data error with the field."""
    await world.submit("first", "start@0 steps:400", nodes=4)
    await world.reach("first", S.RUNNING)
    await world.submit("tune", "start@0", nodes=2)
    (world.config.roots["data"] / "rows.jsonl").unlink()
    await world.call("CancelJob", name="jobs/first")
    job = await world.reach("tune", S.FAILED)

    assert ((job.failure or {})["cause"], "spec.data.sources[0].uri" in (job.failure or {})["message"]) == ("END_CAUSE_DATA", True)


@pytest.mark.asyncio
async def test_metrics_and_health_are_served(world: World) -> None:
    """The catalogue's metrics, discovery of live nodes, and health; no job name on the controller's own metrics."""
    await world.submit("tune-abc", "start@0 steps:400", nodes=2)
    await world.steps("tune-abc", 2)

    def fetch(path: str) -> str:
        with urllib.request.urlopen(f"http://{world.controller.http_address}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(fetch, "/metrics")
    targets = json.loads(await asyncio.to_thread(fetch, "/sd"))
    health = [await asyncio.to_thread(fetch, path) for path in ("/healthz", "/readyz", "/version")]

    assert [t["labels"]["tuning_job"] for t in targets] == ["tune-abc", "tune-abc"]
    assert sorted(t["labels"]["node"] for t in targets) == ["0", "1"]
    assert health[:2] == ["ok\n", "ok\n"]
    for name in (
        "luthier_jobs",
        "luthier_jobs_finished_total",
        "luthier_queue_wait_seconds_count",
        "luthier_schedule_duration_seconds_count",
        "luthier_reconcile_duration_seconds_count",
        "luthier_reconcile_errors_total",
        "luthier_watch_restarts_total",
        "luthier_db_commit_duration_seconds_count",
        "luthier_leader 1.0",
        "luthier_heartbeat_age_seconds",
        "grpc_server_call_duration_seconds_count",
        "luthier_build_info",
        'luthier_queue_slots{kind="cpu",queue="default",use="used"} 2.0',
    ):
        assert f"\n{name}" in text or f"# TYPE {name}" in text, name
    assert "tune-abc" not in text
