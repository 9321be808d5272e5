"""The life of a node between its start and its exit code: what the agent does about what it hears.

Messages of the controller, ends of ranks, hangs and SIGTERM arrive in one queue, so that two things never happen at once. After each
the state is settled: what is due follows from what holds, not from the order of messages. The rules are those of protocol.md: ranks
start only by `Formed`; a reaped node stays and declares itself ready again; success is a report that must be acknowledged; leaving on
request exits 75; a fenced node exits 76.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from luthier._version import __version__
from luthier.trainer_node.attach import Attachment, SampleBuffer
from luthier.trainer_node.environment import installed_versions
from luthier.trainer_node.exporter import Exporter
from luthier.trainer_node.forking import UNKNOWN_EXIT, ZygoteFailed
from luthier.trainer_node.hang import HangWatch
from luthier.trainer_node.launch import NodeLaunch
from luthier.trainer_node.logtail import LogTail, last_lines
from luthier.trainer_node.metrics import NodeMetrics
from luthier.trainer_node.node_files import agent_log, log_file, spool_file
from luthier.trainer_node.orphans import set_subreaper
from luthier.trainer_node.preflight import Preflight, check_shared, forget_marks
from luthier.trainer_node.ranks import LocalRank
from luthier.trainer_node.references import scan_store
from luthier.trainer_node.report import Report
from luthier.trainer_node.spool import Spool
from luthier.trainer_node.starter import RankStarter
from luthier.v1 import node_service_pb2 as pb

__all__ = ["Node", "NodeTimers", "run_node"]

_log = logging.getLogger(__name__)

_CONFIGURATION = 64
_STORAGE = 74
_LEFT = 75
_FENCED = 76

Event = tuple[Callable[[Any], Awaitable[None]], Any]


class NodeTimers:
    """Seconds that a node waits for this and that."""

    tick = 1.0
    """Between looks at silent ranks."""
    term_grace = 10.0
    """Assumed from SIGTERM to SIGKILL where nobody has said: a short one, so that the last save is not lost to optimism."""
    stop_kill = 5.0
    """Ranks that were told to stop without saving are killed after so long: they may be in a long setup."""
    leave_report = 10.0
    """After the ranks have left, the agent waits so long for its facts to be acknowledged."""
    logs = 1.0
    """Before a regular exit, for the last log bytes."""
    alone = 3600.0
    """A node without ranks and without a finished plan gives up after so long without its controller."""


def run_node(launch: NodeLaunch, node_dir: Path, preflight: Callable[[], Preflight]) -> tuple[int, str]:
    """Run until the node is done; returns its exit code and a sentence. `preflight` blocks until the checks are done."""
    logging.basicConfig(
        filename=agent_log(node_dir),
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    set_subreaper(True)
    return asyncio.run(Node(launch, node_dir, preflight).run())


class Node:
    """One node of one attempt."""

    def __init__(self, launch: NodeLaunch, node_dir: Path, preflight: Callable[[], Preflight], timers: NodeTimers | None = None) -> None:
        self._launch = launch
        self._node_dir = node_dir
        self._preflight = preflight
        self._timers = timers or NodeTimers()
        self._incarnation = os.environ.get("LUTHIER_INCARNATION") or uuid.uuid4().hex
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._spool = Spool(spool_file(node_dir))
        self._logs = LogTail()
        self._samples = SampleBuffer()
        self._metrics = NodeMetrics({"tuning_job": launch.job_name, "node": str(launch.node)})
        self._exporter = Exporter(self._metrics, self._refresh_metrics)
        self._metrics_port = 0
        self._starter = RankStarter(launch, node_dir)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._attachment = Attachment(
            launch.controller,
            attempt=launch.attempt,
            spool=self._spool,
            logs=self._logs,
            samples=self._samples,
            hello=self._hello,
            ready=lambda: self._ready,
            heartbeat=self._heartbeat,
            receive=self._receive,
        )
        self._report = Report(launch.attempt, self._spool, self._samples, self._metrics, self._attachment.wake)
        self._hang = HangWatch(float((launch.spec.get("faults") or {}).get("hang_timeout", 120.0)))
        self._generation = 0
        self._ranks: dict[int, LocalRank] = {}
        self._forming: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._ready: pb.Ready | None = None
        self._ready_due = True
        """Declare readiness once preflight has passed and no rank lives."""
        self._passed = False
        self._listener: socket.socket | None = None
        self._leaving = ""
        """ "save_and_leave" or "stop" once asked to leave."""
        self._saving = False
        """Ranks were seen saving since they were asked to leave; a step after that means that the save failed and all train on."""
        self._must_leave = False
        self._leave_by: float | None = None
        self._kill_at: float | None = None
        self._exit: tuple[int, str] | None = None

    async def run(self) -> tuple[int, str]:
        """Until the exit code is known."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: self._put(self._terminated, None))
        for number in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        self._metrics_port = await self._exporter.start(self._launch.host)
        self._logs.follow(None, agent_log(self._node_dir))
        for path in self._node_dir.glob("logs/rank-*.log"):
            self._logs.follow(int(path.stem.removeprefix("rank-")), path)
        self._spawn(self._attachment.run())
        self._starter.warm()
        self._spawn(self._tick())
        self._spawn(self._check())
        try:
            while self._exit is None:
                handler, argument = await self._events.get()
                await handler(argument)
                await self._settle()
            return self._exit
        finally:
            await self._close()

    # --- what arrives -----------------------------------------------------------------------------------------------

    def _put(self, handler: Callable[[Any], Awaitable[None]], argument: Any) -> None:
        self._events.put_nowait((handler, argument))

    def _receive(self, response: pb.AttachResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "formed":
            self._put(self._formed, response.formed)
        elif kind == "directive":
            self._put(self._directed, response.directive)
        elif kind == "fenced":
            self._put(self._was_fenced, response.fenced)
        else:
            self._put(_nothing, None)

    async def _check(self) -> None:
        result = await asyncio.to_thread(self._preflight)
        self._put(self._checked, result)

    async def _checked(self, result: Preflight) -> None:
        took = sum(result.seconds.values())
        _log.info("preflight %s in %.0f ms %s", "passed" if result.passed else "failed", took * 1000, result.message)
        self._report.fact("preflight", result.to_json())
        self._passed = result.passed

    async def _formed(self, formed: pb.Formed) -> None:
        generation = formed.fence.generation
        if formed.fence.attempt != self._launch.attempt or generation <= self._generation or self._leaving or self._report.finished:
            return
        if self._alive():  # of an older generation, which the controller has closed: their last words come first
            self._kill_ranks("reaped")
            asyncio.get_running_loop().call_later(0.05, self._put, self._formed, formed)
            return
        self._generation = generation
        self._ranks = {rank: r for rank, r in self._ranks.items() if r.alive}
        self._ready, self._ready_due = None, False
        self._hang = HangWatch(self._hang.hang_timeout, confirm_seconds=min(5.0, self._hang.hang_timeout / 2))
        self._report.start_generation(generation, self._hang)
        self._forming = asyncio.create_task(self._form(formed))
        self._track(self._forming)

    async def _directed(self, directive: pb.Directive) -> None:
        if directive.fence.attempt != self._launch.attempt:
            return
        name = pb.Directive.Kind.Name(directive.kind).lower()
        _log.info("directive %s", name)
        grace = directive.grace.ToNanoseconds() / 1e9 if directive.HasField("grace") else None
        if directive.kind == pb.Directive.REAP:
            if directive.fence.generation >= self._generation and not self._leaving:
                self._reap(directive.fence.generation)
        elif directive.kind == pb.Directive.SAVE:
            for rank in self._alive():
                rank.tell("save", grace)
            self._report.fact("obeyed", {"what": "save"})
        elif directive.kind == pb.Directive.DUMP_STACKS:
            self._spawn(self._dump_stacks())
        elif directive.kind in (pb.Directive.SAVE_AND_LEAVE, pb.Directive.STOP):
            self._leave(name, grace)

    async def _was_fenced(self, fenced: pb.Fenced) -> None:
        _log.info("fenced: %s", fenced.message)
        self._kill_ranks("reaped")
        self._exit = (_FENCED, f"fenced: {fenced.message}")

    async def _terminated(self, _: None) -> None:
        """SIGTERM: save and leave if the time is enough, else leave. A second one changes nothing."""
        if self._must_leave:
            return
        self._must_leave = True
        grace = self._grace()
        enough = grace >= 1.5 * self._report.last_save_seconds
        _log.info("SIGTERM: leaving within %.0f s, %s", grace, "with a save" if enough else "without a save, which takes longer")
        self._leave("save_and_leave" if enough else "stop", grace, own=True)

    async def _ended(self, rank: LocalRank) -> None:
        assert rank.end is not None
        self._hang.end(rank.rank)
        _log.info("rank %d ended with %d %s", rank.rank, rank.end.code, rank.end.message)
        everyone = self._ranks.values()
        if not self._report.finished and all(r.end is not None and r.end.code == 0 for r in everyone):
            self._report.flush_sections(force=True)
            self._report.finished = True
            self._report.fact("plan_finished", {})
        self._report.ended(rank, last_lines(log_file(self._node_dir, rank.rank), 50))

    async def _ticked(self, _: None) -> None:
        self._report.flush_sections()
        now = time.monotonic()
        hung = [r for r in self._alive() if not r.killed_as and self._hang.check(r.rank, now) == "hung"]
        if hung:
            _log.warning("ranks %s are hung: dumping all stacks", [r.rank for r in hung])
            for rank in hung:
                rank.killed_as = "hung"
            self._spawn(self._kill_hung(hung))

    # --- what follows -----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Do what is due now."""
        if self._exit is not None:
            return
        now = time.monotonic()
        alive = self._alive()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_ranks("reaped")
        if alive or (self._forming is not None and not self._forming.done()):
            return
        if self._report.finished:
            if not len(self._spool):
                self._exit = (0, "the plan finished")
            elif self._must_leave and self._leave_by is not None and now >= self._leave_by:
                self._exit = (_LEFT, "had to leave before the controller took the report")
        elif self._leaving:
            if self._leave_by is None:
                self._leave_by = now + self._timers.leave_report
                self._report.flush_sections(force=True)
                self._report.fact("obeyed", {"what": self._leaving})
            if not len(self._spool) or now >= self._leave_by:
                self._exit = (_LEFT, f"left on request ({self._leaving})")
        elif self._passed and self._ready_due and self._ready is None and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare())
            self._track(self._preparing)
        elif not self._attachment.connected and now - self._attachment.last_contact > self._timers.alone:
            self._exit = (_LEFT, "no contact with the controller for too long, and nothing to report")

    async def _prepare(self) -> None:
        """A new listening socket and what lies in the store; then ready."""
        ready = pb.Ready(last_fence=self._fence(), device=self._launch.device, num_devices=len(self._launch.devices))
        if self._launch.node == 0:
            if self._listener is not None:
                self._listener.close()
            self._listener = socket.create_server((self._launch.host, 0), backlog=1024)
            ready.address = f"{self._launch.host}:{self._listener.getsockname()[1]}"
            candidates, heads = await asyncio.to_thread(scan_store, self._launch.prefix)
            ready.candidates.extend(candidates)
            ready.journal_heads.extend(heads)
        self._preparing = None
        self._ready = ready
        _log.info("ready after generation %d", self._generation)
        self._attachment.wake()

    async def _form(self, formed: pb.Formed) -> None:
        started = time.monotonic()
        problem, code = "", UNKNOWN_EXIT
        try:
            if self._launch.num_nodes > 1:
                problem, code = await asyncio.to_thread(check_shared, self._launch), _STORAGE
            if not problem:
                await self._starter.start(formed, None if self._listener is None else self._listener.fileno(), self._began)
        except ZygoteFailed as error:
            problem, code = str(error), UNKNOWN_EXIT if error.retry else _CONFIGURATION
        finally:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            self._forming = None
            self._put(_nothing, None)
        if problem:
            _log.error("ranks could not be started: %s", problem)
            for rank in range(formed.first_rank, formed.first_rank + formed.local_size):
                if rank not in self._ranks:
                    self._report.fact("rank_exited", {"rank": rank, "code": code, "message": problem, "section": "setup"})
            return
        _log.info("generation %d: %d ranks in %.0f ms", formed.fence.generation, formed.local_size, (time.monotonic() - started) * 1000)
        self._report.fact("obeyed", {"what": "formed"})

    def _began(self, rank: LocalRank) -> None:
        self._ranks[rank.rank] = rank
        self._hang.start(rank.rank, time.monotonic())
        self._logs.follow(rank.rank, log_file(self._node_dir, rank.rank))
        rank.listen(self._heard)
        self._spawn(self._watch(rank))

    def _heard(self, rank: LocalRank, message: Any) -> None:
        self._report.hear(rank, message)
        if message["t"] == "fact":
            self._put(_nothing, None)
        elif message["t"] == "beat" and self._leaving == "save_and_leave" and not self._must_leave:
            if message["section"] == "checkpoint":
                self._saving = True
            elif message["section"] == "step" and self._saving:
                _log.warning("the save failed and the ranks train on")
                self._leaving, self._saving = "", False

    async def _watch(self, rank: LocalRank) -> None:
        await rank.finish()
        self._put(self._ended, rank)

    def _leave(self, how: str, grace: float | None, *, own: bool = False) -> None:
        """Ask the ranks to leave. Stop outranks save-and-leave; a repeat changes nothing."""
        if self._leaving == "stop" or self._leaving == how:
            return
        self._leaving = how
        self._leave_by = None
        self._ready_due, self._ready = False, None
        if own and grace is not None:
            self._leave_by = time.monotonic() + grace
        if self._forming is not None:
            self._forming.cancel()
        for rank in self._alive():
            rank.tell(how, grace)
        if how == "stop":
            patience = self._timers.stop_kill if grace is None else min(self._timers.stop_kill, grace / 2)
            self._kill_at = time.monotonic() + patience

    def _reap(self, generation: int) -> None:
        if self._forming is not None:
            self._forming.cancel()
        self._generation = generation
        self._report.fence = (self._launch.attempt, generation)
        self._kill_ranks("reaped")
        self._ready, self._ready_due = None, True
        self._report.fact("obeyed", {"what": "reap"})

    def _kill_ranks(self, why: str) -> None:
        for rank in self._alive():
            rank.kill(why)

    async def _kill_hung(self, hung: list[LocalRank]) -> None:
        alive = self._alive()
        for rank, text in zip(alive, await asyncio.gather(*(r.stacks() for r in alive)), strict=True):
            with log_file(self._node_dir, rank.rank).open("a") as log:
                log.write(f"--- the agent found a rank hung; stacks of rank {rank.rank}:\n{text}\n")
        for rank in hung:
            rank.kill("hung")

    async def _dump_stacks(self) -> None:
        alive = self._alive()
        texts = await asyncio.gather(*(r.stacks() for r in alive))
        self._report.fact("obeyed", {"what": "dump_stacks", "stacks": {str(r.rank): t for r, t in zip(alive, texts, strict=True)}})

    # --- messages up ------------------------------------------------------------------------------------------------

    def _fence(self) -> pb.Fence:
        return pb.Fence(attempt=self._launch.attempt, generation=self._generation)

    def _hello(self) -> pb.Hello:
        launch = self._launch
        method = launch.spec.get("method") or {}
        return pb.Hello(
            token=launch.token,
            job_uid=launch.job_uid,
            attempt=launch.attempt,
            node=launch.node,
            incarnation=self._incarnation,
            last_fence=self._fence(),
            versions={**installed_versions(), "luthier": __version__, "method": str(method.get("version", ""))},
            host=launch.host,
            metrics_port=self._metrics_port,
            handle=str(os.getpid()),
        )

    def _heartbeat(self) -> pb.Heartbeat:
        now = time.monotonic()
        message = pb.Heartbeat(fence=self._fence())
        for rank in self._alive():
            beat = message.ranks.add(rank=rank.rank, section=rank.section, step=rank.step)
            beat.silence.FromNanoseconds(int(max(0.0, now - rank.heard) * 1e9))
        return message

    def _refresh_metrics(self) -> None:
        alive, now = self._alive(), time.monotonic()
        versions = installed_versions()
        self._metrics.record("luthier_node_ranks", len(alive))
        self._metrics.record("luthier_node_rank_silence_seconds", max((now - r.heard for r in alive), default=0.0))
        self._metrics.record("luthier_node_spooled_facts", len(self._spool))
        self._metrics.record("luthier_node_attached", float(self._attachment.connected))
        facts = {"version": __version__, "torch": versions["torch"], "deepspeed": versions["deepspeed"], "device": self._launch.device}
        self._metrics.record("luthier_node_info", 1, **facts)
        self._report.flush_sections()

    # --- housekeeping -----------------------------------------------------------------------------------------------

    def _alive(self) -> list[LocalRank]:
        return [rank for rank in self._ranks.values() if rank.alive]

    def _grace(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        return float(os.environ.get("LUTHIER_TERM_GRACE_SECONDS") or self._timers.term_grace)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(self._timers.tick, self._hang.hang_timeout / 4))
            self._put(self._ticked, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._track(task)

    def _track(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A part that fails would leave the node deaf or dumb: the failure ends it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._put(self._failed, error)

    async def _failed(self, error: BaseException) -> None:
        raise error

    async def _close(self) -> None:
        """Leave nothing behind: ranks, marks in the store, unsent log bytes."""
        self._kill_ranks("reaped")
        deadline = time.monotonic() + self._timers.logs
        while self._alive() and time.monotonic() < deadline:  # noqa: ASYNC110  their watchers end it
            await asyncio.sleep(0.01)
        code, message = self._exit or (_LEFT, "interrupted")
        _log.info("exit %d: %s", code, message)
        while code != _FENCED and self._logs.pending() and self._attachment.connected and time.monotonic() < deadline:
            self._attachment.wake()
            await asyncio.sleep(0.01)
        forget_marks(self._launch)
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._starter.close()
        await self._exporter.close()
        self._spool.close()


async def _nothing(_: Any) -> None:
    """Only wakes the queue, so that the state is settled."""
