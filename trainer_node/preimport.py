"""What the zygote imports before it forks: the training stack, and what it would otherwise import lazily in every rank.

`tests/unit/trainer_node/test_preimport.py` runs a real DeepSpeed job in a fork and fails when it still imports many modules.
"""

from __future__ import annotations

__all__ = ["MODULES"]

MODULES: tuple[str, ...] = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed",
    "deepspeed.runtime.engine",
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
    "pyarrow.parquet",
    "luthier.trainer_node.rank",
    "luthier.trainer_node.plan",
)
