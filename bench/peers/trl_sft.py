"""The peer of bench/startup.py: TRL's SFTTrainer on a model directory and a JSONL file, as its documentation shows it.

Writes the time at which the first optimiser step ended into FILE (rank 0), trains STEPS steps and exits. Started by torchrun.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train, and note when the first step ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()

    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class FirstStep(TrainerCallback):
        """Notes the end of step 1."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1 and int(os.environ.get("RANK", "0")) == 0:
                arguments.file.write_text(json.dumps({"first_step": time.time()}), encoding="utf-8")

    trainer = SFTTrainer(
        model=arguments.model,
        args=SFTConfig(
            output_dir=arguments.folder,
            max_length=arguments.max_length,
            per_device_train_batch_size=arguments.batch_size,
            max_steps=arguments.steps,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=arguments.data, split="train"),
        callbacks=[FirstStep()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
