"""The demo's two jobs as YAML, and what they must achieve. `examples/sft.yaml` is the same pipeline on the committed files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LARGEST_BEFORE", "PIPELINE", "SMALLEST_AFTER", "write_pipeline"]

LARGEST_BEFORE = 0.10
"""Exact match on held-out rows before tuning: the task is new to the base."""
SMALLEST_AFTER = 0.60
"""Exact match on held-out rows after tuning."""

PIPELINE = """\
# Two jobs: a tiny base model from nothing, then LoRA on a task that is new to it, on two nodes.
name: base
method:
  name: pretrain
  params: {num_layers: 2, width: 128, num_heads: 4, vocabulary_size: 800}
data:
  sources: [data/pretrain.jsonl, data/pretrain_questions.jsonl]
  validation: [data/pretrain_validation.jsonl]
training:
  batch_size: 16
  max_length: 64
  threads_per_rank: 1  # so small a model gains nothing from a second core
  epochs: 10
  optimizer: {learning_rate: 2e-3}
---
name: tune
model: job://base
method: sft
adapter: {name: lora, params: {rank: 16, alpha: 32}}
data:
  sources: [data/tune_train.jsonl]
  validation: [data/tune_validation.jsonl]
training:
  batch_size: 32
  max_length: 64
  threads_per_rank: 1
  epochs: 10
  zero_stage: 2
  optimizer: {learning_rate: 2e-3}
resources: {nodes: 2}
evaluation: {every_steps: 25, generate_rows: 100, max_new_tokens: 24}
"""


def write_pipeline(directory: Path) -> Path:
    """Write `sft.yaml` beside the folder `data` of the generated world."""
    path = directory / "sft.yaml"
    path.write_text(PIPELINE, encoding="utf-8")
    return path
