"""A device on aiocoap and tinydtls: it observes, and backends ask it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.backend import publish
from tests.gateways import Running
from tests.interop.aiocoap_device import LOG
from tests.peers import Mosquitto, require_module
from tests.programs import Program, started
from tests.waiting import DEADLINE


@asynccontextmanager
async def device(gateway: Running, broker: Mosquitto) -> AsyncIterator[Program]:
    """The device, once it observes; its first state is `off`."""
    require_module("DTLSSocket")
    key = gateway.installation.add_psk("sensor-1")
    await publish(broker, f"{gateway.installation.root}/default/sensor-1/down/led", b"off")
    command = (sys.executable, "-m", "tests.interop.aiocoap_device", f"coaps://{gateway.address}")
    async with started(*command, key.identity.decode(), key.secret.hex()) as program:
        await program.until(b"booted 2.04")
        await program.until(b"led off")
        yield program


@dataclass(frozen=True, slots=True)
class Answer:
    payload: bytes
    properties: dict[str, str]
    correlation: bytes
    content_type: str | None


async def ask(
    gateway: Running, broker: Mosquitto, method: str, path: str, payload: bytes = b""
) -> Answer:
    """What a backend does that wants to know something of a device."""
    root = f"{gateway.installation.root}/default"
    version = aiomqtt.ProtocolVersion.V5
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = f"{root}/reply/backend-1"
    properties.CorrelationData = b"\0question 7"
    async with aiomqtt.Client(broker.host, broker.port, protocol=version) as client:
        await client.subscribe(f"{root}/reply/backend-1", qos=1)
        topic = f"{root}/sensor-1/request/{method}/{path}"
        await client.publish(topic, payload, qos=1, properties=properties)
        async with asyncio.timeout(DEADLINE):
            message = await anext(aiter(client.messages))
    assert isinstance(message.payload, bytes)
    told = message.properties
    return Answer(
        message.payload,
        dict(getattr(told, "UserProperty", ())),
        getattr(told, "CorrelationData", b""),
        getattr(told, "ContentType", None),
    )


async def test_a_device_is_asked_and_answers(gateway: Running, broker: Mosquitto) -> None:
    async with device(gateway, broker) as program:
        answer = await ask(gateway, broker, "put", "lamp", b"on")
        await program.until(b"lamp on")

    assert (answer.payload, answer.correlation) == (b"was off", b"\0question 7")
    assert answer.properties["coap-code"] == "2.04"
    assert answer.properties["outcome"] == "answered"


async def test_a_device_that_answers_later_has_answered(
    gateway: Running, broker: Mosquitto
) -> None:
    async with device(gateway, broker):
        answer = await ask(gateway, broker, "get", "slow")

    assert (answer.payload, answer.properties["coap-code"]) == (b"at last", "2.05")


async def test_an_error_of_the_device_is_its_answer(gateway: Running, broker: Mosquitto) -> None:
    async with device(gateway, broker):
        answer = await ask(gateway, broker, "get", "nothing/here")

    assert answer.properties["coap-code"] == "4.04"
    assert answer.properties["outcome"] == "answered"


async def test_bodies_of_several_blocks_go_both_ways(gateway: Running, broker: Mosquitto) -> None:
    async with device(gateway, broker) as program:
        log = await ask(gateway, broker, "get", "log")
        put = await ask(gateway, broker, "put", "log", LOG)
        await program.until(b"log 8000 octets, True")

    assert (log.payload, log.content_type) == (LOG, "application/octet-stream")
    assert put.properties["coap-code"] == "2.04"


async def test_an_observer_hears_of_every_state(gateway: Running, broker: Mosquitto) -> None:
    topic = f"{gateway.installation.root}/default/sensor-1/down/led"
    async with device(gateway, broker) as program:
        for state in (b"on", b"blinking", LOG):
            await publish(broker, topic, state)
            await program.until(b"led " + state[:30].split(b"\n")[0])


async def test_requests_and_notifications_do_not_wait_for_each_other(
    gateway: Running, broker: Mosquitto
) -> None:
    topic = f"{gateway.installation.root}/default/sensor-1/down/led"
    async with device(gateway, broker) as program, asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(ask(gateway, broker, "get", "slow"))
        await publish(broker, topic, b"on")
        await program.until(b"led on")
        answer = await slow

    assert answer.payload == b"at last"
