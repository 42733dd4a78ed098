"""libcoap's clients observe, send and read bodies in blocks, and ping."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backend import publish
from tests.bus import Bus
from tests.gateways import Running
from tests.interop.test_libcoap import ask, by_psk
from tests.peers import Mosquitto, require
from tests.programs import started
from tests.waiting import until

CLIENTS = ["coap-client-openssl", "coap-client-gnutls"]
BODY = "".join(f"{number:07}\n" for number in range(25_000))
"""200,000 octets, every line of them different."""

pytestmark = pytest.mark.parametrize("client", CLIENTS)


def down(gateway: Running, path: str) -> str:
    return f"{gateway.installation.root}/default/sensor-1/down/{path}"


async def test_a_state_is_read(client: str, gateway: Running, broker: Mosquitto) -> None:
    await publish(broker, down(gateway, "config"), b"every 5 min", content_type="text/plain")

    output = await ask(client, gateway, "config", *by_psk(gateway))

    assert "2.05" in output
    assert "every 5 min" in output
    assert "ETag" in output


async def test_a_path_without_state_is_4_04(client: str, gateway: Running) -> None:
    assert "4.04" in await ask(client, gateway, "config", *by_psk(gateway))


@pytest.mark.parametrize("size", [64, 1024])
async def test_200_kb_arrive_whole_in_blocks(
    client: str, size: int, gateway: Running, bus: Bus, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_text(BODY)

    output = await ask(
        client,
        gateway,
        "log",
        *by_psk(gateway),
        *("-m", "put", "-b", str(size), "-f", str(file), "-t", "42"),
        verbosity="6",
    )

    assert "c:2.04" in output
    assert "c:4." not in output
    published = await bus.next()
    assert (published.topic, published.payload) == (f"{bus.root}/sensor-1/up/log", BODY.encode())
    assert published.content_type == "application/octet-stream"


@pytest.mark.parametrize("size", [64, 1024])
async def test_a_large_state_is_read_whole_in_blocks(
    client: str, size: int, gateway: Running, broker: Mosquitto, tmp_path: Path
) -> None:
    await publish(broker, down(gateway, "firmware"), BODY.encode())
    file = tmp_path / "firmware"

    await ask(
        client,
        gateway,
        "firmware",
        *by_psk(gateway),
        "-b",
        str(size),
        "-o",
        str(file),
        verbosity="3",
    )

    assert file.read_text() == BODY


async def test_an_observer_is_told_what_changes(
    client: str, gateway: Running, broker: Mosquitto
) -> None:
    topic = down(gateway, "led")
    await publish(broker, topic, b"state-off", content_type="text/plain")
    command = (require(client), *by_psk(gateway), "-s", "60", "-w", "-v", "6")
    async with started(*command, f"coaps://{gateway.address}/led") as program:
        await program.until(b"state-off")
        for state in (b"state-on", b"state-blinking"):
            await publish(broker, topic, state, content_type="text/plain")
            await program.until(state)
        await publish(broker, topic, BODY[:3000].encode(), content_type="text/plain")
        await program.until(BODY[2900:2990].encode())
        program.interrupt()
        await program.end()

    assert b"Observe" in program.output


async def test_an_observer_that_leaves_is_forgotten(
    client: str, gateway: Running, broker: Mosquitto
) -> None:
    observations = gateway.gateway.pump._layer.observations
    await publish(broker, down(gateway, "led"), b"state-off")
    command = (require(client), *by_psk(gateway), "-s", "2", "-v", "6")
    async with started(*command, f"coaps://{gateway.address}/led") as program:
        await program.until(b"state-off")
        await until(lambda: len(observations) == 1, "it observes")
        assert await program.end() == 0

    await until(lambda: len(observations) == 0, "it observes no more")


async def test_a_ping_is_answered(client: str, gateway: Running, broker: Mosquitto) -> None:
    counts = gateway.gateway.pump._layer.counts
    await publish(broker, down(gateway, "led"), b"state-off")
    command = (require(client), *by_psk(gateway), "-K", "1", "-s", "60", "-v", "7")
    async with started(*command, f"coaps://{gateway.address}/led") as program:
        await program.until(b"state-off")
        await until(lambda: counts.pings > 0, "it pings")
        await program.until(b"RST")
