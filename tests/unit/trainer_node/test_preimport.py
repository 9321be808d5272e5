"""The real training stack in a forked rank: nothing left to import, no op compiled, no stale lock waited for."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from luthier.trainer_node.environment import environment_home
from luthier.trainer_node.forking import ensure_zygote

pytestmark = pytest.mark.zygote

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scripted zygote that has imported what the real one imports; its extension folder holds locks of builds that were killed."""
    base = tmp_path_factory.mktemp("stack")
    home = environment_home(base, "cpu")
    for name in ("deepspeed_shm_comm", "cpu_adam", "utils"):
        (home / "extensions" / name).mkdir(parents=True)
        (home / "extensions" / name / "lock").touch()
    with subprocess.Popen([sys.executable, "-P", str(HERE / "scripted_zygote.py"), str(base), "600", "everything"]) as process:
        deadline = time.monotonic() + 110
        while not (home / "zygote.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, "the zygote did not start"
            time.sleep(0.1)
        yield base
        process.terminate()


@pytest.fixture(scope="module")
def groups() -> ModuleType:
    """`Group` of the zygote's tests."""
    spec = importlib.util.spec_from_file_location("zygote_tests", HERE / "test_zygote.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_runs_beside_stale_locks_without_importing_or_building(stack: Path, groups: ModuleType, tmp_path: Path, stage: int) -> None:
    """Two ranks initialise DeepSpeed and make steps within seconds; every module was imported before the fork; no op was built."""

    async def job() -> list[int]:
        client = await ensure_zygote(stack)
        group = await groups.Group(client, tmp_path, 2, f"deepspeed:{stage}").start()
        ends = await group.finish()
        client.close()
        return [end.code for end in ends]

    assert [0, 0] == asyncio.run(job())
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert "imported 0\n" in log, log
    assert "FutureWarning" not in log
    extensions = environment_home(stack, "cpu") / "extensions"
    assert ["cpu_adam/lock", "deepspeed_shm_comm/lock", "utils/lock"] == sorted(
        str(Path(folder, name).relative_to(extensions)) for folder, _, names in os.walk(extensions) for name in names
    )


def test_an_op_that_is_not_prebuilt_is_refused_with_a_reason(tmp_path: Path) -> None:
    """Asking DeepSpeed for a C++ optimiser names the op and the way out instead of starting a compiler."""
    code = (
        "import os; os.environ['DS_ACCELERATOR'] = 'cpu'\n"
        "from luthier.trainer_node.ops import refuse_builds; refuse_builds()\n"
        "from deepspeed.ops.op_builder import CPUAdamBuilder\n"
        "from luthier.errors import ConfigurationError\n"
        "try:\n    CPUAdamBuilder().load()\nexcept ConfigurationError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, env=environment)

    assert "the DeepSpeed op 'cpu_adam' is not prebuilt" in answer.stdout
    assert [] == list(tmp_path.iterdir())
