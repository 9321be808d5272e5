"""Settings of all suites: which tests start processes, and what a folder's tests are marked with."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROCESSES = {"acceptance", "chaos", "conformance", "integration", "cluster", "gpu"}
"""Folders whose tests start real processes."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder, and keep those that start processes on one xdist worker so that they do not compete for the cores."""
    for item in items:
        try:
            folder = item.path.relative_to(TESTS).parts[0]
        except ValueError:
            continue
        if folder in ("acceptance", "chaos", "cluster", "gpu"):
            item.add_marker(folder)
        if folder in PROCESSES or item.get_closest_marker("zygote"):
            item.add_marker(pytest.mark.xdist_group("processes"))
