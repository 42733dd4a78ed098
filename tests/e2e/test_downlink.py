"""Backends reach devices, awake or asleep, and know what became of each message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from coapgate.model import Code
from coapgate.simulated.bodies import read_body
from coapgate.simulated.device import Device
from coapgate.simulated.message import Message, Response
from tests.conftest import StartMosquitto
from tests.e2e.backend import Backend, listening
from tests.fakes.broker import FakeBroker
from tests.gateway_fixtures import Install, StartGateway
from tests.gateways import Running, running_process
from tests.peers import Mosquitto
from tests.waiting import in_its_own_task, until


class Lamp:
    """A device that can be switched; it remembers what it was told."""

    def __init__(self, answer: Response | None = None) -> None:
        self.told: list[tuple[int, str, bytes]] = []
        self._answer = answer or Response(Code.CHANGED, ((12, b"\x2a"),), b"was off")

    def serve(self, message: Message) -> Response:
        path = b"/".join(value for number, value in message.options if number == 11).decode()
        self.told.append((message.code, path, message.payload))
        return self._answer


@pytest.fixture
async def backend(gateway: Running, broker: Mosquitto) -> AsyncIterator[Backend]:
    root = gateway.installation.root
    async with in_its_own_task(listening(broker.host, broker.port, root)) as backend:
        yield backend


async def test_a_device_is_asked_and_its_answer_goes_to_the_response_topic(
    gateway: Running, backend: Backend
) -> None:
    lamp = Lamp()
    async with gateway.device(gateway.installation.add_psk("lamp"), serve=lamp.serve):
        await backend.ask("lamp", "PUT", "light/1", b"on", correlation=b"\x00\xffquestion")
        reply = await backend.reply()

    assert lamp.told == [(Code.PUT, "light/1", b"on")]
    assert reply.payload == b"was off"
    assert reply.correlation == b"\x00\xffquestion"
    assert reply.content_type == "application/octet-stream"
    assert reply.properties == {
        "outcome": "answered",
        "coap-code": "2.04",
        "tenant": "default",
        "device": "lamp",
    }


async def test_without_a_response_topic_the_outcome_is_an_event(
    gateway: Running, backend: Backend
) -> None:
    lamp = Lamp(Response(Code.NOT_FOUND))
    async with gateway.device(gateway.installation.add_psk("lamp"), serve=lamp.serve):
        await backend.ask("lamp", "GET", "light", reply=None, correlation=b"\x07")
        event = await backend.event()

    assert event.topic == f"{backend.prefix}/lamp/event/request"
    told = event.json()
    assert told.pop("at").endswith("Z")
    assert told == {
        "event": "request",
        "outcome": "answered",
        "method": "GET",
        "path": "light",
        "code": "4.04",
        "correlation": "07",
    }


async def test_a_request_for_a_sleeping_device_is_delivered_once_when_it_next_speaks(
    gateway: Running, backend: Backend
) -> None:
    key = gateway.installation.add_psk("lamp")
    lamp = Lamp()
    await backend.ask("lamp", "POST", "light", b"on")
    deliveries = gateway.gateway.backends.policy.deliveries
    await until(lambda: deliveries.held == 1, "it waits for the lamp")
    async with gateway.device(key, serve=lamp.serve) as device:
        assert lamp.told == []
        assert str(await device.request(Code.POST, "temperature", b"21.5")) == "2.04"
        assert (await backend.reply()).outcome == "answered"
        assert str(await device.request(Code.POST, "temperature", b"21.6")) == "2.04"

    assert lamp.told == [(Code.POST, "light", b"on")]
    assert backend.replies.empty()


async def test_a_request_that_no_device_takes_in_time_expires(
    gateway: Running, backend: Backend
) -> None:
    gateway.installation.add_psk("lamp")
    await backend.ask("lamp", "POST", "light", b"on", expiry=1)

    assert (await backend.reply()).outcome == "expired"


async def test_a_newer_put_supersedes_one_that_waits(gateway: Running, backend: Backend) -> None:
    gateway.installation.add_psk("lamp")
    await backend.ask("lamp", "PUT", "light", b"on", correlation=b"old")
    await backend.ask("lamp", "PUT", "light", b"off", correlation=b"new")
    reply = await backend.reply()

    assert (reply.outcome, reply.correlation) == ("superseded", b"old")


async def test_a_device_that_rejects_a_request_has_rejected_it(
    gateway: Running, backend: Backend
) -> None:
    async with gateway.device(gateway.installation.add_psk("mute")):
        await backend.ask("mute", "POST", "light")
        reply = await backend.reply()

    assert reply.outcome == "rejected"
    assert reply.properties["reason"] == "the device rejects it (RST)"


async def test_a_device_that_the_registry_does_not_have_is_unknown(
    gateway: Running, backend: Backend
) -> None:
    await backend.ask("nobody", "POST", "light", correlation=b"1")
    reply = await backend.reply()

    assert (reply.outcome, reply.correlation) == ("device-unknown", b"1")


REJECTED: dict[str, tuple[Callable[[Backend], object], str]] = {
    "method": (lambda b: b.ask("lamp", "BREW", "pot"), "method is none of get, post"),
    "path": (lambda b: b.ask("lamp", "GET", "a/../b"), "path segment is . or .."),
    "no path": (lambda b: b.ask("lamp", "GET", ""), "path segment is empty"),
    "name": (lambda b: b.ask("la mp", "GET", "light"), "no device can have this name"),
    "correlation": (
        lambda b: b.ask("lamp", "GET", "light", correlation=b"x" * 129),
        "Correlation Data has more than 128 octets",
    ),
    "body": (
        lambda b: b.ask("lamp", "POST", "light", b"x" * 262_145),
        "body has more than 262144 octets",
    ),
}


@pytest.mark.parametrize("what", REJECTED)
async def test_what_nobody_can_carry_out_is_rejected_with_its_reason(
    what: str, gateway: Running, backend: Backend
) -> None:
    gateway.installation.add_psk("lamp")
    ask, reason = REJECTED[what]
    await ask(backend)  # type: ignore[misc]
    reply = await backend.reply()

    assert reply.outcome == "rejected"
    assert reply.properties["reason"].startswith(reason)


@pytest.mark.parametrize(
    "topic", ["other/reply/app", "default/lamp/up/light", "default/reply/up/light", "$gateway/0/x"]
)
async def test_no_backend_speaks_with_the_gateways_rights(
    topic: str, gateway: Running, backend: Backend
) -> None:
    lamp = Lamp()
    async with gateway.device(gateway.installation.add_psk("lamp"), serve=lamp.serve):
        await backend.ask("lamp", "PUT", "light", response_topic=f"{backend.root}/{topic}")
        told = (await backend.event()).json()

    assert told["outcome"] == "rejected"
    assert told["reason"].startswith("Response Topic")
    assert lamp.told == []
    assert backend.replies.empty()


async def test_a_flood_for_one_sleeping_device_is_bounded_and_each_has_its_outcome(
    gateway: Running, backend: Backend
) -> None:
    key = gateway.installation.add_psk("sleeper")
    gateway.installation.add_psk("lamp")
    lamp = Lamp()
    for number in range(300):
        await backend.ask("sleeper", "POST", "light", correlation=b"%d" % number)
    rejected = [await backend.reply() for _ in range(300 - 16)]
    assert {each.properties["reason"] for each in rejected} == {
        "too many requests wait for the device"
    }
    async with gateway.device(key, serve=lamp.serve) as device:
        assert str(await device.request(Code.POST, "awake", b"1")) == "2.04"
        answered = [await backend.reply() for _ in range(16)]

    assert {each.outcome for each in answered} == {"answered"}
    correlations = [each.correlation for each in rejected + answered]
    assert len(set(correlations)) == 300
    assert len(lamp.told) == 16


async def test_what_was_held_outlives_the_gateway(install: Install, broker: Mosquitto) -> None:
    installation = install()
    key = installation.add_psk("lamp")
    lamp = Lamp()
    async with listening(broker.host, broker.port, installation.root) as backend:
        async with running_process(installation) as gateway:
            await gateway.until_connected()
            await backend.ask("lamp", "PUT", "light", b"on", correlation=b"c", reply="a/b")

            def waits() -> bool:
                return len(installation.registry.held_requests(0)) == 1

            await until(waits, "it is on disk")
            gateway.program.kill()
            await gateway.program.end()
        async with running_process(installation) as again:
            async with Device(*again.address, key, serve=lamp.serve) as device:
                assert str(await device.request(Code.POST, "awake", b"1")) == "2.04"
                reply = await backend.reply()
            await until(lambda: not waits(), "it is over")

    assert (reply.outcome, reply.correlation) == ("answered", b"c")
    assert reply.topic == f"{installation.root}/default/reply/a/b"
    assert lamp.told == [(Code.PUT, "light", b"on")]


async def test_what_is_asked_while_the_gateway_is_away_is_asked_once_when_it_is_back(
    install: Install, broker: Mosquitto
) -> None:
    installation = install()
    key = installation.add_psk("lamp")
    lamp = Lamp()
    async with listening(broker.host, broker.port, installation.root) as backend:
        async with running_process(installation) as gateway:
            await gateway.until_connected()
            async with Device(*gateway.address, key, serve=lamp.serve):
                await backend.ask("lamp", "POST", "light", b"0")
                assert (await backend.reply()).outcome == "answered"
            gateway.program.terminate()
            assert await gateway.program.end() == 0
        for number in range(1, 4):
            await backend.ask("lamp", "POST", "light", b"%d" % number)
        async with running_process(installation) as again:
            await again.until_connected()
            async with Device(*again.address, key, serve=lamp.serve) as device:
                assert str(await device.request(Code.POST, "awake", b"1")) == "2.04"
                outcomes = [(await backend.reply()).outcome for _ in range(3)]

    assert outcomes == ["answered"] * 3
    assert [payload for _, _, payload in lamp.told] == [b"0", b"1", b"2", b"3"]
    assert backend.replies.empty()


async def test_an_outcome_that_no_broker_could_take_outlives_an_orderly_stop(
    install: Install, mosquitto: StartMosquitto
) -> None:
    broker = mosquitto()
    installation = install(broker.url)
    key = installation.add_psk("lamp")
    lamp = Lamp()

    def serve(message: Message) -> Response:
        broker.stop()
        return lamp.serve(message)

    async with running_process(installation) as gateway:
        await gateway.until_connected()
        async with Device(*gateway.address, key, serve=serve):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = f"{installation.root}/default/reply/app"
            version = aiomqtt.ProtocolVersion.V5
            with contextlib.suppress(aiomqtt.MqttError):  # the broker goes before it is left
                async with aiomqtt.Client(broker.host, broker.port, protocol=version) as client:
                    topic = f"{installation.root}/default/lamp/request/POST/light"
                    await client.publish(topic, b"on", qos=1, properties=properties)
            await until(lambda: len(lamp.told) == 1, "the lamp is told")
            gateway.program.terminate()
            assert await gateway.program.end() == 0
    broker.start()
    async with (
        listening(broker.host, broker.port, installation.root) as backend,
        running_process(installation) as again,
    ):
        reply = await backend.reply()
        async with Device(*again.address, key, serve=lamp.serve) as device:
            assert str(await device.request(Code.POST, "awake", b"1")) == "2.04"
        await until(lambda: not installation.registry.held_requests(0), "it is over")

    assert (reply.outcome, reply.payload) == ("answered", b"was off")
    assert len(lamp.told) == 1


async def test_a_device_that_comes_back_is_asked_there_and_not_where_it_was(
    gateway: Running, backend: Backend
) -> None:
    key = gateway.installation.add_psk("lamp")
    lost = await gateway.device(key).__aenter__()
    lost.sleep()  # without a goodbye, and for good
    lamp = Lamp()
    await backend.ask("lamp", "POST", "light", b"on")
    deliveries = gateway.gateway.backends.policy.deliveries
    await until(lambda: deliveries.sent == 1, "it is sent to where the lamp was")
    async with gateway.device(key, serve=lamp.serve) as device:
        assert str(await device.request(Code.POST, "awake", b"1")) == "2.04"
        reply = await backend.reply()

    assert reply.outcome == "answered"
    assert lamp.told == [(Code.POST, "light", b"on")]


@pytest.mark.expects_warnings(
    "broker refuses a subscription", "nothing listens where the broker should be"
)
async def test_a_broker_that_lets_nothing_be_heard_is_named_and_devices_come_back_later(
    start_gateway: StartGateway,
) -> None:
    async with FakeBroker(subscriptions=0x87) as broker:
        gateway = await start_gateway(broker.url)
        async with gateway.device(gateway.installation.add_psk("lamp")) as device:
            read = await device.request(Code.GET, "config")
            sent = await device.request(Code.POST, "temperature", b"21.5")

    assert (str(read), str(sent)) == ("5.03 try again later", "2.04")
    assert read.max_age is not None


# --- state


async def test_what_is_retained_is_read_and_absence_is_known(
    gateway: Running, backend: Backend
) -> None:
    await backend.publish("lamp/down/config", b"21.5", retain=True)
    async with gateway.device(gateway.installation.add_psk("lamp")) as device:
        found = await device.request(Code.GET, "config")
        absent = await device.request(Code.GET, "nothing")
        await backend.publish("lamp/down/config", b"", retain=True)
        states = gateway.gateway.backends.policy.states
        await until(lambda: states.size == 0, "the gateway hears of it")
        gone = await device.request(Code.GET, "config")

    assert (found.code, found.payload) == (Code.CONTENT, b"21.5")
    assert (absent.code, gone.code) == (Code.NOT_FOUND, Code.NOT_FOUND)


async def test_no_device_reads_what_is_for_another(gateway: Running, backend: Backend) -> None:
    await backend.publish("other/down/config", b"secret", retain=True)
    async with gateway.device(gateway.installation.add_psk("lamp")) as device:
        answers = [
            await device.request(Code.GET, path)
            for path in ("config", (b"..", b"..", b"other", b"down", b"config"), (b"+",))
        ]

    assert [answer.code for answer in answers] == [
        Code.NOT_FOUND,
        Code.BAD_REQUEST,
        Code.BAD_REQUEST,
    ]


async def test_a_file_is_read_in_blocks_by_devices_of_its_tenant_alone(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    body = bytes(range(256)) * 16384
    for tenant in ("default", "other"):
        (tmp_path / "files" / tenant).mkdir(parents=True)
    (tmp_path / "files" / "default" / "app.bin").write_bytes(body)
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "files" / "default" / "link").symlink_to(tmp_path / "secret")
    limits = {"device_rate": 100_000.0, "device_burst": 100_000}
    gateway = await start_gateway(content={"folder": str(tmp_path / "files")}, limits=limits)
    own = gateway.installation.add_psk("lamp")
    other = gateway.installation.add_psk("spy", tenant="other")
    async with gateway.device(own) as device, gateway.device(other) as spy:
        _, read = await read_body(device, "firmware/app.bin")
        refused = [
            (await asking.request(Code.GET, path)).code
            for asking, path in (
                (spy, "firmware/app.bin"),
                (device, "firmware/link"),
                (device, "firmware/none"),
                (device, (b"firmware", b"..", b"..", b"secret")),
            )
        ]

    assert read == body
    assert refused == [Code.NOT_FOUND, Code.NOT_FOUND, Code.NOT_FOUND, Code.BAD_REQUEST]


# --- rights


async def test_a_device_uses_the_paths_it_has_a_right_to_and_no_others(
    start_gateway: StartGateway, broker: Mosquitto
) -> None:
    gateway = await start_gateway(
        rights={
            "post": {"default": ["temperature"]},
            "read": {"default": ["config", "state"]},
            "observe": {"default": ["state"]},
        }
    )
    async with (
        gateway.device(gateway.installation.add_psk("lamp")) as device,
        listening(broker.host, broker.port, gateway.installation.root) as backend,
    ):
        for path in ("config", "state", "secret"):
            await backend.publish(f"lamp/down/{path}", b"x", retain=True)
        codes = {
            (method, path): (await device.request(method, path, b"")).code
            for method, path in (
                (Code.POST, "temperature"),
                (Code.POST, "config"),
                (Code.GET, "config"),
                (Code.GET, "secret"),
            )
        }
        observing = (6, b"")
        refused = await device.request(Code.GET, "config", options=(observing,))
        links = (await device.request(Code.GET, ".well-known/core")).payload.decode()
        metrics = await gateway.metrics()

    assert list(codes.values()) == [Code.CHANGED, Code.FORBIDDEN, Code.CONTENT, Code.FORBIDDEN]
    assert refused.code == Code.FORBIDDEN
    assert "</temperature>" in links
    assert "</state>" in links
    assert "secret" not in links
    assert metrics["coapgate_forbidden_total,post"] == 1
    assert metrics["coapgate_forbidden_total,read"] == 1
    assert metrics["coapgate_forbidden_total,observe"] == 1


async def test_asking_costs_other_devices_nothing_while_the_bus_is_flooded(
    gateway: Running, backend: Backend
) -> None:
    """Requests on a topic of nobody, at QoS 0 and 1, while a device goes on."""
    async with gateway.device(gateway.installation.add_psk("lamp")) as device:
        flood = asyncio.create_task(_flood(backend))
        for _ in range(50):
            assert str(await device.request(Code.POST, "temperature", b"21.5")) == "2.04"
            await asyncio.sleep(0)
        await flood


async def _flood(backend: Backend) -> None:
    for number in range(200):
        await backend.ask(f"nobody-{number}", "POST", "x", qos=number % 2)
