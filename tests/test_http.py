"""Metrics and health, asked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from coapgate.config import Address
from coapgate.errors import StartError
from coapgate.http import MAX_CONNECTIONS, create_app, serving

LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture
def reasons() -> list[str]:
    """Why the gateway is not ready; a test changes it."""
    return []


@pytest.fixture
async def client(reasons: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    registry = CollectorRegistry()
    Counter("coapgate_tests", "Tests.", registry=registry).inc()
    app = create_app(registry, lambda: reasons)
    async with (
        asyncio.TaskGroup() as tasks,
        serving(app, LOOPBACK, tasks) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as asking,
    ):
        yield asking


async def test_metrics_are_text_for_prometheus(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "coapgate_tests_total 1.0" in answer.text.splitlines()


async def test_metrics_are_openmetrics_for_those_who_ask_for_it(client: httpx.AsyncClient) -> None:
    wanted = "application/openmetrics-text; version=1.0.0"

    answer = await client.get("/metrics", headers={"Accept": wanted})

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_the_process_is_live(client: httpx.AsyncClient) -> None:
    answer = await client.get("/livez")

    assert (answer.status_code, answer.json()) == (200, {"live": True})


async def test_ready_says_why_not(client: httpx.AsyncClient, reasons: list[str]) -> None:
    ready = await client.get("/readyz")
    reasons.append("the broker is not connected")
    not_ready = await client.get("/readyz")

    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    assert not_ready.status_code == 503
    assert not_ready.json() == {"ready": False, "reasons": ["the broker is not connected"]}


async def test_head_is_answered_like_get(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await client.head(path)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.status_code == 404
    assert "server" not in answer.headers


async def test_signals_stay_with_the_gateway(client: httpx.AsyncClient) -> None:
    await client.get("/livez")

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_port_in_use_says_what_to_change() -> None:
    app = create_app(CollectorRegistry(), list)
    async with asyncio.TaskGroup() as tasks, serving(app, LOOPBACK, tasks) as taken:
        with pytest.raises(StartError) as caught:
            async with serving(app, taken, tasks):
                pass

    assert str(caught.value) == f"cannot listen on {taken} for HTTP: Address already in use"
    assert "http.bind" in caught.value.hint


async def test_ipv6_is_served() -> None:
    app = create_app(CollectorRegistry(), list)
    async with (
        asyncio.TaskGroup() as tasks,
        serving(app, Address("::1", 0), tasks) as address,
        httpx.AsyncClient(trust_env=False) as asking,
    ):
        assert (await asking.get(f"http://{address}/livez")).status_code == 200


async def test_connections_that_ask_for_nothing_yield_to_new_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = create_app(CollectorRegistry(), list)
    async with (
        asyncio.TaskGroup() as tasks,
        serving(app, LOOPBACK, tasks) as address,
        httpx.AsyncClient(trust_env=False) as asking,
    ):
        idle = [
            await asyncio.open_connection(address.host, address.port)
            for _ in range(MAX_CONNECTIONS + 1)
        ]
        assert (await asking.get(f"http://{address}/livez")).status_code == 200

        async with asyncio.timeout(4):
            for reader, _ in idle[:2]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert not idle[-1][0].at_eof()
        for _, writer in idle:
            writer.close()
    assert caplog.records == []


async def test_requests_that_are_none_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(CollectorRegistry(), list)
    async with asyncio.TaskGroup() as tasks, serving(app, LOOPBACK, tasks) as address:
        for request in (
            b"\x16\x03\x01\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(request)
            assert (await reader.read()).startswith(b"HTTP/1.1 ")
            writer.close()
    assert caplog.records == []


async def test_an_open_connection_does_not_hold_up_the_end() -> None:
    app = create_app(CollectorRegistry(), list)
    async with asyncio.timeout(4), asyncio.TaskGroup() as tasks:
        async with serving(app, LOOPBACK, tasks) as address:
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"GET /livez HTTP/1.1\r\n")
            await writer.drain()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)
