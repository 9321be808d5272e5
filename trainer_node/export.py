"""The result of a job: a directory that plain transformers or peft opens, re-opened and compared before the job may succeed.

Rank 0 writes; every rank takes part in gathering tensors. What was written is opened again in the same process, every tensor is
checked, and the logits of a probe are compared with those of the live network: equal within 1e-4 of the largest logit in fp32, within
5e-2 in bf16 and for merged adapters in bf16 (merging rounds once more).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from luthier.errors import ConfigurationError, StorageError
from luthier.methods.api import Surgery
from luthier.trainer_node.engine.api import Engine
from luthier.trainer_node.logprobs import causal_lm
from luthier.trainer_node.network import load_network

__all__ = ["EngineTensors", "NetworkTensors", "copy_tokenizer", "export_model", "probe_logits"]

Form = Literal["auto", "adapter", "merged"]
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest difference of a logit over the largest logit."""
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip


class EngineTensors:
    """Trained tensors gathered from an engine (`methods.api.TensorSource`), in `dtype`."""

    def __init__(self, engine: Engine, names: Sequence[str], dtype: torch.dtype) -> None:
        self._engine = engine
        self._names = tuple(names)
        self._dtype = dtype

    def names(self) -> Sequence[str]:
        """Names of the trained parameters."""
        return self._names

    def get(self, name: str) -> Tensor | None:
        """The full CPU tensor on rank 0, None elsewhere. Collective."""
        tensor = dict(self._engine.gather([name]))[name]
        return None if tensor is None else tensor.to(self._dtype)


class NetworkTensors:
    """Trained tensors of an ordinary network (`methods.api.TensorSource`): rank 0 hands them out."""

    def __init__(self, net: nn.Module, names: Sequence[str], rank: int, dtype: torch.dtype) -> None:
        self._parameters = dict(net.named_parameters())
        self._names = tuple(names)
        self._rank = rank
        self._dtype = dtype

    def names(self) -> Sequence[str]:
        """Names of the trained parameters."""
        return self._names

    def get(self, name: str) -> Tensor | None:
        """The full CPU tensor on rank 0, None elsewhere."""
        return self._parameters[name].detach().cpu().to(self._dtype) if self._rank == 0 else None


def probe_logits(net: nn.Module, device: str) -> Tensor:
    """Logits float32 [2, 12, V] of two fixed rows; the network must be usable without collectives."""
    vocabulary = int(causal_lm(net).config.vocab_size)
    ids = (torch.arange(24).reshape(2, 12) * 7 + 5) % vocabulary
    with torch.no_grad():
        logits: Tensor = net(input_ids=ids.to(device)).logits
    return logits.float().cpu()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer's files beside the weights, so that the directory is complete."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def export_model(
    net: nn.Module,
    surgery: Surgery,
    tensors: EngineTensors | NetworkTensors,
    directory: Path,
    *,
    form: Form,
    base: Path,
    tokenizer: Path,
    live: Tensor | None,
    precision: Literal["fp32", "bf16"],
    rank: int,
    alone: Callable[[Callable[[], None]], None],
) -> str:
    """Write, re-open and compare; returns "adapter" or "model". Collective.

    `live` are rank 0's probe logits of the trained network; `alone` runs what only rank 0 does while the others wait outside
    collectives. Raises `StorageError` when the directory is not what was trained.
    """
    kind = surgery.export(net, tensors, directory).kind
    if form == "adapter" and kind != "adapter":
        raise ConfigurationError(
            "there is no adapter to export: every weight was trained", where="output.form", fix="set output.form to auto"
        )

    def check() -> None:
        assert live is not None, "rank 0 has the live logits"
        copy_tokenizer(tokenizer, directory)
        expected = len(tensors.names()) if kind == "adapter" else 0
        _check_tensors(directory, expected)
        if kind == "adapter":
            reopened = _open_adapter(base, directory, live_precision=precision)
            _compare(live, probe_logits(reopened, "cpu"), precision, directory)
            if form == "merged":
                _merge(reopened, directory, tokenizer, live, precision)
        else:
            _compare(live, probe_logits(_open_model(directory), "cpu"), precision, directory)

    alone(check)
    return "model" if form == "merged" else kind


def _check_tensors(directory: Path, expected: int) -> None:
    """Every tensor is finite and not empty; `expected` of them (0: any number but none)."""
    count = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                count += 1
                if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
                    what = "is empty" if tensor.numel() == 0 else "has values that are not finite"
                    raise StorageError(f"exported tensor {name} {what}", where=str(path), fix="report this; the checkpoint is kept")
    if count == 0 or (expected and count != expected):
        raise StorageError(f"the export holds {count} tensors instead of {expected or 'all'}", where=str(directory), fix="report this")


def _compare(live: Tensor, reopened: Tensor, precision: Literal["fp32", "bf16"], directory: Path) -> None:
    scale = max(float(live.abs().max()), 1e-6)
    difference = float((live - reopened).abs().max()) / scale
    if not difference <= TOLERANCE[precision]:
        raise StorageError(
            f"the re-opened export does not give the logits of the trained network: off by {difference:.2e} of the largest, "
            f"{TOLERANCE[precision]:.0e} is allowed", where=str(directory), fix="report this; the checkpoint is kept",
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and tables of loading."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _open_model(directory: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with _quiet():
        opened: Any = AutoModelForCausalLM.from_pretrained(str(directory), output_loading_info=True, local_files_only=True)
    net, report = opened
    missing = sorted(report["missing_keys"])
    if missing:
        raise StorageError(f"the export lacks {len(missing)} weights, first {missing[0]}", where=str(directory), fix="report this")
    module: nn.Module = net.eval()
    return module


def _open_adapter(base: Path, directory: Path, live_precision: str) -> Any:
    from peft import PeftModel

    dtype = torch.bfloat16 if live_precision == "bf16" else torch.float32
    return PeftModel.from_pretrained(load_network(base, dtype=dtype), str(directory), local_files_only=True).eval()


def _merge(adapted: Any, directory: Path, tokenizer: Path, live: Tensor, precision: Literal["fp32", "bf16"]) -> None:
    """Replace the adapter directory by the full model with the adapter merged in."""
    merged = adapted.merge_and_unload(safe_merge=True)
    draft = directory.with_name(f"{directory.name}.merged")
    shutil.rmtree(draft, ignore_errors=True)
    with _quiet():
        merged.save_pretrained(str(draft))
    copy_tokenizer(tokenizer, draft)
    shutil.rmtree(directory)
    draft.replace(directory)
    _check_tensors(directory, 0)
    _compare(live, probe_logits(_open_model(directory), "cpu"), precision, directory)
