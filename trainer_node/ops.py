"""No DeepSpeed op is compiled at job start.

DeepSpeed compiles C++ extensions on first use, under a lock file that a killed build leaves behind: later starts then wait for it
for ever, silently. Prebuilt ops load as usual; anything that would start a compiler is refused with a reason.
"""

from __future__ import annotations

from typing import Any

from luthier.errors import ConfigurationError

__all__ = ["refuse_builds"]


def refuse_builds() -> None:
    """Switch the shared-memory collective off (it is built whenever the CPU backend starts) and refuse every other build."""
    import deepspeed.ops
    from deepspeed.ops.op_builder.builder import OpBuilder

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    def refused(self: Any, verbose: bool = True) -> Any:
        raise ConfigurationError(
            f"the DeepSpeed op {self.name!r} is not prebuilt in this environment, and none is compiled at job start",
            fix=f"install DeepSpeed with DS_BUILD_{self.name.upper()}=1, or choose settings that do not need it",
        )

    OpBuilder.jit_load = refused
