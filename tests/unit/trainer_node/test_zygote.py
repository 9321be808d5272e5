"""Zygote and forks with real processes: folder, lock, socket, exit codes, life and death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.trainer_node.environment import environment_home, zygote_environment
from luthier.trainer_node.forking import ZygoteClient, ZygoteFailed, ensure_zygote
from luthier.trainer_node.launch import NodeLaunch, RankLaunch
from luthier.trainer_node.orphans import Reaper, set_subreaper
from luthier.trainer_node.ranks import LocalRank, RankEnd, start_rank

pytestmark = pytest.mark.zygote

SCRIPT = Path(__file__).parent / "scripted_zygote.py"
SECONDS = 30.0


def start_zygote(base: Path, idle_seconds: float) -> subprocess.Popen[bytes]:
    """A scripted zygote of this test's own, ready."""
    process = subprocess.Popen([sys.executable, "-P", str(SCRIPT), str(base), str(idle_seconds)], start_new_session=True)
    ready = environment_home(base, "cpu") / "zygote.json"
    deadline = time.monotonic() + SECONDS
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline, "the zygote did not start"
        time.sleep(0.02)
    return process


@pytest.fixture
def own_zygote(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A zygote that the test may kill, and its folder."""
    base = tmp_path / "zygote"
    process = start_zygote(base, 60.0)
    yield base, process
    process.kill()
    process.wait()


class Group:
    """Ranks of one group, forked over one connection."""

    def __init__(self, client: ZygoteClient, directory: Path, world_size: int, script: str, **changes: Any) -> None:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.messages: dict[int, list[Mapping[str, Any]]] = {}
        self.ranks: list[LocalRank] = []
        self._client = client
        self._world_size = world_size
        spec = changes.pop("spec", {"method": {"name": "sft"}, "env": {"SCRIPT": script, "GREETING": "hello"}})
        self._node = NodeLaunch("uid", "job", "me", 1, 0, 1, world_size, "", "", str(directory), spec, threads_per_rank=2)
        self._changes = changes

    async def start(self) -> Group:
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            for rank in range(self._world_size):
                launch = RankLaunch(self._node, 1, rank, rank, self._world_size, address, str(self.directory), **self._changes)
                handed = listener.fileno() if rank == 0 and self._world_size > 1 else None
                local = await start_rank(self._client, launch, handed, self.directory)
                self.messages[rank] = []
                local.listen(lambda who, message: self.messages[who.rank].append(message))
                self.ranks.append(local)
        return self

    async def finish(self) -> list[RankEnd]:
        async with asyncio.timeout(SECONDS):
            return list(await asyncio.gather(*(rank.finish() for rank in self.ranks)))

    def log(self, rank: int) -> str:
        return (self.directory / "logs" / f"rank-{rank}.log").read_text()


async def run(base: Path, directory: Path, script: str, world_size: int = 1) -> tuple[list[RankEnd], Group]:
    """Run a group to its end."""
    client = await ensure_zygote(base)
    try:
        group = await Group(client, directory, world_size, script).start()
        return await group.finish(), group
    finally:
        client.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(("script", "code"), [("exit:0", 0), ("exit:3", 3), ("kill:9", -9), ("kill:15", -15), ("raise:bug", 70), ("", 0)])
async def test_exit_codes_and_signals_are_reported(scripted_zygote: Path, tmp_path: Path, script: str, code: int) -> None:
    """The status of waitpid reaches the agent as an exit code, negative for a signal."""
    (end,), _ = await run(scripted_zygote, tmp_path, script)

    assert code == end.code


@pytest.mark.asyncio
async def test_a_rank_has_its_own_session_folder_environment_and_descriptors(scripted_zygote: Path, tmp_path: Path) -> None:
    """Nothing of the zygote or of another rank is left open; threads, variables and signals are set."""
    directory = tmp_path / "n0"
    (end,), group = await run(scripted_zygote, directory, "environment threads")
    log = group.log(0)

    assert 0 == end.code
    assert "process True n0 2 True\n" in log
    assert "'GREETING': 'hello'" in log and "'GLOO_SOCKET_IFNAME': 'lo'" in log and "'RANK': '0'" in log and "'LOCAL_SIZE': '1'" in log
    own = [str(directory / "logs" / f"rank-0.{name}") for name in ("log", "stacks")]
    assert sorted(["/dev/null", *own, "pipe", "socket"]) == json.loads(log.partition("descriptors ")[2].splitlines()[0])
    assert "threads ['MainThread', 'lifeline']\n" in log


@pytest.mark.asyncio
@pytest.mark.parametrize("world_size", [2, 3])
async def test_collectives_over_real_gloo(scripted_zygote: Path, tmp_path: Path, world_size: int) -> None:
    """Sums, maxima and JSON are right on every rank, integers beyond 32 bits included."""
    ends, group = await run(scripted_zygote, tmp_path, "collectives", world_size)
    total = sum(range(world_size))
    gathered = [{"rank": rank, "text": "x" * rank} for rank in range(world_size)]

    assert [0] * world_size == [end.code for end in ends]
    for rank in range(world_size):
        sums = [total, world_size * 2**40 + total]
        assert f"sum {sums} {[sum(0.1 * r for r in range(world_size))]} [{world_size - 1}, 0]" in group.log(rank)
        assert f"json {{'from': 0}} {gathered}" in group.log(rank)


@pytest.mark.asyncio
async def test_a_killed_peer_ends_the_others_with_72(scripted_zygote: Path, tmp_path: Path) -> None:
    """Ranks blocked in a collective notice a dead peer at once and end as a consequence, never as a cause."""
    client = await ensure_zygote(scripted_zygote)
    group = await Group(client, tmp_path, 3, "start hold").start()
    deadline = time.monotonic() + SECONDS
    while not all(any(m.get("fact") == "phase_started" for m in heard) for heard in group.messages.values()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    group.ranks[1].process.kill(signal.SIGKILL)
    ends = await group.finish()
    client.close()

    assert [72, -9, 72] == [end.code for end in ends]
    assert ends[0].message.startswith("Another rank ended")


@pytest.mark.asyncio
async def test_the_exit_code_is_known_from_the_channel_when_the_zygote_was_killed(
    own_zygote: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A rank outlives its zygote; its own last words tell how it ended, and a rank without last words has an unknown end."""
    base, process = own_zygote
    client = await ensure_zygote(base)
    speaking = await Group(client, tmp_path / "a", 1, "sleep:0.5 raise:data").start()
    silent = await Group(client, tmp_path / "b", 1, "sleep:0.5 kill:9").start()
    process.kill()
    process.wait()

    assert [RankEnd(65, "rows.jsonl:3: not JSON Fix: repair the line")] == await speaking.finish()
    assert [-1000] == [end.code for end in await silent.finish()]
    assert client.closed
    with pytest.raises(ZygoteFailed, match="gone"):
        await Group(client, tmp_path / "c", 1, "").start()


@pytest.mark.asyncio
async def test_a_subreaper_knows_how_a_rank_ended_although_its_zygote_was_killed(
    own_zygote: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Where the agent owns the zygote, orphaned ranks become its children and the system tells their status."""
    base, process = own_zygote
    set_subreaper(True)
    try:
        client = await ensure_zygote(base, reaper=Reaper())
        group = await Group(client, tmp_path, 1, "sleep:0.5 kill:9").start()
        process.kill()

        assert [RankEnd(-9, "killed by signal SIGKILL")] == await group.finish()
    finally:
        set_subreaper(False)


@pytest.mark.asyncio
async def test_ranks_die_when_the_connection_of_their_agent_closes(scripted_zygote: Path, tmp_path: Path) -> None:
    """The zygote kills the ranks of a client that is gone, also one that could not act on its lifeline."""
    client = await ensure_zygote(scripted_zygote)
    group = await Group(client, tmp_path, 1, "start sleep:600").start()
    rank = group.ranks[0]
    rank.process.kill(signal.SIGSTOP)
    client.close()

    assert [-1000] == [end.code for end in await group.finish()]


@pytest.mark.asyncio
async def test_a_rank_leaves_when_its_lifeline_closes(scripted_zygote: Path, tmp_path: Path) -> None:
    """Closing the agent's end of the pipe ends the rank with 76."""
    client = await ensure_zygote(scripted_zygote)
    group = await Group(client, tmp_path, 1, "start sleep:600").start()
    os.close(group.ranks[0]._lifeline)
    group.ranks[0]._lifeline = -1

    assert [76] == [end.code for end in await group.finish()]
    client.close()


def test_the_socket_works_below_a_path_longer_than_an_address(tmp_path: Path) -> None:
    """Folders may be deeper than the 107 bytes of a unix socket address."""
    base = tmp_path / ("deep" * 40) / "zygote"
    process = start_zygote(base, 60.0)
    try:
        (end,), _ = asyncio.run(run(base, tmp_path / "n0", ""))
    finally:
        process.kill()
        process.wait()

    assert 0 == end.code
    assert len(str(base)) > 150


def test_the_folder_is_private_and_names_the_process(own_zygote: tuple[Path, subprocess.Popen[bytes]]) -> None:
    """Folder 0700, socket 0600, pid and start time written, one thread only."""
    base, process = own_zygote
    home = environment_home(base, "cpu")
    facts = json.loads((home / "zygote.json").read_text())

    assert 0o700 == base.stat().st_mode & 0o777 == home.stat().st_mode & 0o777
    assert 0o600 == (home / "zygote.sock").stat().st_mode & 0o777
    assert process.pid == facts["pid"]
    assert 1 == facts["threads"]


def test_a_second_start_exits_0_at_once(own_zygote: tuple[Path, subprocess.Popen[bytes]]) -> None:
    """Whoever starts a zygote where one lives does no harm and loses no time importing."""
    base, process = own_zygote
    started = time.monotonic()
    command = [sys.executable, "-P", "-m", "luthier.trainer_node.zygote", str(base), "--detach"]
    second = subprocess.run(command, timeout=SECONDS, check=False)

    assert 0 == second.returncode
    assert time.monotonic() - started < 5
    assert process.poll() is None


def test_an_idle_zygote_goes_away_and_cleans_up(tmp_path: Path) -> None:
    """Without connections and children it leaves after its time, and takes its socket along."""
    base = tmp_path / "zygote"
    process = start_zygote(base, 0.3)

    assert 0 == process.wait(timeout=SECONDS)
    assert ["zygote.lock"] == sorted(p.name for p in base.glob("*/*"))


def test_an_idle_zygote_whose_code_was_replaced_goes_away(tmp_path: Path) -> None:
    """Nobody would ask it again: agents look for the zygote of what is installed now."""
    (tmp_path / "cpu-older").mkdir()
    code = (
        "import sys; from pathlib import Path; from luthier.trainer_node.zygote import Zygote;"
        "Zygote(Path(sys.argv[1]), 600.0, print).serve()"
    )
    started = subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "cpu-older")], timeout=SECONDS, check=False)

    assert 0 == started.returncode
    assert [] == list((tmp_path / "cpu-older").iterdir())


@pytest.mark.asyncio
@pytest.mark.timeout(180)
async def test_the_real_zygote_leaves_the_process_tree_and_its_ranks_run_real_plans(zygote_dir: Path, tmp_path: Path) -> None:
    """Started on demand, detached, single-threaded after all imports; a plan that cannot be made ends with 64 and says why."""
    client = await ensure_zygote(zygote_dir)
    facts = json.loads((environment_home(zygote_dir, "cpu") / "zygote.json").read_text())
    group = await Group(client, tmp_path, 1, "", spec={"method": {"name": "sfd"}}).start()
    (end,) = await group.finish()
    client.close()

    parent = int(Path(f"/proc/{facts['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != os.getpid()
    assert 1 == facts["threads"]
    assert 64 == end.code
    assert "there is no method 'sfd'" in end.message and "did you mean 'sft'?" in end.message


@pytest.mark.asyncio
async def test_a_zygote_with_a_rank_is_not_idle(tmp_path: Path) -> None:
    """A connection or a living rank keeps the zygote."""
    base = tmp_path / "zygote"
    process = start_zygote(base, 0.2)
    (end,), _ = await run(base, tmp_path / "n0", "sleep:1")

    assert 0 == end.code
    assert 0 == await asyncio.to_thread(process.wait, SECONDS)


def test_garbage_on_the_socket_only_loses_its_connection(own_zygote: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """A request that is none is refused; the zygote serves on."""
    base, process = own_zygote
    home = environment_home(base, "cpu")
    for garbage in (b"not json\n", b'{"op": "fork", "id": 1}\n', b'{"op": "shell"}\n', b"[]\n"):
        with socket.socket(socket.AF_UNIX) as sock:
            descriptor = os.open(home, os.O_RDONLY)
            sock.connect(f"/proc/self/fd/{descriptor}/zygote.sock")
            os.close(descriptor)
            sock.sendall(garbage)

            assert b"" == sock.recv(10)
    (end,), _ = asyncio.run(run(base, tmp_path, ""))

    assert 0 == end.code
    assert process.poll() is None


@pytest.mark.asyncio
async def test_a_stack_that_cannot_be_imported_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines of the zygote's log are in the error."""
    command = "luthier.trainer_node.forking._start"

    def broken(base: Path, device: str, idle_seconds: float, owned: bool) -> None:
        home = environment_home(base, device)
        home.mkdir(parents=True)
        (home / "zygote.log").write_text("ModuleNotFoundError: No module named 'torch'\n")

    monkeypatch.setattr(command, broken)
    monkeypatch.setattr("luthier.trainer_node.forking._VANISHED_SECONDS", 0.2)
    with pytest.raises(ZygoteFailed, match="No module named 'torch'") as caught:
        await ensure_zygote(tmp_path / "zygote")

    assert not caught.value.retry


def test_the_folder_is_named_by_the_code_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of torch, or another device, is another zygote."""
    module = "luthier.trainer_node.environment.installed_versions"
    homes = {environment_home(tmp_path, "cpu"), environment_home(tmp_path, "cuda")}
    monkeypatch.setattr(module, lambda: {"torch": "9.9"})
    homes.add(environment_home(tmp_path, "cpu"))

    assert 3 == len(homes)
    assert {tmp_path} == {home.parent for home in homes}


def test_the_environment_of_a_zygote_holds_no_secrets_and_fixed_settings(tmp_path: Path) -> None:
    """Tokens and job variables of whoever starts it stay out; a second pass changes nothing."""
    present = {"PATH": "/bin", "LUTHIER_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "PYTHONPATH": "/evil", "OMP_NUM_THREADS": "8"}
    environment = zygote_environment(present, tmp_path, "cpu")

    assert "secret" not in environment.values()
    assert "PYTHONPATH" not in environment
    assert ("cpu", "1", "1", "PASSIVE", "false") == tuple(
        environment[name] for name in ("DS_ACCELERATOR", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")
    )
    assert environment == zygote_environment(environment, tmp_path, "cpu")
