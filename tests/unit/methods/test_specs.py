"""What every registered plugin tells the controller: documented parameters, a working example, an implementation, no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.methods import registry
from luthier.methods.adapters.spec import LoraParams
from luthier.methods.spec_api import Slot
from luthier.spec.models import AdapterSpec, TrainingSpec
from luthier.spec.yaml import load_text

EXAMPLES = Path(__file__).parents[3] / "examples"
IDS = sorted(registry.all_specs())
INSTALLED: set[tuple[Slot, str]] = {
    ("method", "pretrain"), ("method", "sft"), ("objective", "nll"), ("adapter", "full"), ("adapter", "lora"),
}  # fmt: skip


def test_the_basics_are_registered() -> None:
    """The plugins that every installation has."""
    assert INSTALLED <= set(IDS)


@pytest.mark.parametrize(("slot", "name"), IDS)
def test_parameters_are_documented(slot: Slot, name: str) -> None:
    """Every parameter has a description, a unit and a default; none repeats a field of training or of the adapter part."""
    spec = registry.find(slot, name)
    assert spec.summary.endswith(".")
    assert spec.params.model_config.get("extra") == "forbid"
    assert spec.params.model_config.get("frozen")
    schema = spec.params.model_json_schema()
    taken = set(TrainingSpec.model_fields) | set(AdapterSpec.model_fields)
    for field, shape in schema.get("properties", {}).items():
        assert shape.get("description"), field
        assert shape.get("unit"), field
        assert field not in taken
    assert not schema.get("required")
    spec.needs(spec.params())


@pytest.mark.parametrize(("slot", "name"), IDS)
def test_examples_are_jobs(slot: Slot, name: str) -> None:
    """The worked example of a method is a document that loads; that of another slot is a part of one."""
    spec = registry.find(slot, name)
    text = spec.example if slot == "method" else f"name: x\nmodel: job://base\nmethod: sft\ndata: data/tune_train.jsonl\n{spec.example}"
    (document,) = load_text(text, base_dir=EXAMPLES)
    part = getattr(document.job.spec, slot)
    assert part.name == name
    from google.protobuf import json_format

    spec.params.model_validate(json_format.MessageToDict(part.params))


@pytest.mark.parametrize(("slot", "name"), IDS)
def test_implementations_take_their_parameters(slot: Slot, name: str) -> None:
    """The implementation is importable and keeps the parameters that identify it in fingerprints."""
    spec = registry.find(slot, name)
    params = spec.params()
    assert registry.load_impl(spec)(params).params is params


def test_specs_need_no_torch() -> None:
    """Reading every spec in a fresh interpreter loads neither torch nor grpc nor peft."""
    code = "import sys; from luthier.methods import registry; registry.all_specs(); print(*({'torch', 'grpc', 'peft'} & set(sys.modules)))"
    assert "" == subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 8.5}, "valid integer"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"target_modules": "q_proj"}, r"write \[q_proj\]"),
        ({"target_modules": []}, "the list is empty"),
        ({"target_modules": ["q_proj", "q_proj"]}, "named twice"),
        ({"target_modules": ["q proj"]}, "not a module name"),
        ({"bias": "all"}, "Input should be 'none'"),
        ({"learning_rate": 1e-4}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_lora_parameters_are_refused(given: dict[str, object], message: str) -> None:
    """Each wrong parameter has its own reason; whole numbers written as doubles are whole numbers."""
    with pytest.raises(ValueError, match=message):
        LoraParams.model_validate(given)
    assert 8 == LoraParams.model_validate({"rank": 8.0}).rank
