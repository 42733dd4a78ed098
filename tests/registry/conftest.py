"""Registries of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coapgate.registry.memory import MemoryRegistry
from coapgate.registry.sqlite import SqliteRegistry
from tests.registry.values import NOW

AnyRegistry = MemoryRegistry | SqliteRegistry


def open_sqlite(folder: Path) -> SqliteRegistry:
    """The registry of a folder, as every process opens it."""
    return SqliteRegistry.open(
        "sqlite:///registry.db", folder / "registry.key", folder, wall=lambda: NOW
    )


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteRegistry]:
    with open_sqlite(tmp_path) as registry:
        yield registry


@pytest.fixture(params=["memory", "sqlite"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyRegistry]:
    if request.param == "memory":
        yield MemoryRegistry(wall=lambda: NOW)
    else:
        with open_sqlite(tmp_path) as opened:
            yield opened
