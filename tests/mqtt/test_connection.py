"""The connection, against a broker that misbehaves on demand."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from coapgate.errors import StartError
from coapgate.model import Outcome
from coapgate.mqtt.connection import GOODBYE_TIMEOUT, Connection
from coapgate.mqtt.settings import ConnectionSettings, check_files
from tests.fakes.broker import MQTT_3_REFUSAL, FakeBroker
from tests.mqtt.running import failures_at_least, running

IMPATIENT = ConnectionSettings("", hold_time=0.3)
STATUS = "coapgate/$gateway/0/status"


@pytest.mark.expects_warnings("broker refuses publications")
async def test_a_publication_ends_with_the_code_of_its_puback() -> None:
    async with FakeBroker(refuse={"a/no": 0x99}) as broker, running(broker) as one:
        one.publish("a/b", b"21.5", ticket=1, user_properties=(("device", "sensor-1"),))
        one.publish("a/no", ticket=2)

        assert await one.ended_at_least(2) == {1: 0, 2: 0x99}
        assert broker.published[0].payload == b"21.5"
        assert broker.published[0].user_properties == [("device", "sensor-1")]
        assert one.connection.publications.refused == {0x99: 1}
        assert one.connection.connects == 1
        assert await one.connection.wait_attempted() is None


async def test_nothing_ends_inside_of_publish() -> None:
    async with FakeBroker(maximum_packet_size=100) as broker, running(broker) as one:
        one.publish("zero", qos=0, ticket=1)
        one.publish("large", b"x" * 100, ticket=2)
        assert one.outcomes == []

        assert await one.ended_at_least(2) == {1: 0, 2: Outcome.TOO_LARGE}
        await broker.published_at_least(1)
        assert broker.topics == ["zero"]


async def test_receive_maximum_is_honoured_however_much_waits() -> None:
    async with FakeBroker(receive_maximum=3, hold_pubacks=True) as broker, running(broker) as one:
        for ticket in range(20):
            one.publish("t", ticket=ticket)
        await broker.published_at_least(3)
        broker.release_pubacks()
        outcomes = await one.ended_at_least(20)

        assert set(outcomes.values()) == {0}
        assert broker.most_in_flight == 3
        assert list(outcomes) == list(range(20))


@pytest.mark.expects_warnings("nothing listens where the broker should be")
async def test_publications_are_held_for_a_broker_that_comes_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeBroker() as broker:
        await broker.stop()
        async with running(broker, connect=False) as one:
            one.publish("t", ticket=1)
            await failures_at_least(one.connection, 3)
            await broker.start()

            assert await one.ended_at_least(1) == {1: 0}
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, "each kind of failure is logged once"
    assert vars(warnings[0])["hint"] == "is it running? check mqtt.url"


@pytest.mark.expects_warnings("nothing listens where the broker should be")
async def test_publications_for_a_broker_that_does_not_come_are_unavailable() -> None:
    async with FakeBroker() as broker:
        await broker.stop()
        async with running(broker, IMPATIENT, connect=False) as one:
            loop = asyncio.get_running_loop()
            accepted_at = loop.time()
            one.publish("t", ticket=1)

            assert await one.ended_at_least(1) == {1: Outcome.UNAVAILABLE}
            assert 0.3 <= loop.time() - accepted_at < 5
            await broker.start()
            await one.connected()
            one.publish("u", ticket=2)
            await one.ended_at_least(2)
            assert broker.topics == ["u"], "what was answered is never sent"


async def test_after_a_lost_connection_nothing_is_lost_and_order_is_kept() -> None:
    async with FakeBroker(hold_pubacks=True) as broker, running(broker) as one:
        for ticket in range(5):
            one.publish(f"t/{ticket}", ticket=ticket)
        await broker.published_at_least(5)
        broker.hold_pubacks = False
        broker.cut_all()

        assert await one.ended_at_least(5) == dict.fromkeys(range(5), 0)
        assert broker.topics == [f"t/{ticket}" for ticket in range(5)] * 2
        assert (one.connection.connects, one.connection.disconnects) == (2, 1)


@pytest.mark.expects_warnings("broker lost", "publication dropped as poison")
async def test_poison_is_sent_twice_and_the_innocent_are_acknowledged() -> None:
    async with FakeBroker(disconnect={"bad": 0x81}) as broker, running(broker) as one:
        for ticket in range(10):
            one.publish("bad" if ticket == 4 else f"good/{ticket}", ticket=ticket)
        outcomes = await one.ended_at_least(10)

        assert outcomes.pop(4) == Outcome.POISON
        assert set(outcomes.values()) == {0}
        assert broker.topics.count("bad") == 2
        assert one.connection.publications.poison == 1
        assert one.connection.disconnects == 2


@pytest.mark.expects_warnings("publication dropped as poison")
async def test_a_broker_that_dies_of_a_publication_does_so_four_times() -> None:
    async with FakeBroker(cut=frozenset({"bad"})) as broker, running(broker) as one:
        for ticket, topic in enumerate(("good/0", "bad", "good/2")):
            one.publish(topic, ticket=ticket)

        assert await one.ended_at_least(3) == {0: 0, 1: Outcome.POISON, 2: 0}
        assert broker.topics.count("bad") == 4


@pytest.mark.expects_warnings("broker lost")
async def test_a_connection_taken_over_is_told_with_a_hint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeBroker() as broker, running(broker) as one:
        broker.disconnect_all(0x8E)
        await broker.connected_at_least(2)
        await one.connected()
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert vars(warning)["detail"] == "session taken over (0x8e)"
    assert "node number" in vars(warning)["hint"]


async def test_a_slow_broker_is_waited_for_longer_than_hold_time() -> None:
    async with FakeBroker(puback_delay=0.6) as broker, running(broker, IMPATIENT) as one:
        one.publish("t", ticket=1)

        assert await one.ended_at_least(1) == {1: 0}


@pytest.mark.expects_warnings("broker lost")
async def test_a_silent_broker_is_left_and_its_publications_answered() -> None:
    settings = ConnectionSettings("", keep_alive=5, hold_time=0.1)
    async with FakeBroker() as broker, running(broker, settings) as one:
        broker.silent = True
        one.publish("t", ticket=1)

        assert await one.ended_at_least(1) == {1: Outcome.UNAVAILABLE}
        assert one.connection.disconnects == 1
        assert broker.pings >= 1


@pytest.mark.parametrize(
    ("broker", "message"),
    [
        pytest.param(
            FakeBroker(connack=0x86), "broker refuses user name or password", id="password"
        ),
        pytest.param(
            FakeBroker(connack_octets=MQTT_3_REFUSAL), "broker does not speak MQTT 5", id="mqtt-3"
        ),
        pytest.param(
            FakeBroker(maximum_qos=0), "broker takes publications at QoS 0 only", id="qos-0"
        ),
        pytest.param(
            FakeBroker(connack_octets=b""), "broker does not answer our CONNECT", id="closed"
        ),
    ],
)
@pytest.mark.expects_warnings
async def test_a_refusal_is_logged_once_and_retried_with_growing_delays(
    broker: FakeBroker, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker, running(broker, connect=False) as one:
        ending = await one.connection.wait_attempted()
        assert ending is not None
        assert (ending.message, ending.lasting) == (message, "CONNECT" not in message)
        await broker.connected_at_least(3)
        await failures_at_least(one.connection, 3)

        assert not one.connection.connected
        assert one.connection.connects == 0
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message for record in warnings] == [message]
    assert vars(warnings[0])["hint"]


@pytest.mark.expects_warnings("broker refuses user name or password")
async def test_the_password_is_read_for_every_connection(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old\n")
    settings = ConnectionSettings("", username="gateway", password_file=file)
    async with FakeBroker(connack=0x86) as broker:
        async with running(broker, settings, connect=False) as one:
            await broker.connected_at_least(1)
            file.write_text("new\r\n")
            broker.connack = 0
            await one.connected()

        assert broker.connects[0].username == "gateway"
        assert (broker.connects[0].password, broker.connects[-1].password) == (b"old", b"new")


@pytest.mark.expects_warnings
async def test_a_password_file_that_is_gone_is_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    settings = ConnectionSettings("", username="gateway", password_file=file)
    async with FakeBroker() as broker, running(broker, settings, connect=False) as one:
        await failures_at_least(one.connection, 1)
        file.write_text("there")
        await one.connected()
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "mqtt.password_file cannot be read" in warning.message


@pytest.mark.expects_warnings("broker's name does not resolve", "broker cannot be reached")
async def test_a_name_that_is_none_is_told() -> None:
    for host in ("nowhere.invalid", ".."):
        connection = Connection(ConnectionSettings(host), lambda ticket, outcome: None)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(connection.run(), name="mqtt")
            await failures_at_least(connection, 1)
            task.cancel()


@pytest.mark.expects_warnings("TLS with the broker failed")
async def test_a_broker_without_tls_is_told() -> None:
    async with FakeBroker() as broker:
        settings = ConnectionSettings("", tls=True)
        async with running(broker, settings, connect=False) as one:
            await failures_at_least(one.connection, 1)


@pytest.mark.expects_warnings("broker does not answer")
async def test_a_broker_that_is_silent_during_tls_is_told() -> None:
    async with FakeBroker() as broker:
        settings = ConnectionSettings("", tls=True, connect_timeout=0.1)
        async with running(broker, settings, connect=False) as one:
            await broker.wait_for(lambda: broker.accepted == 1)
            broker.stop_reading()
            await failures_at_least(one.connection, 1)


@pytest.mark.expects_warnings("broker cannot be reached")
async def test_an_address_that_cannot_be_a_brokers_is_told() -> None:
    connection = Connection(ConnectionSettings("255.255.255.255"), lambda ticket, outcome: None)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(connection.run(), name="mqtt")
        await failures_at_least(connection, 1)
        task.cancel()


@pytest.mark.expects_warnings("outcome of a publication was not taken")
async def test_an_outcome_that_is_not_taken_hurts_nobody_else() -> None:
    taken: list[int] = []
    done = asyncio.Event()

    def ended(ticket: int, outcome: int) -> None:
        if ticket == 1:
            raise ValueError(ticket)
        taken.append(ticket)
        if ticket == 3:
            done.set()

    async with FakeBroker() as broker, asyncio.TaskGroup() as tasks:
        connection = Connection(ConnectionSettings(broker.host, broker.port), ended)
        task = tasks.create_task(connection.run(), name="mqtt")
        for ticket in (1, 2, 3):
            connection.publish(
                "t", b"", qos=1, content_type=None, user_properties=[], ticket=ticket
            )
        async with asyncio.timeout(10):
            await done.wait()
        assert taken == [2, 3]
        assert connection.disconnects == 0
        task.cancel()


async def test_an_outcome_may_lead_to_another_publication() -> None:
    async with FakeBroker() as broker, asyncio.TaskGroup() as tasks:
        done = asyncio.Event()

        def publish(ticket: int, qos: int) -> None:
            connection.publish(
                f"t/{ticket}", b"", qos=qos, content_type=None, user_properties=[], ticket=ticket
            )

        def ended(ticket: int, outcome: int) -> None:
            if ticket < 10:
                publish(ticket + 1, ticket % 2)
            else:
                done.set()

        connection = Connection(ConnectionSettings(broker.host, broker.port), ended)
        task = tasks.create_task(connection.run(), name="mqtt")
        publish(0, 1)
        async with asyncio.timeout(10):
            await done.wait()
        await broker.published_at_least(11)
        assert broker.topics == [f"t/{ticket}" for ticket in range(11)]
        task.cancel()


async def test_a_broker_that_does_not_read_fills_no_memory() -> None:
    settings = ConnectionSettings("", hold_messages=10, max_in_flight=65535)
    async with FakeBroker() as broker, running(broker, settings) as one:
        broker.stop_reading()
        count = 0
        while not one.connection.publications.unavailable:
            one.publish("t", bytes(100_000), qos=0)
            count += 1
            assert count < 1000
            await one.next_tick()
        assert one.connection.publications.held == 10

        broker.resume_reading()
        await broker.published_at_least(count - 1)
        assert one.connection.publications.held == 0


async def test_draining_finishes_what_is_held_and_says_goodbye() -> None:
    settings = ConnectionSettings("", status_topic=STATUS)
    broker = FakeBroker(receive_maximum=2, puback_delay=0.01)
    async with broker, running(broker, settings) as one:
        for ticket in range(10):
            one.publish("t", ticket=ticket)
        await one.connection.drain(10)
        assert one.outcomes == [(ticket, 0) for ticket in range(10)]
        one.publish("late", ticket=10)
        assert (await one.ended_at_least(11))[10] == Outcome.UNAVAILABLE
        await broker.wait_for(lambda: broker.connections == 0)

    assert broker.topics == [STATUS, *["t"] * 10, STATUS]
    assert b'"stopped"' in broker.published[-1].payload
    assert [packet.reason_code.value for packet in broker.disconnects] == [0]
    assert one.connection.disconnects == 0


async def test_draining_ends_in_time_although_the_broker_does_not() -> None:
    settings = ConnectionSettings("", status_topic=STATUS)
    async with FakeBroker(hold_pubacks=True) as broker, running(broker, settings) as one:
        one.publish("t", ticket=1)
        await broker.published_at_least(2)
        await one.connection.drain(0.05)

        assert one.outcomes == [(1, Outcome.UNAVAILABLE)]
        await broker.wait_for(lambda: broker.connections == 0)
    assert [packet.reason_code.value for packet in broker.disconnects] == [4], "the Will it is"


async def test_draining_cuts_off_a_broker_that_does_not_close() -> None:
    async with FakeBroker() as broker, running(broker) as one:
        broker.stop_reading()
        await one.connection.drain(1)
        broker.resume_reading()
        await broker.wait_for(lambda: broker.connections == 0)


async def test_draining_does_not_wait_for_a_broker_that_never_took_us() -> None:
    async with FakeBroker(accept_silently=True) as broker, running(broker, connect=False) as one:
        await broker.connected_at_least(1)
        async with asyncio.timeout(GOODBYE_TIMEOUT / 2):
            await one.connection.drain(0)
        await broker.wait_for(lambda: broker.connections == 0)


@pytest.mark.expects_warnings("nothing listens where the broker should be")
async def test_draining_without_a_broker_answers_what_is_held() -> None:
    async with FakeBroker() as broker:
        await broker.stop()
        async with running(broker, connect=False) as one:
            one.publish("t", ticket=1)
            await failures_at_least(one.connection, 1)
            await one.connection.drain(0.05)

            assert one.outcomes == [(1, Outcome.UNAVAILABLE)]


async def test_a_connection_made_after_draining_is_closed_at_once(tmp_path: Path) -> None:
    password = tmp_path / "password"
    os.mkfifo(password)
    settings = ConnectionSettings("", username="gateway", password_file=password)
    async with FakeBroker() as broker, running(broker, settings, connect=False) as one:
        # Opening it returns when the attempt waits for its password at the other end.
        with await asyncio.to_thread(password.open, "w") as file:
            await one.connection.drain(0)
            file.write("secret")
        await broker.wait_for(lambda: broker.accepted == 1 and broker.connections == 0)
    assert broker.connects == []
    assert not one.connection.connected


@pytest.mark.parametrize("accept_silently", [False, True])
async def test_cancelling_leaves_no_transport_behind(accept_silently: bool) -> None:
    async with FakeBroker(accept_silently=accept_silently) as broker:
        async with running(broker, connect=not accept_silently) as one:
            await broker.connected_at_least(1)
        await broker.wait_for(lambda: broker.connections == 0)
        assert (one.connection.failures, one.connection.disconnects) == (0, 0), "it was our wish"


def test_what_a_connection_is_called_has_no_secret_in_it(tmp_path: Path) -> None:
    settings = ConnectionSettings("::1", 8883, tls=True, username="u", password_file=tmp_path)

    assert settings.url == "mqtts://[::1]:8883"


async def test_a_connection_says_what_it_is() -> None:
    connection = Connection(ConnectionSettings("localhost"), lambda ticket, outcome: None)

    assert repr(connection) == "<Connection mqtt://localhost:1883 disconnected>"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "mqtt.password_file cannot be read"),
        (b"", "mqtt.password_file has no password in it, or too long a one"),
        (b"\n", "mqtt.password_file has no password in it, or too long a one"),
        (b"x" * 65536, "mqtt.password_file has no password in it, or too long a one"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_told_at_start(
    tmp_path: Path, contents: bytes | None, message: str
) -> None:
    file = tmp_path / "password"
    if contents is not None:
        file.write_bytes(contents)

    with pytest.raises(StartError, match=message) as error:
        check_files(ConnectionSettings("localhost", username="u", password_file=file))
    assert error.value.hint
    assert "xx" not in str(error.value)


def test_tls_files_that_cannot_be_used_are_told_at_start(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")

    for settings, message in (
        (ConnectionSettings("localhost", tls=True, ca=tmp_path / "none"), "mqtt.ca cannot be used"),
        (ConnectionSettings("localhost", tls=True, ca=garbage), "mqtt.ca cannot be used"),
        (
            ConnectionSettings("localhost", tls=True, certificate=garbage, private_key=garbage),
            "mqtt.certificate and mqtt.private_key cannot be used",
        ),
    ):
        with pytest.raises(StartError, match=message) as error:
            check_files(settings)
        assert error.value.hint
    check_files(ConnectionSettings("localhost", tls=True))
    check_files(ConnectionSettings("localhost"))
