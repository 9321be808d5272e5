"""What costs a rank time once per process and holds no state of a job, done when a zygote imports this module.

Beside modules that the libraries import on first use: transformers compiles about 900 regular expressions the first time that a model
is loaded (0.35 s), DeepSpeed imports an optimiser whose functions pass through `torch.compile` (0.1 s; nothing is compiled).
The list of plugins is not looked up here: one that is installed later must be found by the next job.
"""

from __future__ import annotations

import importlib

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

__all__: list[str] = []

_ON_FIRST_USE = (
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_comm",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "luthier.methods.adapters.full",
    "luthier.methods.adapters.lora",
    "luthier.methods.objectives.nll",
    "luthier.methods.pretrain.method",
    "luthier.methods.sft.method",
    "numpy.ctypeslib",
    "peft.utils.transformers_weight_conversion",
    "torch._dynamo.repro.after_dynamo",
    "torch._inductor.compiler_bisector",
    "torch.profiler._cupti_monitor",
)
"""Found by comparing `sys.modules` before and after a job; a name that a later release drops is no error."""

for _name in _ON_FIRST_USE:
    try:
        importlib.import_module(_name)
    except ModuleNotFoundError:
        continue
get_checkpoint_conversion_mapping("llama")
