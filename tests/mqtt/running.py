"""A connection that runs for the length of a test, and what became of its publications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

from coapgate.mqtt.connection import Connection
from coapgate.mqtt.settings import ConnectionSettings
from coapgate.mqtt.subscriptions import Complete, Heard, Refusal

WAIT_TIMEOUT = 15.0
"""Seconds after which waiting raises TimeoutError."""


class Address(Protocol):
    """A broker of any kind."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class Running:
    """A running connection; `outcomes` and `heard` in order of arrival."""

    connection: Connection

    def __init__(self) -> None:
        self.outcomes: list[tuple[int, int]] = []
        self.heard: list[Heard | Complete | Refusal] = []
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def ended(self, ticket: int, outcome: int) -> None:
        self.outcomes.append((ticket, outcome))
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)

    def publish(
        self,
        topic: str,
        payload: bytes = b"21.5",
        *,
        ticket: int | None = None,
        qos: int = 1,
        content_type: str | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
        retain: bool = False,
    ) -> None:
        self.connection.publish(
            topic,
            payload,
            qos=qos,
            content_type=content_type,
            user_properties=list(user_properties),
            ticket=ticket,
            retain=retain,
        )

    async def ended_at_least(self, count: int) -> dict[int, int]:
        """Wait for so many outcomes; returns ticket -> outcome, each of which came once."""
        if len(self.outcomes) < count:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((lambda: len(self.outcomes) >= count, future))
            async with asyncio.timeout(WAIT_TIMEOUT):
                await future
        by_ticket = dict(self.outcomes)
        assert len(by_ticket) == len(self.outcomes), "a ticket ended twice"
        return by_ticket

    async def next_tick(self) -> None:
        """Let what was handed over in this tick be written."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        await done

    async def connected(self) -> None:
        async with asyncio.timeout(WAIT_TIMEOUT):
            await self.connection.wait_connected()


@asynccontextmanager
async def running(
    broker: Address, settings: ConnectionSettings | None = None, *, connect: bool = True
) -> AsyncIterator[Running]:
    """Run a connection to `broker`; `connect`: wait until it is there."""
    one = Running()
    settings = replace(settings or ConnectionSettings(""), host=broker.host, port=broker.port)
    one.connection = Connection(settings, one.ended)
    one.connection.listen(one.heard.append, one.ended, lambda: None)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(one.connection.run(), name="mqtt")
        try:
            if connect:
                await one.connected()
            yield one
        finally:
            task.cancel()


async def failures_at_least(connection: Connection, count: int) -> None:
    """Wait until so many attempts to connect have failed; each leaves a line in the log."""
    logger = logging.getLogger("coapgate.mqtt.connection")
    failed = asyncio.Event()
    listener = _Listener(failed)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    try:
        async with asyncio.timeout(WAIT_TIMEOUT):
            while connection.failures < count:
                failed.clear()
                await failed.wait()
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


class _Listener(logging.Handler):
    def __init__(self, heard: asyncio.Event) -> None:
        super().__init__(logging.DEBUG)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.set()
