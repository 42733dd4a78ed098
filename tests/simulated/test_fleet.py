"""A fleet over real sockets: pace, answers of every kind, moves, sleep, and losses."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from coapgate.coap.options import ECHO
from coapgate.dtls.client import ClientCertificate, Credential, PskKey
from coapgate.errors import Alert, Misused, Reason
from coapgate.model import Code
from coapgate.pki.factory import FactoryCa
from coapgate.simulated.fleet.plan import Plan
from coapgate.simulated.fleet.running import Fleet, Phase
from coapgate.simulated.fleet.tally import Tally
from coapgate.simulated.message import Kind, Message
from coapgate.simulated.trust import trust_server
from tests.simulated.gateway import KEY, QUICK, FakeGateway, changed, serving
from tests.waiting import until

QUICKER = replace(QUICK, ack_timeout=0.02, max_retransmit=2)
PLAN = Plan(
    rate=20.0,
    duration=0.5,
    path=(b"room", b"load"),
    payload=b"21.5",
    connect_rate=1000.0,
    drain_time=5.0,
    retransmission_time=0.1,
    reliability=QUICK,
)


def keys(count: int) -> list[Credential]:
    return [PskKey(b"sensor-%d" % number, KEY.secret) for number in range(count)]


def fleet_at(gateway: FakeGateway, credentials: list[Credential], **changes: Any) -> Fleet:
    place = (socket.AF_INET, ("127.0.0.1", gateway.port))
    return Fleet(replace(PLAN, **changes), credentials, place)


async def run(gateway: FakeGateway, devices: int, **changes: Any) -> Tally:
    async with serving(gateway):
        fleet = fleet_at(gateway, keys(devices), **changes)
        async with asyncio.timeout(30):
            await fleet.run()
    return fleet.tally


async def test_every_device_connects_sends_in_turn_and_says_goodbye() -> None:
    gateway = FakeGateway()

    tally = await run(gateway, 10)

    assert tally.went_well
    assert (tally.handshakes, tally.sent, tally.answered) == (10, 10, 10)
    assert tally.response_times.count == 10
    assert 0.0 < tally.response_times.percentile(0.5) <= tally.response_times.longest
    assert gateway.server.association_count == 0
    assert len(gateway.sources) == 10
    request = gateway.requests[0]
    assert (request.kind, request.code, request.payload) == (Kind.CON, Code.POST, b"21.5")
    assert request.options == ((11, b"room"), (11, b"load"), (12, b""))
    tokens = [each.token for each in gateway.requests]
    assert len(set(tokens)) == 10


async def test_a_rate_of_nothing_only_holds_associations() -> None:
    tally = await run(FakeGateway(), 2, rate=0.0)

    assert tally.went_well
    assert (tally.handshakes, tally.sent) == (2, 0)


def telling(request: Message) -> list[Message]:
    """Lets everybody observe, and tells each of two states, and that there is none any more."""
    if request.code != Code.GET:
        return changed(request)
    token = request.token
    order = [((6, bytes((number,))),) for number in range(3)]
    first = Message(Kind.CON, Code.CONTENT, 900, token, order[1], b"1")
    return [
        Message(Kind.ACK, Code.CONTENT, request.message_id, token, order[0], b"0"),
        first,
        Message(Kind.NON, Code.CONTENT, 901, token, order[2], b"2"),
        Message(Kind.CON, Code.NOT_FOUND, 902, token),
    ]


async def test_devices_observe_and_count_what_they_hear() -> None:
    gateway = FakeGateway(telling)

    tally = await run(gateway, 4, observe=(b"led",))

    assert tally.went_well
    assert (tally.observing, tally.notifications) == (4, 12)
    assert (tally.sent, tally.answered) == (10, 10)
    replies = [(reply.kind, reply.message_id) for reply in gateway.replies]
    assert sorted(replies) == sorted([(Kind.ACK, 900), (Kind.ACK, 902)] * 4)
    asked = [each for each in gateway.requests if each.code == Code.GET]
    assert [each.options for each in asked] == [((6, b""), (11, b"led"))] * 4


async def test_devices_that_may_not_observe_send_all_the_same() -> None:
    tally = await run(FakeGateway(), 3, observe=(b"led",))

    assert not tally.went_well
    assert (tally.observing, dict(tally.not_observing)) == (0, {"2.04": 3})
    assert tally.answered == 10


async def test_a_registration_that_is_rejected_or_lost_is_counted() -> None:
    def reject(request: Message) -> list[Message]:
        if request.code == Code.GET:
            return [Message(Kind.RST, Code.EMPTY, request.message_id)]
        return changed(request)

    def swallow(request: Message) -> list[Message]:
        return [] if request.code == Code.GET else changed(request)

    rejected = await run(FakeGateway(reject), 2, observe=(b"led",))
    lost = await run(FakeGateway(swallow), 1, observe=(b"led",), duration=1.0, reliability=QUICKER)

    assert dict(rejected.not_observing) == {"rejected": 2}
    assert lost.not_observing["no answer"] >= 1
    assert lost.handshakes >= 2


async def test_devices_with_certificates_judge_the_server() -> None:
    ca = FactoryCa.create("Factory")
    issued = ca.issue_device("sensor-1")
    good = ClientCertificate(issued.chain, issued.key, trust_server(ca.certificate, "127.0.0.1"))
    doubting = replace(good, trust=trust_server(FactoryCa.create("X").certificate, "127.0.0.1"))
    async with serving(FakeGateway(certificate=ca.issue_server())) as gateway:
        fleet = fleet_at(gateway, [good, doubting])
        await fleet.run()

    assert fleet.tally.handshakes == 1
    assert fleet.tally.answered > 0
    assert dict(fleet.tally.failed) == {"untrusted: the gateway's certificate": 1}
    assert not fleet.tally.went_well


async def test_a_refused_fleet_learns_why_and_sends_nothing() -> None:
    tally = await run(FakeGateway(reason=Reason.REVOKED), 3)

    assert dict(tally.failed) == {"alert 44 certificate_revoked": 3}
    assert (tally.handshakes, tally.sent) == (0, 0)


async def test_where_nobody_listens_is_known_at_once() -> None:
    async with serving(FakeGateway()) as gateway:
        fleet = fleet_at(gateway, keys(3))
    # The socket is closed by now, or with the next turn of the loop.
    await asyncio.wait_for(fleet.run(), 10)

    assert dict(fleet.tally.failed) == {"nobody listens there": 3}


async def test_what_is_lost_is_repeated_and_counted() -> None:
    tally = await run(FakeGateway(), 20, rate=100.0, loss=0.2, duration=1.0)

    assert tally.handshakes == 20
    assert tally.repeats > 0
    assert tally.dropped > 0
    assert tally.answered + tally.lost + tally.busy + tally.late == 100
    assert tally.answered > 20


async def test_the_same_seed_loses_the_same_from_the_start() -> None:
    drawn = []
    for _ in range(2):
        async with serving(FakeGateway()) as gateway:
            fleet = fleet_at(gateway, keys(1), loss=0.5, seed=7, handshake_timeout=0.01)
            await fleet.run()
        drawn.append(fleet.tally.dropped)

    assert drawn[0] == drawn[1]


async def test_wrong_answers_are_counted_by_code() -> None:
    codes = iter([Code.CHANGED, Code.TOO_MANY_REQUESTS, Code.SERVICE_UNAVAILABLE] * 10)

    def answer(request: Message) -> list[Message]:
        return [Message(Kind.ACK, next(codes), request.message_id, request.token)]

    tally = await run(FakeGateway(answer), 10)

    assert tally.answered == 4
    assert dict(tally.wrong) == {Code.TOO_MANY_REQUESTS: 3, Code.SERVICE_UNAVAILABLE: 3}
    assert not tally.went_well


async def test_separate_responses_are_acknowledged() -> None:
    def answer(request: Message) -> list[Message]:
        response = Message(Kind.CON, Code.CHANGED, request.message_id ^ 0x5555, request.token)
        return [Message(Kind.ACK, Code.EMPTY, request.message_id), response, response]

    gateway = FakeGateway(answer)
    tally = await run(gateway, 10)

    assert tally.went_well
    assert tally.answered == 10
    assert [reply.kind for reply in gateway.replies] == [Kind.ACK] * 20


async def test_pings_foreign_responses_and_noise_are_no_answers() -> None:
    def answer(request: Message) -> list[Message]:
        return [
            Message(Kind.CON, Code.EMPTY, 1),
            Message(Kind.CON, Code.CONTENT, 2, b"none"),
            Message(Kind.NON, Code.GET, 3, b"what"),
            Message(Kind.ACK, Code.CHANGED, request.message_id + 1 & 0xFFFF, request.token),
            Message(Kind.ACK, Code.CHANGED, request.message_id, b"none"),
            Message(Kind.ACK, Code.CHANGED, request.message_id, request.token, (), b"thanks"),
        ]

    gateway = FakeGateway(answer)
    tally = await run(gateway, 2, rate=4.0)

    assert (tally.sent, tally.answered, tally.lost) == (2, 2, 0)
    kinds = [(reply.kind, reply.message_id) for reply in gateway.replies]
    assert kinds == [(Kind.RST, 1), (Kind.RST, 2)] * 2


async def test_a_request_comes_once_more_with_the_echo_that_is_asked_for() -> None:
    def answer(request: Message) -> list[Message]:
        if (ECHO, b"here") in request.options:
            return [Message(Kind.ACK, Code.CHANGED, request.message_id, request.token)]
        asked = ((ECHO, b"here"),)
        return [Message(Kind.ACK, Code.UNAUTHORIZED, request.message_id, request.token, asked)]

    gateway = FakeGateway(answer)
    tally = await run(gateway, 2, rate=4.0)

    assert tally.went_well
    assert (tally.sent, tally.answered, tally.echoes) == (2, 2, 2)
    assert {request.payload for request in gateway.requests} == {b"21.5"}


async def test_an_unauthorized_request_is_not_echoed_for_ever() -> None:
    def answer(request: Message) -> list[Message]:
        asked = ((ECHO, b"here"),)
        return [Message(Kind.ACK, Code.UNAUTHORIZED, request.message_id, request.token, asked)]

    tally = await run(FakeGateway(answer), 2, rate=4.0)

    assert (tally.sent, tally.echoes, dict(tally.wrong)) == (2, 2, {Code.UNAUTHORIZED: 2})


async def test_rejected_requests_are_lost() -> None:
    tally = await run(FakeGateway(lambda request: [Message(Kind.RST, 0, request.message_id)]), 10)

    assert tally.rejected == tally.lost == tally.sent == 10


async def test_whom_nobody_answers_gives_up_and_connects_again() -> None:
    quick = replace(QUICK, ack_timeout=0.01, max_retransmit=1)
    gateway = FakeGateway(lambda request: [])

    tally = await run(gateway, 1, rate=4.0, duration=1.0, reliability=quick)

    assert tally.given_up >= 2
    assert tally.handshakes == tally.given_up + 1 or tally.handshakes == tally.given_up
    assert tally.repeats >= 2
    assert tally.ended == 0


async def test_a_device_has_one_request_at_a_time() -> None:
    gateway = FakeGateway(lambda request: [])

    tally = await run(gateway, 1, reliability=replace(QUICK, ack_timeout=10.0), drain_time=0.1)

    assert (tally.sent, tally.busy, tally.unanswered) == (1, 9, 1)
    assert gateway.server.association_count == 0


async def test_a_device_whose_association_ends_connects_again() -> None:
    gateway = FakeGateway()
    async with serving(gateway), asyncio.TaskGroup() as tasks:
        fleet = fleet_at(gateway, keys(2), rate=50.0, duration=1.0)
        running = tasks.create_task(fleet.run(), name="fleet")
        await gateway.until(lambda: len(gateway.requests) >= 4)
        for association in tuple(gateway.server.associations):
            gateway.server.traffic.close(association, "shutdown", Alert.CLOSE_NOTIFY)
        gateway.flush()
        await running

    assert fleet.tally.ended == 2
    assert fleet.tally.handshakes == 4
    assert fleet.tally.answered >= 4


async def test_devices_move_to_other_ports() -> None:
    gateway = FakeGateway()

    tally = await run(gateway, 4, connection_id=True, move_every=2, duration=1.0)

    assert (tally.connection_ids, tally.handshakes) == (4, 4)
    assert tally.answered == tally.sent > 8
    assert 4 <= tally.moves <= 8
    assert len(gateway.sources) == 4 + tally.moves


async def test_devices_sleep_between_their_requests_and_are_left_asleep() -> None:
    gateway = FakeGateway()
    async with serving(gateway):
        fleet = fleet_at(gateway, keys(10), connection_id=True, sleep=True)
        await fleet.run()

        assert gateway.server.association_count == 10
    tally = fleet.tally
    assert tally.went_well
    assert (tally.handshakes, tally.answered, tally.sleeps) == (10, 10, 20)


async def test_a_load_that_is_stopped_waits_for_what_is_under_way() -> None:
    gateway = FakeGateway()
    async with serving(gateway), asyncio.TaskGroup() as tasks:
        fleet = fleet_at(gateway, keys(2), duration=60.0)
        running = tasks.create_task(fleet.run(), name="fleet")
        await gateway.until(lambda: len(gateway.requests) >= 4)
        fleet.stop()
        await running

    assert fleet.tally.answered == fleet.tally.sent >= 4
    assert fleet.tally.lost == 0
    assert fleet.tally.seconds < 30


async def test_a_load_that_is_stopped_twice_waits_for_nothing() -> None:
    gateway = FakeGateway(lambda request: [])
    async with serving(gateway), asyncio.TaskGroup() as tasks:
        slow = replace(QUICK, ack_timeout=60.0)
        fleet = fleet_at(gateway, keys(1), duration=60.0, drain_time=60.0, reliability=slow)
        running = tasks.create_task(fleet.run(), name="fleet")
        await gateway.until(lambda: len(gateway.requests) == 1)
        fleet.stop()
        await until(lambda: fleet.phase is Phase.WAITING, "the fleet waits")
        fleet.stop()
        await running

    assert fleet.tally.unanswered == 1


async def test_a_fleet_stopped_before_it_was_connected_says_so() -> None:
    async with serving(FakeGateway()) as gateway, asyncio.TaskGroup() as tasks:
        fleet = fleet_at(gateway, keys(3), connect_rate=0.1)
        tasks.create_task(fleet.run(), name="fleet")
        await asyncio.sleep(0)
        fleet.stop()

    assert dict(fleet.tally.failed) == {"stopped": 3}


async def test_a_fleet_that_is_cancelled_closes_its_sockets() -> None:
    async with serving(FakeGateway()) as gateway:
        fleet = fleet_at(gateway, keys(2), duration=60.0)
        running = asyncio.create_task(fleet.run())
        await gateway.until(lambda: len(gateway.requests) >= 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert gateway.server.association_count == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1000.1}, "more than the 1000 requests a second of --max-rate"),
        ({"connect_rate": 1001.0}, "more than the 1000 handshakes a second of --max-rate"),
        ({"rate": -1.0}, "a rate of -1 requests"),
        ({"rate": float("nan")}, "a rate of nan requests"),
        ({"rate": float("inf")}, "--rate inf is more than"),
        ({"max_rate": float("inf")}, "a --max-rate of inf"),
        ({"max_rate": float("nan")}, "a --max-rate of nan"),
        ({"connect_rate": 0.0}, "nobody would connect"),
        ({"duration": 0.0}, "a load of 0 seconds"),
        ({"duration": 1e9}, "a load of 1e\\+09 seconds"),
        ({"loss": 1.0}, "a loss of 1"),
        ({"loss": float("nan")}, "a loss of nan"),
        ({"payload": bytes(1025)}, "do not fit"),
        ({"sleep": True}, "needs a Connection ID"),
        ({"move_every": 1}, "needs a Connection ID"),
    ],
)
def test_what_cannot_be_or_does_harm_is_no_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Misused, match=message):
        replace(PLAN, **changes)


def test_a_higher_rate_must_be_asked_for() -> None:
    assert replace(PLAN, rate=5000.0, max_rate=5000.0).rate == 5000.0
