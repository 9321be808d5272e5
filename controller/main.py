"""The controller's process: puts the parts together, serves, and goes away in one of two ways.

Ctrl-C (SIGINT) suspends: running jobs save and leave, and the next start carries on with them. SIGTERM leaves nodes running for the
next controller to adopt. A second signal leaves at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from luthier.controller.admission import Admissions
from luthier.controller.config import DEFAULT_LISTEN, ControllerConfig, default_state_dir, parse_address
from luthier.controller.contents import ContentStore
from luthier.controller.executors import load_executor
from luthier.controller.executors.api import Executor
from luthier.controller.http import HttpServer, Pulse, SdTarget
from luthier.controller.inputs import Inputs
from luthier.controller.logs import LogStore
from luthier.controller.metrics import ControllerMetrics
from luthier.controller.reconcile import Reconciler
from luthier.controller.service.auth import Principal, StaticTokens
from luthier.controller.service.server import ApiServer, build_server
from luthier.controller.service.submit import Premises
from luthier.controller.sessions import Sessions
from luthier.controller.store.sqlite import SqlStore
from luthier.controller.tokens import NodeTokens, user_token
from luthier.errors import Conflict, LuthierError, SpecError

__all__ = ["Controller", "main", "run"]

_log = logging.getLogger(__name__)

LOCAL_TENANT = "default"
"""Tenant of the loopback user."""
_DRAIN_SECONDS = 5.0


class Controller:
    """All parts of one controller. `start`, then `stop`; `reconciler.run` is the part that can fail."""

    def __init__(self, config: ControllerConfig, *, executor: Executor | None = None) -> None:
        self.config = config
        self.metrics = ControllerMetrics()
        self.pulse = Pulse()
        self.store = SqlStore(config.database, on_group=lambda seconds, _: self.metrics.commit.observe(seconds))
        self.executor: Executor = executor or load_executor("local")(config)
        self.logs = LogStore(config.store_root)
        self.contents = ContentStore(config.state_dir / "uploads")
        tokens = NodeTokens.from_state_dir(config.state_dir)
        inputs = Inputs.of(config, self.contents)
        self.admissions = Admissions(self.store, self.executor, inputs, config, self.metrics, time.time)
        self.sessions = Sessions(self.store, tokens, self.logs, self.metrics, self._poke)
        self.reconciler = Reconciler(self.store, self.executor, self.sessions, self.admissions, tokens, self.logs, config, self.metrics)
        self._inputs = inputs
        self._tasks: list[asyncio.Task[None]] = []
        self.address = ""
        self.http_address = ""
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Open, listen, adopt, serve. Raises `LuthierError`; then nothing is left open."""
        config = self.config
        token = user_token(config.token_file)
        host, http_port = config.http_address()
        self._http = HttpServer(host, http_port, self.metrics.registry, self.pulse, self._targets)
        try:
            self._api = self._build_api(token)
            self.address = self._listen(self._api)
            self.http_address = f"{_in_url(host)}:{self._http.port}"
            self.reconciler.address = self.address
            await self.store.open()
            self.metrics.leader.set(1)
            await self.executor.open()
            await self._api.start()
        except BaseException:
            self._http.close()
            raise
        self._http.start()
        self._tasks = [asyncio.create_task(self._reconcile(), name="reconcile"), asyncio.create_task(self._beat(), name="pulse")]
        _write_endpoint(config, self.address, self.http_address)
        self.pulse.ready = True
        if config.prewarm:
            await self.executor.prewarm("cuda" if config.accelerators else "cpu")

    def _poke(self, uid: str) -> None:
        self.reconciler.poke(uid)

    async def stop(self, *, stop_helpers: bool = False) -> None:
        """Stop serving and let go of the nodes, which run on."""
        self.pulse.ready = False
        await self.sessions.flush()
        await self._api.drain(_DRAIN_SECONDS)
        await self.sessions.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.executor.close(stop_helpers=stop_helpers)
        await self.store.close()
        await asyncio.to_thread(self._http.close)

    def _build_api(self, token: str) -> ApiServer:
        premises = Premises(
            roots=tuple(self.config.roots),
            queues=self.admissions.names,
            max_active_jobs=self.config.max_jobs_per_tenant,
            inputs=self._inputs.check,
        )
        return build_server(
            store=self.store,
            contents=self.contents,
            logs=self.logs,
            queues=self.admissions,
            authenticator=StaticTokens({token: Principal(LOCAL_TENANT, "local")}),
            store_root=self.config.store_root,
            nodes=self.sessions,
            premises=premises,
            observer=lambda method, code, seconds, _: self.metrics.grpc_duration.labels(method, code).observe(seconds),
        )

    def _listen(self, api: ApiServer) -> str:
        """Bind; with port 0 the port of the last time is tried first, so that running nodes find their controller again."""
        host, port = parse_address(self.config.listen)
        if port == 0 and (last := _last_port(self.config.endpoint_file, host)):
            with contextlib.suppress(SpecError):
                return f"{_in_url(host)}:{api.listen(f'{_in_url(host)}:{last}')}"
        return f"{_in_url(host)}:{api.listen(f'{_in_url(host)}:{port}')}"

    async def _reconcile(self) -> None:
        try:
            await self.reconciler.run()
        except Exception as error:  # noqa: BLE001  handed to whoever waits for the controller
            if not self.failed.done():
                self.failed.set_result(error)

    async def _beat(self) -> None:
        while True:
            self.pulse.beat()
            await asyncio.sleep(1.0)

    def _targets(self) -> list[SdTarget]:
        return [
            {
                "targets": [f"{_in_url(n.host)}:{n.metrics_port}"],
                "labels": {"tuning_job": n.job_name, "job_uid": n.job_uid, "node": str(n.node)},
            }
            for n in self.sessions.live_nodes()
            if n.metrics_port
        ]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _last_port(endpoint: Path, host: str) -> int:
    try:
        last_host, port = parse_address(str(json.loads(endpoint.read_text())["address"]))
    except (OSError, ValueError, KeyError, TypeError, SpecError):
        return 0
    return port if last_host == host else 0


def _write_endpoint(config: ControllerConfig, address: str, http_address: str) -> None:
    """Tell the command line where we are."""
    content = {"address": address, "http_address": http_address, "token_file": str(config.token_file), "pid": os.getpid()}
    fresh = config.endpoint_file.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    fresh.rename(config.endpoint_file)


def _lock(config: ControllerConfig) -> int:
    """Own the state directory for the life of the process. Raises `Conflict`."""
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(config.state_dir / "controller.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SpecError(
            f"the state directory {config.state_dir} cannot be used: {error.strerror}", fix="choose another one with --state-dir DIR"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise Conflict(
            f"another controller{f' (process {pid})' if pid else ''} uses the state directory {config.state_dir}",
            reason="STATE_DIR_IN_USE",
            fix="use that one, stop it first, or choose another directory with --state-dir DIR",
        ) from None
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _serve(config: ControllerConfig) -> int:
    controller = Controller(config)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Before the start: from the moment that endpoint.json is there, a signal must end the process in order.
        loop.add_signal_handler(number, signals.put_nowait, number)
    await controller.start()
    _say(f"luthier is ready on {controller.address} (metrics on http://{controller.http_address}/metrics, state in {config.state_dir})")
    first = asyncio.create_task(signals.get())
    controller.failed.add_done_callback(lambda _: first.cancel())
    try:
        number = await first
    except asyncio.CancelledError:
        if not controller.failed.done():
            raise
        await controller.stop()
        raise controller.failed.result() from None
    if number == signal.SIGTERM:
        # With nodes to adopt the zygote stays for their next generation; without, nothing is left behind.
        await controller.stop(stop_helpers=not await controller.reconciler.open_attempts())
        return 0
    return await _suspend(controller, signals)


async def _suspend(controller: Controller, signals: asyncio.Queue[signal.Signals]) -> int:
    """Ctrl-C: jobs save and leave; then the controller and its zygotes go."""
    asked = await controller.reconciler.suspend()
    if asked:
        jobs = "1 job saves and leaves" if asked == 1 else f"{asked} jobs save and leave"
        _say(f"suspending: {jobs}, and the next start carries on; Ctrl-C again leaves at once")
    second = asyncio.create_task(signals.get())
    try:
        while await controller.reconciler.open_attempts() and not second.done():
            await asyncio.wait({second}, timeout=0.1)
    finally:
        second.cancel()
    hurried = second.done() and not second.cancelled()
    await controller.stop(stop_helpers=not hurried)
    if hurried:
        _say("left at once; jobs that were not done saving are looked after by the next start")
    return 130 if hurried else 0


def run(config: ControllerConfig) -> int:
    """Run a controller in the foreground until a signal; returns the exit code. Raises `LuthierError` when it cannot start."""
    lock = _lock(config.checked())
    try:
        return asyncio.run(_serve(config))
    finally:
        os.close(lock)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m luthier.controller.main`: the controller without the command line around it."""
    parser = argparse.ArgumentParser(prog="python -m luthier.controller.main", description="Run a Luthier controller.")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help="gRPC address; port 0: a free one")
    parser.add_argument("--http-listen", default="", metavar="HOST:PORT", help="address of metrics and health")
    parser.add_argument("--state-dir", type=Path, default=None, metavar="DIR", help="everything durable")
    parser.add_argument("--root", action="append", default=[], metavar="NAME=DIR", help="directory that jobs may read as NAME:path")
    parser.add_argument("--cpu-slots", type=int, default=None, metavar="N", help="CPU ranks that may run at once")
    parser.add_argument("--prewarm", action="store_true", help="load the trainer's libraries before the first job")
    parser.add_argument("--insecure", action="store_true", help="allow an address that is not loopback, without TLS")
    options = parser.parse_args(arguments)
    roots = dict(text.partition("=")[::2] for text in options.root)
    settings: dict[str, object] = {} if options.cpu_slots is None else {"cpu_slots": options.cpu_slots}
    logging.basicConfig(
        level=os.environ.get("LUTHIER_LOG_LEVEL", "WARNING").upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        config = ControllerConfig(
            listen=options.listen,
            http_listen=options.http_listen,
            state_dir=(options.state_dir or default_state_dir()).expanduser().absolute(),
            roots={name: Path(directory).expanduser().resolve() for name, directory in roots.items()},
            prewarm=options.prewarm,
            insecure=options.insecure,
            **settings,  # type: ignore[arg-type]
        )
        return run(config)
    except LuthierError as error:
        _say(f"error: {error}")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
