"""Requests to devices: each has one end."""

from __future__ import annotations

import pytest
from aiocoap import Message

from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import Settings
from coapgate.coap.requests import Failure
from coapgate.model import Code, Content, DeviceId, Tenant
from tests.coap.gate import ACK, CON, NON, RST, FakeAssociation, Gate, empty, message, uplink

START = 100.0
CONTENT_FORMAT, BLOCK2, BLOCK1, ETAG = 12, 23, 27, 4
LARGE = bytes(range(256)) * 20


class Asked:
    """A gate and a device that is asked."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.gate = Gate(settings)
        self.endpoint = self.open()
        self.tickets = 0

    def open(self) -> Endpoint[FakeAssociation]:
        endpoint = self.gate.open()
        endpoint.association.max_plaintext = 1180
        return endpoint

    def ask(
        self,
        payload: bytes = b"on",
        code: int = Code.PUT,
        path: str = "led/1",
        query: str = "",
        content_format: int | None = None,
        now: float = START,
    ) -> list[Message]:
        self.tickets += 1
        self.gate.layer.request(
            self.endpoint, code, path, query, content_format, payload, self.tickets, now
        )
        return self.taken()

    def taken(self) -> list[Message]:
        return [Message.decode(octets) for octets in self.gate.take()]

    def hear(self, octets: bytes, now: float = START) -> list[Message]:
        self.gate.receive(self.endpoint, octets, now)
        return self.taken()

    def answer(
        self,
        request: Message,
        code: int = Code.CHANGED,
        payload: bytes = b"",
        *options: tuple[int, bytes],
        kind: int = ACK,
        message_id: int | None = None,
        token: bytes | None = None,
    ) -> list[Message]:
        return self.hear(
            message(
                kind,
                code,
                request.mid if message_id is None else message_id,
                token=request.token if token is None else token,
                options=options,
                payload=payload,
            )
        )

    @property
    def answers(self) -> list[tuple[int, int, int | None, bytes]]:
        return self.gate.downlinks.answers

    @property
    def failures(self) -> list[tuple[int, Failure]]:
        return self.gate.downlinks.failures

    @property
    def count(self) -> int:
        return len(self.gate.layer.device_requests)


def test_a_request_is_a_con_with_everything_that_was_asked() -> None:
    asked = Asked()

    (request,) = asked.ask(b"on", Code.PUT, "led/1", "a=1&b", 50)

    assert (request.mtype, request.code, request.payload) == (CON, Code.PUT, b"on")
    assert (request.opt.uri_path, request.opt.uri_query) == (("led", "1"), ("a=1", "b"))
    assert request.opt.content_format == 50
    assert len(request.token) == 4


def test_a_piggybacked_response_is_the_answer() -> None:
    asked = Asked()
    (request,) = asked.ask()

    assert asked.answer(request, Code.CONTENT, b"{}", (CONTENT_FORMAT, b"\x32")) == []

    assert (asked.answers, asked.failures) == ([(1, Code.CONTENT, 50, b"{}")], [])
    assert asked.count == 0
    asked.gate.run_timers(START + 1000)
    assert asked.taken() == []


@pytest.mark.parametrize("kind", [CON, NON])
@pytest.mark.parametrize("is_acknowledged", [True, False])
def test_a_separate_response_is_the_answer_whether_or_not_the_ack_arrived(
    kind: int, is_acknowledged: bool
) -> None:
    asked = Asked()
    (request,) = asked.ask()
    if is_acknowledged:
        asked.hear(empty(ACK, request.mid))
        asked.gate.run_timers(START + 50)
        assert asked.taken() == []

    sent = asked.answer(request, payload=b"x", kind=kind, message_id=77)

    assert [(m.mtype, m.code, m.mid) for m in sent] == [(ACK, 0, 77)] * (kind == CON)
    assert asked.answers == [(1, Code.CHANGED, None, b"x")]
    asked.gate.run_timers(START + 1000)
    assert (asked.taken(), asked.failures) == ([], [])


def test_a_repeated_separate_response_is_acknowledged_again_and_answers_once() -> None:
    asked = Asked()
    (request,) = asked.ask()
    for _ in range(3):
        (ack,) = asked.answer(request, kind=CON, message_id=77)
        assert (ack.mtype, ack.mid) == (ACK, 77)

    assert len(asked.answers) == 1


def test_a_device_that_never_acknowledges_is_a_timeout() -> None:
    asked = Asked()
    (request,) = asked.ask()

    asked.gate.run_timers(START + 100)

    assert [(m.mid, m.token) for m in asked.taken()] == [(request.mid, request.token)] * 4
    assert asked.failures == [(1, Failure.TIMEOUT)]
    assert asked.answer(request, kind=CON, message_id=77)[0].mtype == RST  # too late
    assert asked.answers == []


def test_a_device_that_acknowledges_and_says_nothing_is_silent() -> None:
    asked = Asked(Settings(response_timeout=20.0))
    (request,) = asked.ask()
    asked.hear(empty(ACK, request.mid), START + 1)

    asked.gate.run_timers(START + 20.9)
    assert asked.failures == []
    asked.gate.run_timers(START + 21)

    assert asked.failures == [(1, Failure.SILENT)]
    assert asked.count == 0


def test_a_rst_is_a_reset() -> None:
    asked = Asked()
    (request,) = asked.ask()

    asked.hear(empty(RST, request.mid))

    assert (asked.failures, asked.count) == ([(1, Failure.RESET)], 0)


def test_the_end_of_the_association_ends_its_requests() -> None:
    asked = Asked(Settings(requests_per_device=2))
    (request,) = asked.ask()
    asked.hear(empty(ACK, request.mid))
    asked.ask()

    asked.gate.layer.close(asked.endpoint, START)

    assert sorted(asked.failures) == [(1, Failure.CLOSED), (2, Failure.CLOSED)]
    asked.gate.run_timers(START + 1000)
    assert len(asked.failures) == 2


def test_a_device_is_asked_one_thing_at_a_time() -> None:
    asked = Asked()
    (request,) = asked.ask()

    assert asked.ask() == []

    assert asked.failures == [(2, Failure.BUSY)]
    asked.answer(request)
    assert len(asked.ask()) == 1


def test_the_next_request_may_be_sent_from_the_end_of_the_last() -> None:
    asked = Asked()
    asked.gate.downlinks.on_answer = lambda: asked.gate.layer.request(
        asked.endpoint, Code.GET, "b", "", None, b"", 2, START
    )
    (request,) = asked.ask()

    (following,) = asked.answer(request)

    assert (following.code, following.opt.uri_path) == (Code.GET, ("b",))


def test_a_piggybacked_response_with_another_token_is_unacceptable() -> None:
    asked = Asked()
    (request,) = asked.ask()

    asked.answer(request, token=b"other")

    assert (asked.answers, asked.failures) == ([], [(1, Failure.UNACCEPTABLE)])
    asked.gate.run_timers(START + 1000)
    assert asked.taken() == []


@pytest.mark.parametrize("kind", [CON, NON, ACK])
def test_a_response_that_nobody_asked_for_changes_nothing(kind: int) -> None:
    asked = Asked()
    (request,) = asked.ask()

    sent = asked.answer(request, kind=kind, message_id=77, token=b"other")

    assert [m.mtype for m in sent] == [RST] * (kind == CON)
    assert (asked.answers, asked.failures, asked.count) == ([], [], 1)


@pytest.mark.parametrize("length", [3, 200, 1000])
def test_an_elective_option_of_a_wrong_length_is_ignored(length: int) -> None:
    asked = Asked()
    (request,) = asked.ask()

    asked.answer(
        request, Code.CONTENT, b"x", (ETAG, b"e" * length * 3), (CONTENT_FORMAT, b"\xff" * length)
    )

    assert asked.answers == [(1, Code.CONTENT, None, b"x")]


@pytest.mark.parametrize("code", [1, 2, 0x1F, 0x20, 0x60, 0xE0, 0xFF])
def test_an_ack_with_what_is_no_response_is_unacceptable(code: int) -> None:
    asked = Asked()
    (request,) = asked.ask()

    asked.answer(request, code, b"x")

    assert (asked.answers, asked.failures) == ([], [(1, Failure.UNACCEPTABLE)])


def test_a_query_is_read_as_it_would_stand_in_a_uri() -> None:
    (request,) = Asked().ask(query="a=1%262&b=100%25&c")

    assert request.opt.uri_query == ("a=1&2", "b=100%", "c")


@pytest.mark.parametrize("long", [{"query": "q" * 256}, {"path": "p" * 256}])
def test_what_no_option_can_hold_is_too_large(long: dict[str, str]) -> None:
    asked = Asked()

    assert asked.ask(**long) == []  # type: ignore[arg-type]

    assert (asked.failures, asked.count) == ([(1, Failure.TOO_LARGE)], 0)


@pytest.mark.parametrize("kind", [CON, NON, ACK])
@pytest.mark.parametrize(
    "options",
    [
        ((9, b"x"),),
        ((0xFFF1, b""),),
        ((BLOCK2, b"\x07"),),
        ((BLOCK2, b"\1\0\0\6"),),
        ((BLOCK2, b"\6"), (BLOCK2, b"\6")),
    ],
)
def test_a_response_that_we_must_not_accept_is_unacceptable(
    kind: int, options: tuple[tuple[int, bytes], ...]
) -> None:
    asked = Asked()
    (request,) = asked.ask()
    message_id = request.mid if kind == ACK else 77

    sent = asked.answer(request, Code.CONTENT, b"x", *options, kind=kind, message_id=message_id)

    assert [m.mtype for m in sent] == [RST] * (kind == CON)
    assert (asked.answers, asked.failures) == ([], [(1, Failure.UNACCEPTABLE)])


@pytest.mark.parametrize("garbage", [b"\xd0", b"\xf0", b"\x0f", b"\xe0\xff", b"\xff"])
def test_a_response_that_is_no_message_is_unacceptable_or_empty(garbage: bytes) -> None:
    asked = Asked()
    (request,) = asked.ask()
    head = bytes((0x40 | ACK << 4 | len(request.token), Code.CONTENT))
    octets = head + request.mid.to_bytes(2, "big") + request.token + garbage

    asked.hear(octets)

    assert len(asked.answers) + len(asked.failures) == 1
    assert asked.count == 0


@pytest.mark.parametrize("length", range(4, 16))
def test_a_token_longer_than_the_message_or_than_allowed_is_ignored(length: int) -> None:
    asked = Asked()
    (request,) = asked.ask()
    octets = bytes((0x40 | ACK << 4 | length, Code.CONTENT)) + request.mid.to_bytes(2, "big")

    asked.hear(octets)

    assert (asked.answers, asked.failures, asked.count) == ([], [], 1)


def test_an_error_of_the_device_is_an_answer() -> None:
    asked = Asked()
    (request,) = asked.ask()

    asked.answer(request, Code.NOT_FOUND, b"no led")

    assert asked.answers == [(1, Code.NOT_FOUND, None, b"no led")]


# Blocks


def test_a_large_body_goes_block_by_block() -> None:
    asked = Asked()
    (request,) = asked.ask(LARGE)
    body = b""
    assert request.opt.size1 == len(LARGE)
    while True:
        body += request.payload
        block = request.opt.block1
        if not block.more:
            break
        sent = (BLOCK1, Block(*block).encode())
        (request,) = asked.answer(request, Code.CONTINUE, b"", sent)
        assert asked.answers == []
    asked.answer(request, Code.CHANGED, b"", (BLOCK1, Block(*block).encode()))

    assert body == LARGE
    assert asked.answers == [(1, Code.CHANGED, None, b"")]


@pytest.mark.parametrize("code", [Code.CONTINUE, Code.REQUEST_ENTITY_TOO_LARGE])
def test_a_device_may_ask_for_smaller_blocks(code: int) -> None:
    asked = Asked()
    (request,) = asked.ask(LARGE)
    more = code == Code.CONTINUE

    (request,) = asked.answer(request, code, b"", (BLOCK1, Block(0, more, 2).encode()))

    assert request.opt.block1 == ((16, True, 2) if more else (0, True, 2))
    assert request.payload == (LARGE[1024:1088] if more else LARGE[:64])


def test_a_device_that_takes_no_such_body_has_answered() -> None:
    asked = Asked()
    (request,) = asked.ask(LARGE)

    asked.answer(request, Code.REQUEST_ENTITY_TOO_LARGE)

    assert asked.answers == [(1, Code.REQUEST_ENTITY_TOO_LARGE, None, b"")]


def test_a_body_above_the_limit_is_not_sent() -> None:
    asked = Asked(Settings(max_body=5000))

    assert asked.ask(LARGE) == []

    assert (asked.failures, asked.count) == ([(1, Failure.TOO_LARGE)], 0)


def test_a_path_that_leaves_no_room_for_a_body_is_too_large() -> None:
    asked = Asked()
    asked.endpoint.association.max_plaintext = 100

    assert asked.ask(path="/".join("x" * 20 for _ in range(4))) == []

    assert (asked.failures, asked.count) == ([(1, Failure.TOO_LARGE)], 0)


def test_silent_devices_are_given_up_each_in_its_time() -> None:
    asked = Asked(Settings(response_timeout=20.0, requests_per_device=2))
    for now in (START, START + 5):
        (request,) = asked.ask(now=now)
        asked.hear(empty(ACK, request.mid), now)

    asked.gate.run_timers(START + 22)
    assert asked.failures == [(1, Failure.SILENT)]
    asked.gate.run_timers(START + 30)
    assert asked.failures == [(1, Failure.SILENT), (2, Failure.SILENT)]


def test_an_ack_with_a_response_to_what_was_no_request_is_ignored() -> None:
    asked = Asked()
    (request,) = asked.ask()
    asked.answer(request)
    asked.gate.contents.states["led"] = Content.of(b"1", 0)
    asked.hear(message(CON, Code.GET, 1, "led", options=((6, b""),)))
    asked.gate.layer.notify(Tenant("default"), DeviceId("sensor-1"), "led", None, START)
    (farewell,) = asked.taken()

    assert asked.answer(farewell, Code.CONTENT) == []

    assert asked.gate.layer.counts.ignored == 1


def test_a_continue_after_the_last_block_is_unacceptable() -> None:
    asked = Asked()
    (request,) = asked.ask(LARGE[:1500])
    (request,) = asked.answer(request, Code.CONTINUE, b"", (BLOCK1, Block(0, True, 6).encode()))

    asked.answer(request, Code.CONTINUE, b"", (BLOCK1, Block(1, False, 6).encode()))

    assert (asked.failures, asked.count) == ([(1, Failure.UNACCEPTABLE)], 0)


def block2(number: int, more: bool, exponent: int = 6) -> tuple[int, bytes]:
    return BLOCK2, Block(number, more, exponent).encode()


def test_a_large_response_is_fetched_block_by_block() -> None:
    asked = Asked()
    (request,) = asked.ask(b"", Code.GET, "log")
    for number in range(4):
        part = LARGE[number * 1024 :][:1024]
        (request,) = asked.answer(
            request,
            Code.CONTENT,
            part,
            (ETAG, b"v1"),
            (CONTENT_FORMAT, b"\x2a"),
            block2(number, True),
        )
        assert (request.code, request.opt.uri_path) == (Code.GET, ("log",))
        assert request.opt.block2 == (number + 1, False, 6)
    asked.answer(
        request,
        Code.CONTENT,
        LARGE[4096:],
        (ETAG, b"v1"),
        (CONTENT_FORMAT, b"\x2a"),
        block2(4, False),
    )

    assert asked.answers == [(1, Code.CONTENT, 42, LARGE)]
    assert asked.count == 0


@pytest.mark.parametrize(
    "second",
    [
        (1024, (ETAG, b"v2"), block2(1, True)),
        (1024, (ETAG, b"v1"), block2(2, True)),
        (1023, (ETAG, b"v1"), block2(1, True)),
        (10, (ETAG, b"v1")),
    ],
)
def test_blocks_that_do_not_fit_together_are_unacceptable(
    second: tuple[int, *tuple[tuple[int, bytes], ...]],
) -> None:
    asked = Asked()
    (request,) = asked.ask(b"", Code.GET)
    (request,) = asked.answer(request, Code.CONTENT, bytes(1024), (ETAG, b"v1"), block2(0, True))

    length, *options = second
    asked.answer(request, Code.CONTENT, bytes(length), *options)

    assert (asked.answers, asked.failures) == ([], [(1, Failure.UNACCEPTABLE)])
    assert asked.count == 0


def test_a_response_above_the_limit_is_too_large() -> None:
    asked = Asked(Settings(max_body=1500))
    (request,) = asked.ask(b"", Code.GET)
    (request,) = asked.answer(request, Code.CONTENT, bytes(1024), block2(0, True))

    asked.answer(request, Code.CONTENT, bytes(1024), block2(1, True))

    assert (asked.failures, asked.count) == ([(1, Failure.TOO_LARGE)], 0)


# When a device speaks


def test_a_device_that_is_awaited_has_spoken_once_it_is_answered() -> None:
    asked = Asked()
    asked.endpoint.is_awaited = True
    order: list[str] = []
    asked.gate.on_transmit = lambda association, octets: order.append("sent")
    asked.gate.downlinks.on_spoke = lambda: order.append("spoke")

    asked.gate.receive(asked.endpoint, uplink(), START)
    assert order == []
    asked.gate.conclude(START + 0.1)

    assert order == ["sent", "spoke"]
    assert asked.gate.downlinks.speakers == [("sensor-1", START + 0.1)]


@pytest.mark.parametrize(
    "octets",
    [
        empty(CON, 9),
        message(CON, Code.GET, 9, "led"),
        message(NON, Code.POST, 9, "a", options=((258, b"\x1a"),)),
        message(CON, Code.DELETE, 9, "a", options=((258, b"\x1a"),)),
    ],
)
def test_whatever_a_device_that_is_awaited_says_it_has_spoken(octets: bytes) -> None:
    asked = Asked()
    asked.endpoint.is_awaited = True

    asked.hear(octets)

    assert asked.gate.downlinks.speakers == [("sensor-1", START)]


def test_a_device_that_is_not_awaited_may_say_what_it_likes() -> None:
    asked = Asked()

    asked.hear(uplink())
    asked.gate.conclude(START)
    asked.hear(empty(CON, 9))

    assert asked.gate.downlinks.speakers == []


def test_what_was_held_goes_right_after_the_response_to_the_uplink() -> None:
    asked = Asked()
    asked.endpoint.is_awaited = True
    asked.gate.downlinks.on_spoke = lambda: asked.gate.layer.request(
        asked.endpoint, Code.PUT, "led", "", None, b"on", 1, START
    )
    asked.hear(uplink())

    asked.gate.conclude(START)

    assert [(m.mtype, m.code) for m in asked.taken()] == [(ACK, Code.CHANGED), (CON, Code.PUT)]


def test_a_request_follows_the_device_to_its_new_address_and_proves_it() -> None:
    asked = Asked()
    asked.endpoint.association.move()
    (request,) = asked.ask()

    asked.answer(request)

    assert asked.endpoint.association.unproven is None
    assert asked.answers == [(1, Code.CHANGED, None, b"")]
