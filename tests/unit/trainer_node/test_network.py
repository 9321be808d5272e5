"""Model and tokenizer directories: hostile or broken ones end as data errors, nothing of them is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.errors import DataError
from luthier.trainer_node.network import base_digest, load_config, load_network, load_tokenizer, tokenizer_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A toy Llama directory."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_loads_as_it_was_saved(model: Path) -> None:
    """Weights, tied head and settings are those of the directory, in the asked number format."""
    net: Any = load_network(model, dtype=torch.bfloat16)

    assert torch.bfloat16 == net.dtype
    assert net.lm_head.weight is net.model.embed_tokens.weight
    assert 5000.0 == net.config.rope_parameters["rope_theta"]
    assert str(model) == net.name_or_path
    saved = load_file(model / "model.safetensors")["model.norm.weight"]
    torch.testing.assert_close(net.model.norm.weight.float(), saved)


def test_nothing_dangerous_survives_the_configuration(model: Path) -> None:
    """Code, kernels, private and unknown keys are dropped, on the top and inside."""
    change(
        model / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}, trust_remote_code=True, attn_implementation="evil/kernels",
        _attn_implementation="evil/kernels", _name_or_path="/etc", quantization_config={"quant_method": "evil"}, made_up=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0, "_attn_implementation": "evil/kernels"},
    )  # fmt: skip

    config = load_config(model)

    text = json.dumps(config.to_dict(), default=str)
    assert "evil" not in text
    assert not hasattr(config, "made_up")
    assert "/etc" != config._name_or_path
    net: Any = load_network(model, dtype=torch.float32)
    assert "sdpa" == net.config._attn_implementation


def test_what_breaks_a_model(model: Path, tmp_path: Path) -> None:
    """Each kind of broken directory ends as a data error that names the cause and where."""
    cases: list[tuple[str, Any]] = []

    def broken(name: str, expected: str, damage: Any) -> None:
        copy = tmp_path / name
        copy.mkdir()
        for file in model.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        damage(copy)
        cases.append((expected, copy))

    def without_a_weight(copy: Path) -> None:
        tensors = load_file(copy / "model.safetensors")
        tensors.pop("model.norm.weight")
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})

    def pickled(copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")

    def index_outside(copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))

    def shard_missing(copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))

    def adapter(copy: Path) -> None:
        (copy / "config.json").unlink()
        (copy / "model.safetensors").unlink()
        (copy / "adapter_config.json").write_text("{}")

    broken("no-config", "there is no config.json", lambda c: (c / "config.json").unlink())
    broken("not-json", "cannot be read", lambda c: (c / "config.json").write_text("{"))
    broken("list", "is not a JSON object", lambda c: (c / "config.json").write_text("[]"))
    broken("nested", "cannot be read", lambda c: (c / "config.json").write_text("[" * 100_000))
    broken("architecture", "'evil' is not supported", lambda c: change(c / "config.json", model_type="evil"))
    broken("values", "not valid", lambda c: change(c / "config.json", hidden_size="many"))
    broken("no-weights", "there are no weights", lambda c: (c / "model.safetensors").unlink())
    broken("pickled", "pickled", pickled)
    broken("outside", "cannot be a file here", index_outside)
    broken("shard", "model-1.safetensors is missing", shard_missing)
    broken("cut", "cannot be read", lambda c: (c / "model.safetensors").write_bytes((c / "model.safetensors").read_bytes()[:50]))
    broken("missing-weight", "model.norm.weight", without_a_weight)
    broken("other-shape", "have another shape", lambda c: change(c / "config.json", intermediate_size=16))
    broken("adapter", "holds an adapter", adapter)
    cases.append(("there is no config.json", tmp_path / "nowhere"))

    for expected, directory in cases:
        with pytest.raises(DataError) as caught:
            load_network(directory, dtype=torch.float32)
        assert expected in str(caught.value), f"{directory.name}: {caught.value}"
        assert caught.value.fix, directory.name
        assert str(directory) in caught.value.where, directory.name
        assert 65 == caught.value.exit_code


def tokenizer_directory(directory: Path, **settings: Any) -> Path:
    directory.mkdir()
    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "?": 3}, unk_token="?")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_a_tokenizer_loads_from_plain_settings(tmp_path: Path) -> None:
    """Special tokens come as text or as objects; classes and code that the settings name are ignored."""
    directory = tokenizer_directory(
        tmp_path / "t", bos_token={"content": "<s>", "__type": "AddedToken"}, eos_token="</s>", tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, chat_template="{{ messages }}", model_max_length=7,
    )  # fmt: skip

    tokenizer = load_tokenizer(directory)

    assert (0, 1, None) == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert "{{ messages }}" == tokenizer.chat_template
    assert 7 == tokenizer.model_max_length
    assert [2] == tokenizer.encode("a", add_special_tokens=False)


def test_broken_tokenizers_are_data_errors(tmp_path: Path) -> None:
    """A missing or unreadable tokenizer.json says what to do."""
    broken = tokenizer_directory(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")

    for directory in (tmp_path / "nowhere", broken):
        with pytest.raises(DataError, match="tokenizer") as caught:
            load_tokenizer(directory)
        assert caught.value.fix


def test_digests_follow_content(model: Path, tmp_path: Path) -> None:
    """The digests of base and tokenizer change with the content and with nothing else."""
    before = base_digest(model)
    one = tokenizer_digest(tokenizer_directory(tmp_path / "one"))
    two = tokenizer_digest(tokenizer_directory(tmp_path / "two"))
    (model / "README.md").write_text("unrelated")
    same = base_digest(model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    assert one == two
    assert before == same
    assert before != base_digest(model)
