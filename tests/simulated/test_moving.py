"""A device that comes from another address, and one that sleeps: over real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from coapgate.coap.options import ECHO
from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import ClientSettings
from coapgate.errors import NoAnswer
from coapgate.model import Code
from coapgate.simulated.device import Device
from coapgate.simulated.message import Kind, Message
from tests.simulated.gateway import KEY, QUICK, FakeGateway, changed, serving


async def ask(device: Device) -> str:
    return str(await device.request(Code.POST, "a", b"21.5"))


def silent(request: Message) -> list[Message]:
    return []


# --- Connection ID


async def test_a_device_offers_a_connection_id_unless_it_is_told_otherwise() -> None:
    async with serving(FakeGateway()) as gateway:
        async with Device("127.0.0.1", gateway.port, KEY) as device:
            assert len(device.connection_id) == 8
        async with Device("127.0.0.1", gateway.port, KEY, settings=ClientSettings()) as device:
            assert device.connection_id == b""


# --- moving


async def test_a_device_moves_and_goes_on_without_a_handshake() -> None:
    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        assert await ask(device) == "2.04"
        here = device.address
        await device.move()
        there = device.address
        assert await ask(device) == "2.04"
        await device.move(("127.0.0.9", 0))
        assert await ask(device) == "2.04"
        await device.move()

        assert here != there
        assert device.address is not None
        assert device.address[0] == "127.0.0.9"
        assert await ask(device) == "2.04"
        assert device.handshakes == gateway.server.counters.handshakes_completed == 1
        assert len(gateway.sources) == 4


async def test_a_request_under_way_moves_with_its_device() -> None:
    moved = asyncio.Event()

    def answer(request: Message) -> list[Message]:
        return changed(request) if moved.is_set() else []

    async with (
        serving(FakeGateway(answer)) as gateway,
        Device("127.0.0.1", gateway.port, KEY, reliability=QUICK) as device,
        asyncio.TaskGroup() as tasks,
    ):
        asking = tasks.create_task(ask(device))
        await gateway.until(lambda: bool(gateway.requests))
        await device.move()
        moved.set()
        assert await asking == "2.04"
        assert device.repeats > 0
        assert len({request.message_id for request in gateway.requests}) == 1


async def test_a_device_that_cannot_move_stays_where_it_is() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        async with (
            serving(FakeGateway()) as gateway,
            Device("127.0.0.1", gateway.port, KEY) as device,
        ):
            here = device.address
            with pytest.raises(OSError, match="in use"):
                await device.move(taken.getsockname())

            assert device.address == here
            assert await ask(device) == "2.04"


async def test_a_device_that_was_left_goes_nowhere() -> None:
    async with serving(FakeGateway()) as gateway:
        async with Device("127.0.0.1", gateway.port, KEY) as device:
            moving = asyncio.create_task(device.move(), name="move")
            resuming = asyncio.create_task(device.resume(), name="resume")
            await asyncio.sleep(0)
        for task in (moving, resuming):
            with pytest.raises(NoAnswer, match="closed its association"):
                await task
        with pytest.raises(NoAnswer, match="closed its association"):
            await device.move()

    assert device.address is None


# --- proving the new address


async def test_a_ping_of_the_gateway_is_answered_by_rst_from_where_the_device_is() -> None:
    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        await device.move()
        assert await ask(device) == "2.04"
        gateway.tell(Message(Kind.CON, Code.EMPTY, 0x1234))
        await gateway.until(lambda: bool(gateway.replies))

    assert gateway.replies == [Message(Kind.RST, Code.EMPTY, 0x1234)]


async def test_an_echo_value_that_the_gateway_asks_for_is_sent_with_the_same_request() -> None:
    def doubt(request: Message) -> list[Message]:
        if (ECHO, b"it is me") in request.options:
            return changed(request)
        options = ((ECHO, b"it is me"),)
        return [Message(Kind.ACK, Code.UNAUTHORIZED, request.message_id, request.token, options)]

    async with (
        serving(FakeGateway(doubt)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        assert await ask(device) == "2.04"
        assert device.echoes == 1

    assert [request.payload for request in gateway.requests] == [b"21.5", b"21.5"]


# --- sleep


async def test_a_device_sleeps_and_resumes_without_a_handshake() -> None:
    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        assert await ask(device) == "2.04"
        for host in ("127.0.0.2", "127.0.0.3"):
            device.sleep()
            assert device.address is None
            gateway.tell(Message(Kind.CON, Code.EMPTY, 1))
            await device.resume((host, 0))
            assert await ask(device) == "2.04"

        assert gateway.replies == []
        assert device.handshakes == gateway.server.counters.handshakes_completed == 1


async def test_a_request_does_not_outlast_the_wake() -> None:
    async with (
        serving(FakeGateway(silent)) as gateway,
        Device("127.0.0.1", gateway.port, KEY, reliability=QUICK) as device,
        asyncio.TaskGroup() as tasks,
    ):
        asking = tasks.create_task(_failure(device))
        await gateway.until(lambda: bool(gateway.requests))
        device.sleep()

        assert await asking == "the device went to sleep"
        assert await _failure(device) == "the device is asleep"
        with pytest.raises(NoAnswer, match="asleep"):
            device.send(b"")
        with pytest.raises(NoAnswer, match="asleep"):
            await device.move()


async def _failure(device: Device) -> str:
    with pytest.raises(NoAnswer) as caught:
        await ask(device)
    return str(caught.value)


async def test_a_device_that_falls_asleep_on_its_way_sleeps() -> None:
    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        moving = asyncio.create_task(device.move(), name="move")
        await asyncio.sleep(0)
        device.sleep()
        with pytest.raises(NoAnswer, match="asleep"):
            await moving

        assert device.address is None


async def test_a_device_that_is_left_asleep_says_no_goodbye() -> None:
    async with serving(FakeGateway()) as gateway:
        async with Device("127.0.0.1", gateway.port, KEY) as device:
            device.sleep()
            device.sleep()
        async with Device("127.0.0.1", gateway.port, KEY):
            assert gateway.server.association_count == 2


async def test_an_association_that_ended_meanwhile_is_found_out_by_asking() -> None:
    hasty = Reliability(ack_timeout=0.01, ack_random_factor=1.0, max_retransmit=2)
    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY, reliability=hasty) as device,
    ):
        device.sleep()
        (association,) = gateway.server.associations
        gateway.server.traffic.close(association, "test")
        gateway.flush()
        await device.resume()

        assert await _failure(device) == "nobody acknowledged the request"
