"""What the zygote imports before it forks: the training stack, and what a rank would otherwise import lazily.

`tests/unit/trainer_node/test_preimport.py` runs DeepSpeed in a fork and fails when it still has to import anything.
"""

from __future__ import annotations

import importlib
import pkgutil

import luthier.methods

__all__ = ["MODULES", "import_everything"]

MODULES: tuple[str, ...] = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch._dynamo.repro.after_dynamo",
    "torch._inductor.compile_fx",
    "torch._inductor.compiler_bisector",
    "torch._subclasses.schema_check_mode",
    "torch.profiler._cupti_monitor",
    "deepspeed",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_comm",
    "deepspeed.module_inject.auto_ep_config",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "tokenizers",
    "peft",
    "safetensors.torch",
    "pyarrow",
    "pyarrow.csv",
    "pyarrow.json",
    "pyarrow.parquet",
    "luthier.trainer_node.rank",
    "luthier.trainer_node.plan",
    "luthier.trainer_node.warm",
    "luthier.trainer_node.engine.deepspeed",
    "luthier.trainer_node.engine.plain",
)


def import_everything() -> None:
    """Import the stack and the built-in methods. Raises ImportError.

    Plugins of other distributions are left to the ranks: their authors edit them between two jobs.
    """
    for name in MODULES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(luthier.methods.__path__, "luthier.methods."):
        importlib.import_module(module.name)
