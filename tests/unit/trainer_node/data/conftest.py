"""A byte-level tokenizer made in memory, and small files to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = ["the quick brown fox jumps over the lazy dog", "what is two plus two? two plus two is four.", "User: Assistant: hello there"]


@pytest.fixture(scope="session")
def backend() -> Tokenizer:
    """Byte-level BPE with 300 entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture
def tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers wraps it, without a chat template."""
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes | Sequence[Mapping[str, Any]]], Path]:
    """Write a file of text, of bytes, or of rows as JSONL, and return its path."""

    def put(name: str, content: str | bytes | Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, newline="")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    return put
