"""What goes on beside serving, and what its faults cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coapgate import upkeep as module
from coapgate.authentication import Authentication
from coapgate.errors import RegistryUnavailable
from coapgate.registry.memory import MemoryRegistry
from coapgate.upkeep import Upkeep
from tests.pumped import pumping
from tests.waiting import until


class Books(MemoryRegistry):
    """A registry in which uses of certificates cannot be written, if the test says so."""

    fault: Exception | None = None
    written = 0
    tried = 0

    async def write_uses(self) -> int:
        self.tried += 1
        if self.fault is not None:
            raise self.fault
        self.written += 1
        return await super().write_uses()


@asynccontextmanager
async def kept_up(books: Books, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Upkeep]:
    monkeypatch.setattr(module, "USES_INTERVAL", 0.01)
    async with pumping(books) as gate, asyncio.TaskGroup() as tasks:
        upkeep = Upkeep(
            books, Authentication(books), gate.pump, gate.turn, lambda: None, Path("nowhere")
        )
        await upkeep.begin()
        running = tasks.create_task(upkeep.run())
        yield upkeep
        running.cancel()


async def test_uses_of_certificates_are_written_again_after_a_registry_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    books = Books()
    books.fault = RegistryUnavailable("database is locked")
    async with kept_up(books, monkeypatch) as upkeep:
        await until(lambda: books.tried == 2, "it is tried twice")
        books.fault = None
        await until(lambda: books.written > 0, "it is written")
        assert upkeep.failures == 0


@pytest.mark.expects_warnings("uses not looked after")
async def test_a_mistake_of_ours_ends_nothing_and_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    books = Books()
    books.fault = ZeroDivisionError()
    async with kept_up(books, monkeypatch) as upkeep:
        await until(lambda: upkeep.failures == 2, "it fails twice")
        books.fault = None
        await until(lambda: books.written > 0, "it is written")
    assert len(caplog.records) == 1
