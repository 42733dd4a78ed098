"""The connection, against a real mosquitto and a subscriber that is not ours."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import aiomqtt
import pytest

from coapgate.errors import RequestRefused
from coapgate.model import Outcome
from coapgate.mqtt.settings import ConnectionSettings
from coapgate.mqtt.topics import MAX_TOPIC_LENGTH, query_text, uplink_path
from coapgate.pki.factory import FactoryCa
from tests.conftest import StartMosquitto
from tests.mqtt.running import Address, failures_at_least, running
from tests.peers import Mosquitto, require

WAIT_TIMEOUT = 10.0


class Subscriber:
    """aiomqtt, with a deadline on whatever it waits for."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._messages = aiter(client.messages)

    async def next(self) -> aiomqtt.Message:
        async with asyncio.timeout(WAIT_TIMEOUT):
            return await anext(self._messages)

    async def next_status(self) -> dict[str, object]:
        message = await self.next()
        assert isinstance(message.payload, bytes)
        status: dict[str, object] = json.loads(message.payload)
        return status


@asynccontextmanager
async def subscriber(broker: Address, *filters: str) -> AsyncIterator[Subscriber]:
    client = aiomqtt.Client(broker.host, broker.port, protocol=aiomqtt.ProtocolVersion.V5)
    async with client:
        for each in filters:
            await client.subscribe(each, qos=1)
        yield Subscriber(client)


def settings(**changes: object) -> ConnectionSettings:
    """Settings with a client identifier that no other test has."""
    return ConnectionSettings("", client_id=f"coapgate-{uuid4().hex}", **changes)  # type: ignore[arg-type]


async def test_a_publication_arrives_with_its_properties_untouched(broker: Mosquitto) -> None:
    root = uuid4().hex
    properties = (
        ("tenant", "default"),
        ("device", "sensor-1"),
        ("coap-query", "ort=k\u00fcche&a=1%26b=2"),
        ("device", "twice"),
    )
    async with subscriber(broker, f"{root}/#") as bus, running(broker, settings()) as one:
        one.publish(
            f"{root}/default/sensor-1/up/temperature",
            b"\x00\xff21.5",
            ticket=1,
            content_type="application/cbor",
            user_properties=properties,
        )
        message = await bus.next()

        assert str(message.topic) == f"{root}/default/sensor-1/up/temperature"
        assert message.payload == b"\x00\xff21.5"
        assert (message.qos, message.retain) == (1, False)
        assert message.properties is not None
        assert vars(message.properties)["ContentType"] == "application/cbor"
        assert tuple(vars(message.properties)["UserProperty"]) == properties
        assert await one.ended_at_least(1) == {1: 0}


async def test_what_nobody_subscribed_to_is_told(broker: Mosquitto) -> None:
    async with running(broker, settings()) as one:
        one.publish(uuid4().hex, ticket=1)

        assert await one.ended_at_least(1) == {1: 0x10}


async def test_qos_0_arrives(broker: Mosquitto) -> None:
    topic = uuid4().hex
    async with subscriber(broker, topic) as bus, running(broker, settings()) as one:
        one.publish(topic, b"once at most", qos=0)

        assert (await bus.next()).payload == b"once at most"


async def test_five_thousand_at_once_arrive_in_order(mosquitto: StartMosquitto) -> None:
    broker = mosquitto("max_queued_messages 0", "max_queued_bytes 0")
    count = 5000
    async with (
        subscriber(broker, "t") as bus,
        running(broker, settings(hold_time=60.0, hold_messages=count)) as one,
    ):
        for ticket in range(count):
            one.publish("t", b"%d" % ticket, ticket=ticket)

        assert await one.ended_at_least(count) == dict.fromkeys(range(count), 0)
        for ticket in range(count):
            assert (await bus.next()).payload == b"%d" % ticket


@pytest.mark.expects_warnings("broker refuses publications")
async def test_a_publication_that_the_acl_denies_ends_as_not_authorized(
    mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic write allowed/#\n")
    broker = mosquitto(f"acl_file {acl}")
    async with running(broker, settings()) as one:
        one.publish("denied/t", ticket=1)
        one.publish("allowed/t", ticket=2)

        assert await one.ended_at_least(2) == {1: 0x87, 2: 0x10}


@pytest.mark.expects_warnings(
    "nothing listens where the broker should be", "broker cannot be reached"
)
@pytest.mark.parametrize("kill", [False, True])
async def test_nothing_unacknowledged_is_lost_when_the_broker_restarts(
    mosquitto: StartMosquitto, kill: bool
) -> None:
    broker = mosquitto()
    async with running(broker, settings(hold_time=60.0)) as one:
        one.publish("before", ticket=0)
        await one.ended_at_least(1)
        for ticket in range(1, 200):
            one.publish("t", ticket=ticket)
        # In this tick nothing has been written yet; some of it will be when the broker ends.
        await one.next_tick()
        await asyncio.to_thread(broker.kill if kill else broker.stop)
        for ticket in range(200, 300):
            one.publish("t", ticket=ticket)
        await failures_at_least(one.connection, 1)
        await asyncio.to_thread(broker.start)
        outcomes = await one.ended_at_least(300)

        assert set(outcomes.values()) == {0x10}, "nobody has subscribed, and nothing else happened"
        assert one.connection.connects == 2


def accounts_file(directory: Path, name: str, password: str) -> Path:
    """Users in the form mosquitto takes."""
    accounts = directory / "accounts"
    command = [require("mosquitto_passwd"), "-b", "-c", str(accounts), name, password]
    subprocess.run(command, check=True, capture_output=True)
    return accounts


@pytest.mark.expects_warnings(
    "broker refuses user name or password", "broker does not authorize us"
)
async def test_a_password_is_shown_and_may_be_changed_while_running(
    mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    accounts = accounts_file(tmp_path, "gateway", "correct horse")
    broker = mosquitto("allow_anonymous false", f"password_file {accounts}")
    password.write_text("wrong\n")
    own = settings(username="gateway", password_file=password)
    async with running(broker, own, connect=False) as one:
        await failures_at_least(one.connection, 1)
        password.write_text("correct horse\n")
        await one.connected()
        one.publish("t", ticket=1)

        assert await one.ended_at_least(1) == {1: 0x10}


def tls_lines(directory: Path, ca: FactoryCa) -> tuple[str, ...]:
    """A broker that shows a certificate of `ca` and wants to see one."""
    (directory / "ca.pem").write_bytes(ca.certificate_pem)
    server = ca.issue_server(names=("localhost",), addresses=("127.0.0.1",))
    server.write(directory, "broker")
    ca.issue_device("gateway").write(directory, "gateway")
    return (
        f"cafile {directory / 'ca.pem'}",
        f"certfile {directory / 'broker.pem'}",
        f"keyfile {directory / 'broker.key'}",
        "require_certificate true",
        "use_identity_as_username true",
    )


async def test_tls_with_a_client_certificate(mosquitto: StartMosquitto, tmp_path: Path) -> None:
    broker = mosquitto(*tls_lines(tmp_path, FactoryCa.create("broker root")))
    own = settings(
        tls=True,
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "gateway.pem",
        private_key=tmp_path / "gateway.key",
    )
    async with running(broker, own) as one:
        for ticket in range(100):
            one.publish("t", bytes(1000), ticket=ticket)

        assert set((await one.ended_at_least(100)).values()) == {0x10}
        await one.connection.drain(5)
    assert broker.wait_for_log("u'gateway'"), "the broker knows us by our certificate"


@pytest.mark.expects_warnings("TLS with the broker failed", "broker's certificate is not trusted")
async def test_tls_that_does_not_fit_is_told(mosquitto: StartMosquitto, tmp_path: Path) -> None:
    broker = mosquitto(*tls_lines(tmp_path, FactoryCa.create("broker root")))
    without_certificate = settings(tls=True, ca=tmp_path / "ca.pem")
    without_ca = settings(tls=True)
    for own in (without_certificate, without_ca):
        async with running(broker, own, connect=False) as one:
            await failures_at_least(one.connection, 1)
            assert not one.connection.connected


async def test_the_status_is_retained_and_says_when_the_gateway_goes(broker: Mosquitto) -> None:
    topic = f"{uuid4().hex}/$gateway/0/status"
    async with running(broker, settings(status_topic=topic)) as one:
        async with subscriber(broker, topic) as bus:
            online = await bus.next_status()
            assert online.keys() == {"at", "online"}
            assert online["online"] is True
            await one.connection.drain(5)
            stopped = await bus.next_status()
            assert (stopped["online"], stopped["reason"]) == (False, "stopped")
        async with subscriber(broker, topic) as bus:
            message = await bus.next()
            assert message.retain
            assert isinstance(message.payload, bytes)
            assert json.loads(message.payload)["reason"] == "stopped"


async def test_the_will_says_that_the_gateway_is_lost(broker: Mosquitto) -> None:
    topic = f"{uuid4().hex}/$gateway/0/status"
    async with subscriber(broker, topic) as bus:
        async with running(broker, settings(status_topic=topic)):
            assert (await bus.next_status())["online"] is True
        # The task was cancelled: nothing was said, as when the process is killed.
        lost = await bus.next_status()
        assert (lost["online"], lost["reason"]) == (False, "lost")


@pytest.mark.expects_warnings("broker lost", "publication dropped as poison")
async def test_what_mosquitto_disconnects_for_is_poison_and_hurts_nobody(
    broker: Mosquitto,
) -> None:
    async with running(broker, settings()) as one:
        for ticket in range(50):
            one.publish("bad\x01" if ticket == 25 else "good", ticket=ticket)
        outcomes = await one.ended_at_least(50)

        assert outcomes.pop(25) == Outcome.POISON
        assert set(outcomes.values()) == {0x10}


async def test_maximum_packet_size_is_known_before_anything_is_sent(
    mosquitto: StartMosquitto,
) -> None:
    broker = mosquitto("max_packet_size 2000")
    async with running(broker, settings()) as one:
        one.publish("t", bytes(2000), ticket=1)
        one.publish("t", bytes(1000), ticket=2)

        assert await one.ended_at_least(2) == {1: Outcome.TOO_LARGE, 2: 0x10}
        assert one.connection.disconnects == 0


async def test_no_character_that_topics_let_through_offends_mosquitto(
    mosquitto: StartMosquitto,
) -> None:
    """The Basic Multilingual Plane and both ends of every other, in topics and in properties."""
    broker = mosquitto()
    planes = [range(first, first + 0x10000) for first in range(0x10000, 0x110000, 0x10000)]
    numbers = [*range(0xD800), *range(0xE000, 0x10000)]
    for plane in planes:
        numbers += [*plane[:256], *plane[-256:]]
    accepted = [chr(number) for number in numbers if is_accepted(chr(number))]
    assert len(numbers) - len(accepted) == 65 + 66 + len("/+#"), "controls, noncharacters"
    chunks = ["".join(accepted[first : first + 50]) for first in range(0, len(accepted), 50)]
    async with running(broker, settings(hold_time=60.0, hold_messages=len(chunks))) as one:
        for ticket, chunk in enumerate(chunks):
            one.publish(f"r/{chunk}", b"", ticket=ticket, user_properties=(("query", chunk),))
        outcomes = await one.ended_at_least(len(chunks))

        assert set(outcomes.values()) == {0x10}
        assert one.connection.disconnects == 0


def is_accepted(character: str) -> bool:
    """Whether a device may have it in the middle of a path."""
    try:
        path = uplink_path([f"a{character}b".encode()], MAX_TOPIC_LENGTH)
        query = query_text([character.encode()])
    except RequestRefused:
        return False
    assert path == f"a{character}b"
    assert query in {character, "%25", "%26"}
    return True


@pytest.mark.parametrize(
    "segments",
    [
        [b"a"] * 32,
        [b"\xef\xbb\xbfbom", "\u2028\u2029".encode(), "\u202eright".encode()],
        [b"...", b".a", b"a.", b"..a", b"a$", b"%", b"%2", b" ", b"~", b"\\", b'"'],
        ["\U0001f321\ufe0f".encode(), "e\u0301".encode(), "\ue000".encode()],
    ],
)
async def test_the_nastiest_paths_that_are_accepted_arrive_as_they_are(
    broker: Mosquitto, segments: list[bytes]
) -> None:
    root = uuid4().hex
    path = uplink_path(segments, MAX_TOPIC_LENGTH - 36)
    async with subscriber(broker, f"{root}/#") as bus, running(broker, settings()) as one:
        one.publish(f"{root}/up/{path}", ticket=1)

        message = await bus.next()
        assert str(message.topic).split("/")[2:] == [segment.decode() for segment in segments]
        assert await one.ended_at_least(1) == {1: 0}
