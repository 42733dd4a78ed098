"""Scenarios about CoAP and the bus."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from coapgate.coap.content import CONTENT_TYPES
from coapgate.coap.transmissions import Reliability
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options
from tests.bus import Bus
from tests.conftest import StartMosquitto
from tests.fakes.broker import FakeBroker
from tests.gateway_fixtures import StartGateway
from tests.gateways import Running
from tests.rawpeer import RawPeer, connected
from tests.waiting import until

PATIENT = Reliability(ack_timeout=20.0)
"""For a test that wants to see one transmission and what comes of it."""


def post(message_id: int, payload: bytes = b"21.5", *, kind: Kind = Kind.CON) -> Message:
    options = request_options((b"temperature",))
    return Message(kind, Code.POST, message_id, b"tk", options, payload)


async def test_no_success_before_the_broker_has_the_message(start_gateway: StartGateway) -> None:
    async with FakeBroker(hold_pubacks=True) as broker:
        gateway = await start_gateway(broker.url, coap={"ack_delay": 1.5})
        key = gateway.installation.add_psk("sensor-1")
        async with connected((gateway.host, gateway.port), key) as peer:
            peer.send(post(1))
            await broker.wait_for(lambda: any("/up/" in topic for topic in broker.topics))
            # Whatever is answered before the PUBACK comes would be here before this answer.
            peer.send(Message(Kind.CON, Code.EMPTY, 2))
            assert await peer.receive() == Message(Kind.RST, Code.EMPTY, 2)

            broker.release_pubacks()

            assert await peer.receive() == Message(Kind.ACK, Code.CHANGED, 1, b"tk")


BROKER_GONE = "nothing listens where the broker should be"
"""It ends before the gateway, which still wants to say that the device has gone."""


@pytest.mark.expects_warnings("broker refuses publications", BROKER_GONE)
async def test_a_refused_publication_is_no_success(start_gateway: StartGateway) -> None:
    async with FakeBroker() as broker:
        gateway = await start_gateway(broker.url)
        prefix = f"{gateway.installation.root}/default/sensor-1/up"
        broker.refuse = {f"{prefix}/denied": 0x87, f"{prefix}/odd": 0x99, f"{prefix}/full": 0x97}
        key = gateway.installation.add_psk("sensor-1")
        async with gateway.device(key) as device:
            answers = [
                await device.request(Code.POST, path, b"1") for path in ("denied", "odd", "full")
            ]

    assert [answer.code for answer in answers] == [
        Code.FORBIDDEN,
        Code.BAD_REQUEST,
        Code.SERVICE_UNAVAILABLE,
    ]
    assert answers[2].max_age is not None
    assert 2 <= answers[2].max_age <= 60


@pytest.mark.expects_warnings("broker refuses publications", BROKER_GONE)
async def test_what_mosquitto_denies_is_no_success(
    start_gateway: StartGateway, mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    access = tmp_path / "acl"
    access.write_text("topic write +/default/+/up/allowed\n")
    broker = mosquitto(f"acl_file {access}")
    gateway = await start_gateway(broker.url)
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key) as device:
        denied = await device.request(Code.POST, "denied", b"1")
        allowed = await device.request(Code.POST, "allowed", b"1")

    assert denied.code == Code.FORBIDDEN
    assert str(allowed) == "2.04"


@pytest.mark.expects_warnings
async def test_while_the_broker_is_away_the_answer_is_5_03_with_max_age(
    start_gateway: StartGateway, mosquitto: StartMosquitto
) -> None:
    broker = mosquitto()
    gateway = await start_gateway(broker.url, mqtt={"hold_time": 0.2})
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key) as device:
        assert str(await device.request(Code.POST, "a", b"1")) == "2.04"
        broker.stop()
        await until(lambda: not gateway.gateway.connection.connected, "the broker's end is noticed")

        away = await device.request(Code.POST, "a", b"2")
        assert away.code == Code.SERVICE_UNAVAILABLE
        assert away.max_age is not None
        assert 2 <= away.max_age <= 60
        assert (await gateway.get("/readyz")).status_code == 503

        broker.start()
        await until(lambda: gateway.gateway.connection.connected, "the broker is back")
        assert str(await device.request(Code.POST, "a", b"3")) == "2.04"
        assert (await gateway.get("/readyz")).status_code == 200


@pytest.mark.expects_warnings(BROKER_GONE)
async def test_what_was_held_for_an_absent_broker_arrives(
    start_gateway: StartGateway,
) -> None:
    async with FakeBroker() as broker:
        gateway = await start_gateway(broker.url)
        key = gateway.installation.add_psk("sensor-1")
        async with gateway.device(key, reliability=PATIENT) as device:
            publications = gateway.gateway.connection.publications
            # Its own status, that the device has come, and the device's status.
            await until(lambda: publications.acknowledged == 3, "the bus knows of the device")
            await broker.stop()
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(device.request(Code.POST, "a", b"held"))
                await until(lambda: publications.held == 1, "the publication waits")
                await broker.start()
            assert str(asking.result()) == "2.04"
        assert [each.payload for each in broker.published if "/up/" in each.topic] == [b"held"]


async def test_a_repeated_message_gets_the_same_answer_and_is_published_once(
    gateway: Running, bus: Bus
) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with connected((gateway.host, gateway.port), key) as peer:
        peer.send(post(7))
        answer = await peer.receive()
        peer.send(post(7))
        assert await peer.receive() == answer == Message(Kind.ACK, Code.CHANGED, 7, b"tk")
        peer.send(post(8, b"next"))
        assert (await peer.receive()).message_id == 8

    assert (await bus.next()).payload == b"21.5"
    assert (await bus.next()).payload == b"next"
    assert (await gateway.metrics())["coapgate_duplicates_total"] == 1


async def test_a_slow_broker_means_an_empty_ack_and_a_separate_response(
    start_gateway: StartGateway,
) -> None:
    loop = asyncio.get_running_loop()
    async with FakeBroker(puback_delay=2.0) as broker:
        gateway = await start_gateway(broker.url)
        key = gateway.installation.add_psk("sensor-1")
        async with connected((gateway.host, gateway.port), key) as peer:
            asked_at = loop.time()
            peer.send(post(7))
            assert await peer.receive() == Message(Kind.ACK, Code.EMPTY, 7)
            acknowledged_at = loop.time()
            peer.send(post(7))
            assert await peer.receive() == Message(Kind.ACK, Code.EMPTY, 7)
            response = await peer.receive()
            answered_at = loop.time()
            assert (response.kind, response.code, response.token) == (Kind.CON, Code.CHANGED, b"tk")
            peer.send(Message(Kind.ACK, Code.EMPTY, response.message_id))

        # Not before; how much later is the machine's affair.
        assert 0.45 <= acknowledged_at - asked_at < answered_at - asked_at
        assert answered_at - asked_at >= 1.9
        uplinks = [topic for topic in broker.topics if "/up/" in topic]
        assert len(uplinks) == 1


@pytest.mark.expects_warnings(BROKER_GONE)
async def test_a_device_of_ours_takes_a_separate_response(start_gateway: StartGateway) -> None:
    async with FakeBroker(puback_delay=0.3) as broker:
        gateway = await start_gateway(broker.url, coap={"ack_delay": 0.05})
        key = gateway.installation.add_psk("sensor-1")
        async with gateway.device(key, reliability=PATIENT) as device:
            response = await device.request(Code.POST, "a", b"1")

    assert str(response) == "2.04"
    assert response.is_separate
    assert device.repeats == 0


async def test_a_non_is_answered_after_the_broker_has_it_unless_it_wants_no_answer(
    gateway: Running, bus: Bus
) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with connected((gateway.host, gateway.port), key) as peer:
        peer.send(post(1, b"asked", kind=Kind.NON))
        answer = await peer.receive()
        assert (answer.kind, answer.code, answer.token) == (Kind.NON, Code.CHANGED, b"tk")

        silent = post(2, b"silent", kind=Kind.NON)
        options = (*silent.options, (258, b"\x1a"))  # No-Response: not interested at all
        peer.send(Message(Kind.NON, Code.POST, 2, b"tk", options, b"silent"))
        peer.send(post(3, b"last"))
        assert (await peer.receive()).message_id == 3

    published = [await bus.next() for _ in range(3)]
    assert [(one.payload, one.qos) for one in published] == [
        (b"asked", 1),
        (b"silent", 0),
        (b"last", 1),
    ]


LONG = b"s" * 254
REFUSED_PATHS: dict[str, tuple[bytes, ...]] = {
    "dot dot": (b"a", b"..", b"b"),
    "dot": (b".",),
    "encoded slash": (b"a%2Fb",),
    "slash": (b"a/b",),
    "plus": (b"a", b"+"),
    "hash": (b"#",),
    "$SYS": (b"$SYS", b"broker"),
    "254 octets": (LONG,),
    "empty segment": (b"a", b"", b"b"),
    "control character": (b"a\x01",),
    "DEL": (b"a\x7f",),
    "C1": ("a\x85".encode(),),
    "noncharacter": ("a\ufffe".encode(),),
    "surrogate": (b"a\xed\xa0\x80",),
    "not UTF-8": (b"\xff\xfe",),
    "33 segments": (b"s",) * 33,
    "another's topic": (b"..", b"..", b"sensor-2", b"up", b"a"),
}


async def test_no_odd_path_is_published(gateway: Running, bus: Bus) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key) as device:
        answers = {
            name: str(await device.request(Code.POST, path, b"x"))
            for name, path in REFUSED_PATHS.items()
        }
        assert (await device.request(Code.POST, (), b"x")).code == Code.NOT_FOUND
        assert str(await device.request(Code.POST, "good", b"x")) == "2.04"

    assert {name: answer[:4] for name, answer in answers.items()} == dict.fromkeys(answers, "4.00")
    assert (await bus.next()).topic == f"{bus.root}/sensor-1/up/good"
    assert gateway.gateway.connection.connects == 1


async def test_a_query_with_a_control_character_is_refused(gateway: Running) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key) as device:
        answer = await device.request(Code.POST, "a", b"x", query=(b"unit=\x00",))

    assert answer.code == Code.BAD_REQUEST


async def test_above_its_rate_a_device_is_told_when_to_come_back_and_others_are_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(limits={"device_rate": 0.2, "device_burst": 5})
    busy, calm = (gateway.installation.add_psk(name) for name in ("busy", "calm"))
    async with gateway.device(busy) as one, gateway.device(busy) as two, gateway.device(calm) as it:
        # However many associations it has.
        burst = [
            await device.request(Code.POST, "a", b"x")
            for device in itertools.islice(itertools.cycle((one, two)), 5)
        ]
        above = await one.request(Code.POST, "a", b"x")
        other = await it.request(Code.POST, "a", b"x")

    assert [str(answer) for answer in burst] == ["2.04"] * 5
    assert above.code == Code.TOO_MANY_REQUESTS
    assert above.max_age is not None
    assert 1 <= above.max_age <= 5
    assert str(other) == "2.04"


async def test_every_content_format_is_the_right_content_type(gateway: Running, bus: Bus) -> None:
    octets = bytes(range(256))
    key = gateway.installation.add_psk("sensor-1")
    unknown = 65000
    async with gateway.device(key) as device:
        for content_format in (0, 42, 50, 60, 110, 11542, unknown, None):
            answer = await device.request(Code.POST, "a", octets, content_format=content_format)
            assert str(answer) == "2.04"
            published = await bus.next()
            assert published.payload == octets
            if content_format == unknown:
                assert published.content_type is None
                assert published["content-format"] == str(unknown)
            else:
                expected = None if content_format is None else CONTENT_TYPES[content_format]
                assert published.content_type == expected
                assert "content-format" not in published


async def test_a_publication_says_who_how_when_and_which(gateway: Running, bus: Bus) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with connected((gateway.host, gateway.port), key) as peer:
        options = request_options((b"a",), (b"unit=C", b"n=1"))
        peer.send(Message(Kind.CON, Code.PUT, 0x0102, b"\xab\xcd", options, b""))
        await peer.receive()
        (association,) = gateway.gateway.pump.server.associations

    published = await bus.next()
    names = [name for name, _ in published.properties]
    assert names == [
        "tenant",
        "device",
        "auth",
        "credential",
        "coap-method",
        "coap-query",
        "received-at",
        "message-id",
    ]
    assert published["tenant"] == "default"
    assert published["coap-method"] == "PUT"
    assert published["coap-query"] == "unit=C&n=1"
    assert published["message-id"] == f"{association.id.hex()}-0102-abcd"
    assert published["received-at"].endswith("Z")
    assert published.qos == 1
    assert not published.retain


async def test_one_device_cannot_hold_up_the_gateway_with_octets_that_are_not_coap(
    gateway: Running,
) -> None:
    bad, good = (gateway.installation.add_psk(name) for name in ("bad", "good"))
    async with connected((gateway.host, gateway.port), bad) as peer:
        for octets in (b"", b"\x00", b"\x40\x02\x00", b"\x4f\x02\x00\x01", b"\xff" * 200):
            peer.send(octets)
        async with gateway.device(good) as device:
            assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
        peer.send(post(9))
        assert await until_message(peer, 9) == Message(Kind.ACK, Code.CHANGED, 9, b"tk")


async def until_message(peer: RawPeer, message_id: int) -> Message:
    while (message := await peer.receive()).message_id != message_id:
        assert message.kind == Kind.RST
    return message
