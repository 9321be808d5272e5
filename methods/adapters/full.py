"""`full`: every weight is trained; the export is a transformers directory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import MethodError
from luthier.methods.adapters.spec import FullParams
from luthier.methods.api import Export, TensorSource

__all__ = ["Full", "write_model"]


class Full:
    """Leaves the network as it is. Matrices and embeddings get weight decay, vectors (norms, biases) do not."""

    def __init__(self, params: FullParams) -> None:
        self.params = params

    def apply(self, net: nn.Module, seed: int) -> nn.Module:
        """Unfreeze everything; nothing is drawn."""
        net.requires_grad_(True)
        return net

    def trainable(self, name: str, parameter: nn.Parameter) -> str | None:
        """ "decay" for matrices, "no_decay" for vectors."""
        return "decay" if parameter.ndim >= 2 else "no_decay"

    def export(self, net: nn.Module, tensors: TensorSource, directory: Path) -> Export:
        """Write config, generation config and safetensors weights. Rank 0 holds the whole model on the host while writing."""
        gathered = [(name, tensors.get(name)) for name in tensors.names()]
        found = {name: tensor for name, tensor in gathered if tensor is not None}
        if found:  # rank 0
            write_model(net, found, directory)
        return Export(kind="model")


def write_model(net: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    """Write a transformers directory of `net` with `weights` (full CPU tensors by parameter name) in place of its own."""
    if not isinstance(net, PreTrainedModel):
        raise MethodError(
            f"{type(net).__name__} is not a transformers model and cannot be written as one", fix="give the adapter an export of its own"
        )
    state = dict(weights)
    missing = [name for name, _ in net.named_parameters() if name not in state]
    if missing:
        raise MethodError(
            f"the export lacks {len(missing)} of the network's weights, first {missing[0]}",
            fix="report this: a tensor source must hand out every trainable weight",
        )
    stored = net.state_dict()
    parameters = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    state.update({name: value.detach().cpu() for name, value in stored.items() if name not in parameters})  # persistent buffers
    directory.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(directory, state_dict={name: value.contiguous() for name, value in state.items()})
