"""Luthier: a distributed fine-tuning service.

Importing this package loads neither torch nor grpc; public names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier._version import __version__

if TYPE_CHECKING:
    from luthier.client import AsyncClient, Client
    from luthier.errors import LuthierError

__all__ = ["AsyncClient", "Client", "LuthierError", "__version__"]

_HOMES = {"Client": "luthier.client", "AsyncClient": "luthier.client", "LuthierError": "luthier.errors"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)
