"""Models and tokenizers from directories that may be hostile.

A model directory is `config.json` and safetensors weights; nothing else of it is read, nothing is executed and nothing is unpickled.
The configuration is read as JSON, its `model_type` and keys are checked against lists, and whatever could make a library load code,
fetch files or change kernels is dropped. What is missing or broken ends the job as a data error that says what, where and how to fix it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from luthier.errors import DataError

__all__ = ["MODEL_TYPES", "base_digest", "check_model", "load_config", "load_network", "load_tokenizer", "tokenizer_digest", "weight_files"]

MODEL_TYPES = frozenset(
    {
        "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "granite", "llama", "ministral", "mistral", "mixtral", "olmo",
        "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Decoder-only architectures that transformers implements itself."""

_DROPPED = frozenset(
    {
        "attn_implementation", "auto_map", "code_revision", "custom_pipelines", "experts_implementation", "kernel_config",
        "quantization_config", "torch_dtype", "transformers_version", "trust_remote_code", "use_kernels",
    }
)  # fmt: skip
"""Keys that name code, kernels or number formats; Luthier decides those."""
_COMMON = frozenset(
    {
        "architectures", "bos_token_id", "decoder_start_token_id", "dtype", "eos_token_id", "id2label", "label2id", "model_type",
        "pad_token_id", "rope_scaling", "rope_theta", "sep_token_id", "tie_word_embeddings", "use_cache",
    }
)  # fmt: skip
_MAX_CONFIG_BYTES = 1 << 20
_SHARD = re.compile(r"[A-Za-z0-9_.-]{1,200}\.safetensors")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES * 64:
            raise ValueError("it is larger than 64 MiB")
        data = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        names = sorted(p.name for p in path.parent.iterdir())[:6] if path.parent.is_dir() else []
        hint = f"the directory holds {', '.join(names)}" if names else "the directory is empty or missing"
        if path.parent.is_file():
            hint = "that is a file, not a directory"
        if "adapter_config.json" in names:
            hint = "the directory holds an adapter, not a model"
        raise DataError(
            f"there is no {path.name} ({hint})", where=str(path.parent),
            fix="give a directory in transformers' format; of an adapter, export the merged form (output: {form: merged})",
        ) from error  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{what} cannot be read: {error}", where=str(path), fix="restore the file") from error
    if not isinstance(data, dict):
        raise DataError(f"{what} is not a JSON object", where=str(path), fix="restore the file")
    return data


# --- configuration --------------------------------------------------------------------------------------------------


def load_config(directory: Path) -> Any:
    """The configuration of a model directory, with everything dangerous left out. Raises `DataError`."""
    path = directory / "config.json"
    raw = _read_json(path, "the model's configuration")
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise DataError(
            f"the architecture {model_type!r} is not supported",
            where=str(path),
            fix=f"use a model of type {', '.join(sorted(MODEL_TYPES))}",
        )
    kind = CONFIG_MAPPING[model_type]
    known = set(_COMMON)
    for base in kind.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    known = {name for name in known if not name.startswith("_")} - _DROPPED
    kept = {name: value for name, value in raw.items() if name in known and _plain(value)}
    kept.pop("model_type")
    try:
        config = kind(**kept)
    except Exception as error:
        # Configuration classes validate their values with exceptions of many kinds, all of which mean that the file is wrong.
        raise DataError(f"the model's configuration is not valid: {error}", where=str(path), fix="restore the file") from error
    config.architectures = [_network_class(kind).__name__]
    return config


def _network_class(config_class: Any) -> Any:
    """The causal language model of a configuration class."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[config_class]


def _plain(value: Any, depth: int = 0) -> bool:
    """Numbers, texts, and lists and objects of them, without private or dropped keys inside."""
    if depth > 4:
        return False
    if isinstance(value, dict):
        return all(
            isinstance(name, str) and not name.startswith("_") and name not in _DROPPED and _plain(item, depth + 1)
            for name, item in value.items()
        )
    if isinstance(value, list):
        return all(_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


# --- weights --------------------------------------------------------------------------------------------------------


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in a stable order. Raises `DataError`; pickled weights are refused."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted({str(name) for name in _read_json(index, "the weight index").get("weight_map", {}).values()})
        for name in names:
            if not _SHARD.fullmatch(name):
                raise DataError(f"the weight index names {name!r}, which cannot be a file here", where=str(index), fix="restore the file")
            if not (directory / name).is_file():
                raise DataError(f"the weight file {name} is missing", where=str(directory), fix="copy the whole model directory")
        if names:
            return [directory / name for name in names]
    pickled = sorted(p.name for p in directory.glob("*.bin")) + sorted(p.name for p in directory.glob("*.pt*"))
    if pickled:
        raise DataError(
            f"the weights are pickled ({pickled[0]}), which could run code", where=str(directory),
            fix="convert them once: load the model with transformers and save_pretrained(...) it, which writes safetensors",
        )  # fmt: skip
    raise DataError("there are no weights (model.safetensors)", where=str(directory), fix="copy the whole model directory")


def check_model(directory: Path) -> None:
    """Raise `DataError` at once for what a glance can tell, before data is read for the model."""
    load_config(directory)
    weight_files(directory)


def _tensors(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise DataError(f"the weight file cannot be read: {error}", where=str(path), fix="copy the model again") from error
    return found


def base_digest(directory: Path) -> str:
    """SHA-256 over configuration and weights: which frozen base a checkpoint belongs to."""
    digest = hashlib.sha256()
    for path in [directory / "config.json", *weight_files(directory)]:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def load_network(directory: Path, *, dtype: torch.dtype, zero3: Mapping[str, Any] | None = None) -> nn.Module:
    """The causal language model of a directory, in `dtype`, on CPU. Raises `DataError` when anything does not fit.

    `zero3`: DeepSpeed's configuration; every parameter is then sharded over the ranks as soon as it exists, so that no rank ever holds
    the whole model. Collective in that case.
    """
    config = load_config(directory)
    kind = _network_class(type(config))
    tensors = _tensors(directory)
    with _quiet(), _sharded_from_birth(zero3):
        try:
            net, report = kind.from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, attn_implementation="sdpa", output_loading_info=True,
                local_files_only=True, ignore_mismatched_sizes=True,  # they are refused below, with their names
            )  # fmt: skip
        except Exception as error:
            # A weight of the wrong shape ends in exceptions of many kinds inside transformers.
            raise DataError(
                f"the weights do not fit the configuration: {error}", where=str(directory), fix="copy the model again"
            ) from error
    wrong = [*sorted(report["missing_keys"]), *sorted(str(key[0]) for key in report["mismatched_keys"])]
    if wrong:
        raise DataError(
            f"{len(wrong)} weights of the {config.model_type} model are missing or have another shape, first {wrong[0]}",
            where=str(directory), fix="copy the whole model directory; config.json and weights must belong together",
        )  # fmt: skip
    ignored = sorted(report["unexpected_keys"])
    if ignored:
        print(f"{directory}: {len(ignored)} tensors of the files are not part of the model, first {ignored[0]}")
    net.name_or_path = str(directory)
    net.config._name_or_path = str(directory)
    module: nn.Module = net
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports missing weights in a table on the log; here they become one error."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextlib.contextmanager
def _sharded_from_birth(zero3: Mapping[str, Any] | None) -> Iterator[None]:
    """transformers looks at a process-wide setting, which must live exactly as long as one load."""
    if zero3 is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    setting = HfDeepSpeedConfig(dict(zero3))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del setting


# --- tokenizer ------------------------------------------------------------------------------------------------------

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PLAIN_SETTINGS = ("model_max_length", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token")


def tokenizer_digest(directory: Path) -> str:
    """SHA-256 over the files that make the tokenizer."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a directory, from `tokenizer.json` and plain settings alone. Raises `DataError`."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            "there is no tokenizer.json", where=str(directory),
            fix="save a fast tokenizer beside the model (tokenizer.save_pretrained), or set model.tokenizer_uri",
        )  # fmt: skip
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            settings |= _read_json(directory / name, "the tokenizer's settings")
    arguments: dict[str, Any] = {}
    for name in _SPECIAL:
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            arguments[name] = text
    for name in _PLAIN_SETTINGS:
        if isinstance(settings.get(name), (bool, int)):
            arguments[name] = settings[name]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    if isinstance(extra, list) and all(isinstance(token, str) for token in extra):
        arguments["extra_special_tokens"] = extra
    template = directory / "chat_template.jinja"
    chat = template.read_text() if template.is_file() else settings.get("chat_template")
    if isinstance(chat, str):
        arguments["chat_template"] = chat
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path), padding_side="right", **arguments)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files it cannot parse.
        raise DataError(f"the tokenizer cannot be read: {error}", where=str(path), fix="restore the file") from error
