"""The pretrain method: tokenizer, initial weights and plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, LlamaForCausalLM

from luthier.errors import DataError
from luthier.methods.api import Artifact, Build, DataRef, Evaluate, Job, Train
from luthier.methods.pretrain.method import SPECIAL_TOKENS, Pretrain, build_model, build_tokenizer
from luthier.methods.pretrain.spec import PretrainParams
from luthier.world import make_world

from .test_contract_on_paper import ADAPTER, PaperJob, replay

SMALL = PretrainParams(num_layers=2, width=32, num_heads=4, num_kv_heads=2, vocabulary_size=400)


@dataclass
class Folder:
    """`ArtifactWriter` and `JobData` over a folder and a list of texts."""

    path: Path
    found: list[str] = field(default_factory=list)

    def texts(self, ref: DataRef) -> Iterable[str]:
        return iter(self.found)

    def rows(self, ref: DataRef) -> Iterable[Mapping[str, Any]]:
        return iter(())

    @property
    def data(self) -> Folder:
        return self

    def artifact_path(self, artifact: Artifact) -> Path:
        return self.path.parent / artifact.name


def made(directory: Path, seed: int = 0, texts: list[str] | None = None) -> Path:
    """Run both Build functions; returns the model directory."""
    for name in ("tokenizer", "initial"):
        (directory / name).mkdir(parents=True)
    world = [row.get("text", "") or row["prompt"] for row in make_world(0).rows["pretrain.jsonl"]]
    tokenizer, initial = Folder(directory / "tokenizer", world if texts is None else texts), Folder(directory / "initial")
    counted = build_tokenizer(
        tokenizer, {"rows": DataRef(), "vocabulary_size": SMALL.vocabulary_size, "max_length": 64}, cast("Job", tokenizer)
    )
    reference = Artifact("tokenizer", "tokenizer", "", "")
    sized = build_model(
        initial, {"tokenizer": reference, "sizes": SMALL.model_dump(), "seed": seed, "max_length": 64}, cast("Job", initial)
    )
    model = LlamaForCausalLM.from_pretrained(initial.path)
    assert {"vocabulary_size": float(model.config.vocab_size)} == counted
    assert {"num_parameters": float(sum(p.numel() for p in model.parameters()))} == sized
    return initial.path


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    """Any text comes back from its tokens, unseen bytes included; the special tokens have ids 0 to 7; the bound is kept."""
    tokenizer = AutoTokenizer.from_pretrained(made(tmp_path))
    for text in ("Where does Gumi live?", "tabs\tand\nlines, 1234", "\u00fcn\u00ef \u65e5\u672c \U0001f3bb", " spaces  around "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.bos_token_id == ids[0]
        assert text == tokenizer.decode(ids[1:])
    assert list(range(8)) == tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ("<|pad|>", "<|bos|>", "<|eos|>") == (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token)
    assert SMALL.vocabulary_size == len(tokenizer)
    assert len(tokenizer("The river runs by.")["input_ids"]) <= 11


def test_chat_template(tmp_path: Path) -> None:
    """The template puts a role token before every message, ends answers, marks what is learned, and can ask for an answer."""
    tokenizer = AutoTokenizer.from_pretrained(made(tmp_path))
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    expected = "<|bos|><|system|>Be kind.<|user|>Hi<|assistant|>Ho<|eos|>"
    assert expected == tokenizer.apply_chat_template(talk, tokenize=False)
    asked = tokenizer.apply_chat_template(talk[:2], tokenize=False, add_generation_prompt=True)
    assert expected.removesuffix("Ho<|eos|>") == asked
    encoded: Any = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    learned = [t for t, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert "Ho<|eos|>" == tokenizer.decode(learned)


def test_same_inputs_give_the_same_files(tmp_path: Path) -> None:
    """Tokenizer and weights depend on text, sizes and seed alone; another seed changes the weights only."""
    torch.manual_seed(1)
    one = made(tmp_path / "1")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two, other = made(tmp_path / "2"), made(tmp_path / "3", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_no_text_is_a_data_error(tmp_path: Path) -> None:
    """Rows without text end the job with what is missing."""
    with pytest.raises(DataError, match="no text to make a tokenizer from"):
        made(tmp_path, texts=[""])


def test_plan() -> None:
    """Tokenizer, weights, training; with held-out rows an evaluation on either side; the seed is part of the weights' fingerprint."""
    job = PaperJob(ADAPTER, model=None)
    phases, prints, result = replay(Pretrain(SMALL), job)
    assert [Build, Build, Train] == [type(p) for p in phases]
    assert isinstance(phases[2], Train)
    assert "phases/2" == phases[2].start.base
    assert result.model is not None
    _, other, _ = replay(Pretrain(SMALL), PaperJob(ADAPTER, model=None, seed=1))
    assert [prints[0] == other[0], prints[1] == other[1]] == [True, False]
    held_out = PaperJob(ADAPTER, model=None, validation=DataRef("validation"))
    assert [Build, Build, Evaluate, Train, Evaluate] == [type(p) for p in replay(Pretrain(SMALL), held_out)[0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 30, "num_heads": 4}, "width 30 is not a multiple of num_heads 4"),
        ({"width": 12, "num_heads": 4}, "rotary positions need an even number"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 4"),
        ({"vocabulary_size": 100}, "greater than or equal to 264"),
        ({"learning_rate": 1e-3}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_sizes_are_refused(wrong: dict[str, Any], message: str) -> None:
    """Sizes that no Llama can have are refused with the reason."""
    with pytest.raises(ValidationError, match=message):
        PretrainParams(**wrong)
