"""The agent is light: it never imports the training stack, and starts fast."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_agent_imports_no_training_stack() -> None:
    """A fresh interpreter that has everything of the agent loaded knows neither torch nor what comes with it."""
    code = (
        "import json, sys; import luthier.trainer_node.agent, luthier.trainer_node.node, luthier.trainer_node.lineage;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout))

    assert not loaded & {"torch", "deepspeed", "transformers", "peft", "numpy", "pyarrow", "safetensors", "pydantic", "prometheus_client"}
    assert "grpc" in loaded
