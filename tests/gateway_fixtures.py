"""Fixtures for tests against a gateway that runs: those of `e2e` and of `interop`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.bus import Bus, listening
from tests.gateways import Installation, Running, running
from tests.peers import Mosquitto
from tests.waiting import in_its_own_task

Install = Callable[..., Installation]
StartGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
def install(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Install]:
    """Configure a gateway: `install(dtls={"handshake_timeout": 1.0}, broker_url=...)`."""
    installed: list[Installation] = []

    def make(broker_url: str | None = None, **options: dict[str, object]) -> Installation:
        if broker_url is None:
            broker: Mosquitto = request.getfixturevalue("broker")
            broker_url = broker.url
        folder = tmp_path / f"gateway-{len(installed)}"
        folder.mkdir()
        one = Installation(folder, broker_url, options)
        installed.append(one)
        return one

    yield make
    for one in installed:
        one.close()


@pytest.fixture
async def start_gateway(install: Install) -> AsyncIterator[StartGateway]:
    """Configure a gateway and let it serve, until the test ends; arguments as of `install`."""
    async with AsyncExitStack() as stack:

        async def start(broker_url: str | None = None, **options: dict[str, object]) -> Running:
            installation = install(broker_url, **options)
            return await stack.enter_async_context(in_its_own_task(running(installation)))

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Running:
    """A gateway that serves, at the session's mosquitto."""
    return await start_gateway()


@pytest.fixture
async def bus(gateway: Running, broker: Mosquitto) -> AsyncIterator[Bus]:
    """What `gateway` publishes of devices in the default tenant."""
    root = f"{gateway.installation.root}/default"
    async with in_its_own_task(listening(broker.host, broker.port, root)) as bus:
        yield bus
