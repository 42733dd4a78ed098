"""The Site behind aiocoap: what comes back, and that aiocoap is never given enough rope."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiocoap import Message, resource
from aiocoap.error import BadRequest
from aiocoap.numbers.contentformat import ContentFormat

from coapgate.coap.aiocoap_bridge import MAX_PER_ENDPOINT, MAX_REQUESTS, Bridge, Remote
from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.resources import PATHS, build_site
from coapgate.model import Code, Identity
from coapgate.rights import Offer
from tests.coap.gate import (
    ACK,
    CON,
    NO_RESPONSE,
    NON,
    URI_QUERY,
    WALL,
    FakeAssociation,
    Gate,
    empty,
    identity,
    message,
)

ACCEPT, BLOCK2 = 17, 23
NOW = 100.0


@asynccontextmanager
async def gate_with_site(site: resource.Site | None = None) -> AsyncIterator[Gate]:
    def respond(ticket: int, code: int, options: bytes, payload: bytes) -> None:
        gate.layer.respond(ticket, code, options, payload, NOW)

    async with Bridge(site or build_site(lambda: WALL), respond) as bridge:
        gate = Gate(site=bridge)
        yield gate


async def until(done: Callable[[], object]) -> None:
    """Let the loop run, which needs no time, until something is so."""
    for _ in range(100):
        if done():
            return
        await asyncio.sleep(0)
    pytest.fail("the loop has nothing left to do")


async def get(
    gate: Gate, path: str, *options: tuple[int, bytes], kind: int = CON, message_id: int = 1
) -> Message:
    octets = message(kind, Code.GET, message_id, path, options=options)
    gate.layer.receive(gate.open(), octets, NOW)
    await until(lambda: gate.sent)
    return gate.take_one()


async def test_discovery_lists_what_is_here() -> None:
    async with gate_with_site() as gate:
        answer = await get(gate, ".well-known/core")

    assert (answer.mtype, answer.mid, answer.code, answer.token) == (
        ACK,
        1,
        Code.CONTENT,
        b"\x0a",
    )
    assert answer.opt.content_format == 40
    assert answer.payload.decode() == (
        '</.well-known/core>;ct="40",'
        '</time>;ct="0";rt="coapgate.time",'
        '</hello>;ct="50 60";rt="coapgate.hello"'
    )
    assert len(answer.payload) < 400  # one datagram even at the smallest maximum fragment length
    for path in PATHS:
        assert f"</{'/'.join(s.decode() for s in path)}>" in answer.payload.decode()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (["rt=coapgate.time"], ["/time"]),
        (["rt=coapgate.*"], ["/time", "/hello"]),
        (["href=/t*"], ["/time"]),
        (["ct=60"], ["/hello"]),
        (["ct=60", "rt=coapgate.time"], []),
        (["if=x"], []),
        (["__class__=x"], []),
        (["rt"], ["/.well-known/core", "/time", "/hello"]),
    ],
)
async def test_discovery_is_filtered(query: list[str], found: list[str]) -> None:
    async with gate_with_site() as gate:
        options = [(URI_QUERY, argument.encode()) for argument in query]
        answer = await get(gate, ".well-known/core", *options)

    links = [link.split(">")[0][1:] for link in answer.payload.decode().split(",") if link]
    assert links == found


async def test_discovery_lists_the_paths_that_the_devices_rights_name() -> None:
    def offers(whose: Identity) -> list[Offer]:
        assert whose == identity()
        return [
            Offer("a b/\u00e9>", post=True, read=True, observe=True),
            Offer("led", post=False, read=True, observe=False),
            Offer("log", post=True, read=False, observe=False),
            Offer("secret", post=False, read=False, observe=False),
        ]

    async with gate_with_site(build_site(lambda: WALL, offers)) as gate:
        everything = await get(gate, ".well-known/core", (BLOCK2, b"\x06"))
        states = await get(gate, ".well-known/core", (URI_QUERY, b"rt=coapgate.state"))

    assert everything.payload.decode().split(",")[3:] == [
        '</a%20b/%C3%A9%3E>;rt="coapgate.uplink coapgate.state";obs',
        '</led>;rt="coapgate.state"',
        '</log>;rt="coapgate.uplink"',
    ]
    assert states.payload.decode() == ",".join(everything.payload.decode().split(",")[3:5])


async def test_discovery_of_many_paths_comes_in_blocks() -> None:
    def offers(whose: Identity) -> list[Offer]:
        return [Offer(f"path-{n}", post=True, read=True, observe=True) for n in range(100)]

    body, number, more = b"", 0, True
    async with gate_with_site(build_site(lambda: WALL, offers)) as gate:
        while more:
            block = Block(number, False, 5).encode()
            answer = await get(gate, ".well-known/core", (BLOCK2, block), message_id=number)
            assert answer.opt.block2.block_number == number
            body, more, number = body + answer.payload, answer.opt.block2.more, number + 1

    assert number > 5
    assert body.decode().endswith('</path-99>;rt="coapgate.uplink coapgate.state";obs')


@pytest.mark.parametrize(("seconds", "days"), [(86400 * 30 + 5, 30), (86399, 0), (-5, 0)])
async def test_hello_says_how_long_the_certificate_is_valid(seconds: int, days: int) -> None:
    expiring = replace(identity(), not_after=WALL + seconds)
    async with gate_with_site() as gate:
        endpoint = gate.layer.open(FakeAssociation(b"12345678", expiring), expiring, b"12345678")
        answers = []
        for number, accept in enumerate((b"\x32", b"\x3c")):
            octets = message(CON, Code.GET, number, "hello", options=((ACCEPT, accept),))
            gate.layer.receive(endpoint, octets, NOW)
            await until(lambda: gate.sent)
            answers.append(gate.take_one().payload)

    assert json.loads(answers[0])["days_left"] == days
    assert answers[1].endswith(b"\x69days_left\x1b" + days.to_bytes(8, "big"))


async def test_hello_says_who_the_device_is() -> None:
    async with gate_with_site() as gate:
        answer = await get(gate, "hello")

    assert answer.opt.content_format == 50
    assert json.loads(answer.payload) == {
        "tenant": "default",
        "device": "sensor-1",
        "method": "psk",
    }


async def test_hello_speaks_cbor_if_asked() -> None:
    async with gate_with_site() as gate:
        endpoint = gate.layer.open(
            FakeAssociation(b"12345678", identity("d" * 24)), identity("d" * 24), b"12345678"
        )
        octets = message(CON, Code.GET, 1, "hello", options=((ACCEPT, b"\x3c"),))
        gate.layer.receive(endpoint, octets, NOW)
        await until(lambda: gate.sent)
        answer = gate.take_one()

    assert answer.opt.content_format == 60
    assert answer.payload == (
        b"\xa3\x66tenant\x67default\x66device\x78\x18" + b"d" * 24 + b"\x66method\x63psk"
    )


async def test_the_time_is_rfc_3339_and_not_to_be_cached() -> None:
    async with gate_with_site() as gate:
        answer = await get(gate, "time")

    assert answer.payload == b"2023-11-14T22:13:20Z"
    assert (answer.opt.content_format, answer.opt.max_age) == (0, 0)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("hello", b""),
        ("hello", b"\x28"),
        ("time", b"\x32"),
        (".well-known/core", b"\x3c"),
        ("hello", b"\xff\xff"),
    ],
)
async def test_a_format_that_a_resource_has_not_is_4_06(path: str, accept: bytes) -> None:
    async with gate_with_site() as gate:
        assert (await get(gate, path, (ACCEPT, accept))).code == Code.NOT_ACCEPTABLE


@pytest.mark.parametrize(
    ("path", "accept"), [("hello", b"\x32"), ("time", b""), (".well-known/core", b"\x28")]
)
async def test_the_format_that_a_resource_has_may_be_asked_for(path: str, accept: bytes) -> None:
    async with gate_with_site() as gate:
        assert (await get(gate, path, (ACCEPT, accept))).code == Code.CONTENT


async def test_aiocoap_learns_no_number_from_a_device() -> None:
    known = len(ContentFormat._value2member_map_)
    async with gate_with_site() as gate:
        for number in range(1000, 1100):
            octets = message(
                CON,
                Code.GET,
                number,
                "hello",
                options=(
                    (ACCEPT, number.to_bytes(2, "big")),
                    (12, number.to_bytes(2, "big")),
                    (number * 2, b"x"),
                ),
            )
            gate.layer.receive(gate.open(), octets, NOW)

    assert len(ContentFormat._value2member_map_) == known


async def test_a_query_that_is_no_text_is_4_00() -> None:
    async with gate_with_site() as gate:
        answer = await get(gate, ".well-known/core", (URI_QUERY, b"\xff"))

    assert answer.code == Code.BAD_REQUEST


async def test_a_non_is_answered_by_a_non_and_a_repetition_not_at_all() -> None:
    async with gate_with_site() as gate:
        endpoint = gate.open()
        for _ in range(2):
            gate.layer.receive(endpoint, message(NON, Code.GET, 1, "time"), NOW)
        await until(lambda: gate.sent)
        assert gate.take_one().mtype == NON
        gate.layer.receive(endpoint, message(NON, Code.GET, 1, "time"), NOW)
        assert gate.take() == []


async def test_no_response_holds_for_the_site_too() -> None:
    async with gate_with_site() as gate:
        octets = message(CON, Code.GET, 1, "time", options=((NO_RESPONSE, b"\2"),))
        gate.layer.receive(gate.open(), octets, NOW)
        await until(lambda: gate.sent)

    assert gate.take() == [empty(ACK, 1)]


class Slow(resource.Resource):  # type: ignore[misc]  # aiocoap is untyped
    """Waits for its gate, then does what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.started = 0
        self.ended = 0
        self.error: Exception | None = None

    async def render_get(self, request: Message) -> Message:
        self.started += 1
        try:
            await self.open.wait()
        finally:
            self.ended += 1
        if self.error is not None:
            raise self.error
        return Message(payload=b"done")


def slow_site() -> tuple[Slow, resource.Site]:
    slow, site = Slow(), resource.Site()
    site.add_resource(["time"], slow)
    return slow, site


async def test_a_second_request_with_the_same_token_does_not_cancel_the_first() -> None:
    slow, site = slow_site()
    async with gate_with_site(site) as gate:
        endpoint = gate.open()
        for message_id in (1, 2):
            gate.layer.receive(endpoint, message(CON, Code.GET, message_id, "time"), NOW)
        await until(lambda: slow.started == 2)
        slow.open.set()
        await until(lambda: len(gate.sent) == 2)

    assert [octets[1] for octets in gate.take()] == [Code.CONTENT] * 2


async def test_a_slow_resource_gets_an_empty_ack_and_a_separate_response() -> None:
    slow, site = slow_site()
    async with gate_with_site(site) as gate:
        gate.layer.receive(gate.open(), message(CON, Code.GET, 9, "time"), NOW - 1)
        gate.run_timers(NOW)
        assert gate.take() == [empty(ACK, 9)]
        slow.open.set()
        await until(lambda: gate.sent)
        answer = gate.take_one()

    assert (answer.mtype, answer.code, answer.payload) == (CON, Code.CONTENT, b"done")


async def test_requests_under_way_are_bounded_for_each_endpoint() -> None:
    slow, site = slow_site()
    async with gate_with_site(site) as gate:
        endpoint, other = gate.open(), gate.open("sensor-2", b"22222222")
        for message_id in range(MAX_PER_ENDPOINT + 1):
            gate.layer.receive(endpoint, message(CON, Code.GET, message_id, "time"), NOW)
        assert gate.take_one().code == Code.SERVICE_UNAVAILABLE
        gate.layer.receive(other, message(CON, Code.GET, 1, "time"), NOW)
        slow.open.set()
        await until(lambda: len(gate.sent) == MAX_PER_ENDPOINT + 1)
        gate.take()

        gate.layer.receive(endpoint, message(CON, Code.GET, 99, "time"), NOW)
        await until(lambda: gate.sent)
        assert gate.take_one().code == Code.CONTENT


async def test_any_number_of_requests_may_follow_each_other() -> None:
    async with gate_with_site() as gate:
        for message_id in range(3 * MAX_PER_ENDPOINT):
            assert (await get(gate, "time", message_id=message_id)).code == Code.CONTENT


async def test_requests_under_way_are_bounded_for_all() -> None:
    _, site = slow_site()
    async with gate_with_site(site) as gate:
        endpoints: list[Endpoint[FakeAssociation]] = [
            gate.open(f"sensor-{n}", n.to_bytes(8, "big")) for n in range(MAX_REQUESTS + 1)
        ]
        for endpoint in endpoints:
            gate.layer.receive(endpoint, message(CON, Code.GET, 1, "time"), NOW)

    assert gate.take_one().code == Code.SERVICE_UNAVAILABLE


async def test_what_is_under_way_ends_with_the_bridge() -> None:
    slow, site = slow_site()
    async with gate_with_site(site) as gate:
        gate.layer.receive(gate.open(), message(CON, Code.GET, 1, "time"), NOW)
        await until(lambda: slow.started)

    assert slow.ended == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gate.layer.receive(gate.open(), message(CON, Code.GET, 2, "time"), NOW)
    assert gate.take_one().code == Code.SERVICE_UNAVAILABLE


async def test_the_answer_to_a_closed_endpoint_goes_nowhere() -> None:
    slow, site = slow_site()
    async with gate_with_site(site) as gate:
        endpoint = gate.open()
        gate.layer.receive(endpoint, message(CON, Code.GET, 1, "time"), NOW)
        gate.layer.close(endpoint, 10.0)
        slow.open.set()
        await until(lambda: slow.ended)

    assert gate.take() == []


async def test_an_error_of_aiocoap_becomes_its_response() -> None:
    slow, site = slow_site()
    slow.error = BadRequest()
    slow.open.set()
    async with gate_with_site(site) as gate:
        assert (await get(gate, "time")).code == Code.BAD_REQUEST


@pytest.mark.expects_warnings("resource failed")
async def test_a_resource_that_fails_answers_5_00_and_takes_nobody_along() -> None:
    slow, site = slow_site()
    slow.error = RuntimeError("broken")
    slow.open.set()
    async with gate_with_site(site) as gate:
        assert (await get(gate, "time")).code == Code.INTERNAL_SERVER_ERROR
        slow.error = None
        assert (await get(gate, "time", message_id=2)).code == Code.CONTENT


async def test_a_remote_is_a_light_handle() -> None:
    remote = Remote("0102030405060708", identity())

    assert remote == Remote("0102030405060708", identity())
    assert hash(remote) == hash(Remote("0102030405060708", identity()))
    assert remote != Remote("ffffffffffffffff", identity())
    assert remote.blockwise_key == "0102030405060708"
    assert remote.hostinfo == "0102030405060708"
    assert remote.uri_base == "coaps://0102030405060708"
    assert repr(remote) == "<Remote 0102030405060708 default/sensor-1>"
    assert set(vars(remote)) == {"association", "identity"}


async def test_answers_that_nobody_asked_for_are_dropped_and_only_our_remotes_are_ours() -> None:
    answers: list[int] = []
    async with Bridge(build_site(lambda: WALL), lambda *answer: answers.append(1)) as bridge:
        stray = Message(code=Code.CONTENT)
        stray.token = b"\0" * 8
        bridge.send_message(stray, lambda: None)
        ours, theirs = Message(code=Code.GET), Message(code=Code.GET)
        ours.remote = Remote("0102030405060708", identity())

        assert await bridge.fill_or_recognize_remote(ours)
        assert not await bridge.fill_or_recognize_remote(theirs)
    assert answers == []
