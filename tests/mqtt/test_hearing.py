"""What a connection hears from a real mosquitto, published by a client that is not ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import uuid4

import aiomqtt

from coapgate.mqtt.connection import HEARD_AT_ONCE
from coapgate.mqtt.subscriptions import Complete, Heard
from tests.conftest import StartMosquitto
from tests.mqtt.running import Running, running
from tests.mqtt.test_with_mosquitto import settings
from tests.peers import Mosquitto
from tests.waiting import until


def backend(broker: Mosquitto) -> aiomqtt.Client:
    return aiomqtt.Client(broker.host, broker.port, protocol=aiomqtt.ProtocolVersion.V5)


def complete(one: Running) -> list[Complete]:
    return [heard for heard in one.heard if isinstance(heard, Complete)]


def publications(one: Running) -> list[Heard]:
    return [heard for heard in one.heard if isinstance(heard, Heard)]


async def test_what_is_retained_comes_before_it_is_known_to_be_all(broker: Mosquitto) -> None:
    root = uuid4().hex
    async with backend(broker) as client, running(broker, settings()) as one:
        for number in range(300):
            await client.publish(f"{root}/{number}", b"%d" % number, qos=1, retain=True)
        for number in range(600):
            one.connection.subscribe(f"{root}/{number}", is_state=True)
        await until(lambda: len(complete(one)) == 600, "everything is looked up")

        found = {each.topic_filter for each in complete(one) if each.found}
        assert found == {f"{root}/{number}" for number in range(300)}
        assert len(publications(one)) == 300


async def test_a_body_of_four_mebibytes_is_heard_whole(broker: Mosquitto) -> None:
    topic = uuid4().hex
    body = bytes(range(256)) * 16384
    async with backend(broker) as client, running(broker, settings()) as one:
        await client.publish(topic, body, qos=1, retain=True)
        one.connection.subscribe(topic, is_state=True)
        await until(lambda: bool(complete(one)), "it is looked up")
        await client.publish(topic, b"", qos=1, retain=True)

    assert publications(one)[0].payload == body


async def test_the_broker_waits_for_acknowledgements(broker: Mosquitto) -> None:
    topic = uuid4().hex
    async with backend(broker) as client, running(broker, settings()) as one:
        one.connection.subscribe(f"{topic}/#")
        await until(lambda: bool(complete(one)), "it is subscribed")
        for number in range(100):
            await client.publish(f"{topic}/{number}", b"", qos=1)
        await until(lambda: len(publications(one)) >= 20, "as many as mosquitto has under way")
        taken = 0
        while taken < 100:
            await until(lambda: len(publications(one)) > taken, "more come")  # noqa: B023
            one.connection.acknowledge(publications(one)[taken])
            taken += 1

    assert [each.topic for each in publications(one)] == [f"{topic}/{n}" for n in range(100)]


async def test_after_the_broker_came_back_it_is_asked_again(mosquitto: StartMosquitto) -> None:
    broker = mosquitto()
    async with running(broker, settings()) as one:
        one.connection.subscribe("a/b", is_state=True)
        await until(lambda: len(complete(one)) == 1, "it is looked up")
        broker.stop()
        broker.start()
        async with backend(broker) as client:
            await client.publish("a/b", b"new", qos=1, retain=True)
            await until(lambda: len(complete(one)) == 2, "it is looked up on the new connection")
            await until(lambda: bool(publications(one)), "the publication is heard")

    assert publications(one)[-1].payload == b"new"


async def test_what_is_retained_is_not_heard_where_only_news_counts(broker: Mosquitto) -> None:
    root = uuid4().hex
    async with backend(broker) as client, running(broker, settings()) as one:
        await client.publish(f"{root}/old", b"", qos=1, retain=False)
        await client.publish(f"{root}/kept", b"1", qos=1, retain=True)
        one.connection.subscribe(f"{root}/#", only_news=True)
        await until(lambda: bool(complete(one)), "it is subscribed")
        await client.publish(f"{root}/new", b"2", qos=1)
        await until(lambda: bool(publications(one)), "the news are heard")

    assert [each.topic for each in publications(one)] == [f"{root}/new"]


async def test_more_is_heard_at_once_than_a_broker_queues(broker: Mosquitto) -> None:
    root = uuid4().hex
    async with backend(broker) as client, running(broker, settings()) as one:
        for number in range(3000):
            one.publish(f"{root}/{number}/status", b"x" * 100, retain=True, ticket=number)
            if number % 100 == 99:
                await one.ended_at_least(number + 1)
        await client.publish(f"{root}/last/status", b"", qos=1)
        one.connection.subscribe(f"{root}/+/status", at_most_once=True)
        await until(lambda: bool(complete(one)), "all that is retained has come")

    assert len(publications(one)) == 3000


async def test_a_flood_is_looked_at_a_little_at_a_time(broker: Mosquitto) -> None:
    root = uuid4().hex
    loop = asyncio.get_running_loop()
    ticks: list[int] = []
    tick = 0

    def count() -> None:
        nonlocal tick
        tick += 1
        ticker.append(loop.call_soon(count))
        ticker.pop(0)

    async with backend(broker) as client, running(broker, settings()) as one:
        one.connection.listen(lambda _: ticks.append(tick), one.ended, lambda: None)
        one.connection.subscribe(f"{root}/#", at_most_once=True)
        await until(lambda: len(ticks) == 1, "it is subscribed")
        ticker = [loop.call_soon(count)]
        for number in range(1000):
            await client.publish(f"{root}/{number}", b"", qos=0)
        await until(lambda: len(ticks) == 1001, "all have come")
        ticker[0].cancel()

    assert max(Counter(ticks).values()) <= HEARD_AT_ONCE
