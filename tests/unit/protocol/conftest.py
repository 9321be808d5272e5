"""An empty database, made once and copied for each run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.protocol.virtual import template


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database to copy."""
    return template(tmp_path_factory.mktemp("template") / "luthier.db")
