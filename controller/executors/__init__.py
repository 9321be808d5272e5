"""Executors by id, loaded on demand: the software of one backend is never needed by another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from luthier.controller.executors.api import Executor
from luthier.errors import SpecError

__all__ = ["EXECUTORS", "load_executor"]

EXECUTORS = {
    "local": "luthier.controller.executors.local:LocalExecutor",
}
"""id -> "module:Class"."""


def load_executor(name: str) -> Callable[..., Executor]:
    """The class of an executor. Raises `SpecError` for an unknown id."""
    if name not in EXECUTORS:
        raise SpecError(f"there is no executor {name!r}", fix=f"choose one of {', '.join(sorted(EXECUTORS))}")
    module, _, attribute = EXECUTORS[name].partition(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    made: Callable[..., Executor] = found
    return made
