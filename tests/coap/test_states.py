"""GET on the state of a path: ETag, Accept, blocks, and what may go wrong."""

from __future__ import annotations

import pytest
from aiocoap import Message

from coapgate.coap.blocks import MAX_NUMBER, Block, cut
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import Settings
from coapgate.coap.states import NoContents
from coapgate.errors import RequestRefused
from coapgate.model import Code, Content
from tests.coap.gate import ACK, CON, NON, RST, FakeAssociation, Gate, empty, identity, message

ETAG, ACCEPT, BLOCK2 = 4, 17, 23
START = 100.0
TEXT = Content.of(b"21.5", 0)
LARGE = Content.of(bytes(range(256)) * 20, 42)
"""Five blocks of 1024."""


def opened(gate: Gate, device: str = "sensor-1") -> Endpoint[FakeAssociation]:
    """A device whose records have room for a block of 1024 octets."""
    endpoint = gate.open(device)
    endpoint.association.max_plaintext = 1180
    return endpoint


def read(
    gate: Gate,
    endpoint: Endpoint[FakeAssociation],
    message_id: int,
    *options: tuple[int, bytes],
    now: float = START,
    path: str = "config",
) -> Message:
    gate.receive(endpoint, message(CON, Code.GET, message_id, path, options=options), now)
    return gate.take_one()


def block2(number: int, exponent: int = 6) -> tuple[int, bytes]:
    return BLOCK2, Block(number, False, exponent).encode()


def test_a_state_is_served_with_its_etag_and_format() -> None:
    gate = Gate()
    gate.contents.states["config/a"] = TEXT

    answer = read(gate, opened(gate), 1, path="config/a")

    assert (answer.code, answer.payload) == (Code.CONTENT, b"21.5")
    assert (answer.opt.etag, answer.opt.content_format) == (TEXT.etag, 0)
    assert (answer.opt.block2, answer.opt.observe) == (None, None)


def test_content_without_a_number_for_its_type_has_no_format() -> None:
    gate = Gate()
    gate.contents.states["config"] = Content.of(b"x", None)

    assert read(gate, opened(gate), 1).opt.content_format is None


def test_a_path_without_state_is_4_04() -> None:
    assert read(Gate(), opened(Gate()), 1).code == Code.NOT_FOUND


@pytest.mark.parametrize("path", ["%2F", "..", "a/..", "+", "a/#", "$SYS", "x" * 240])
def test_a_path_that_no_topic_may_hold_is_4_00_and_not_looked_up(path: str) -> None:
    gate = Gate()

    assert read(gate, opened(gate), 1, path=path).code == Code.BAD_REQUEST
    assert gate.contents.asked == []


def test_a_state_that_the_device_has_already_is_2_03() -> None:
    gate = Gate()
    gate.contents.states["config"] = TEXT
    endpoint = opened(gate)

    answer = read(gate, endpoint, 1, (ETAG, b"older"), (ETAG, TEXT.etag))

    assert (answer.code, answer.payload, answer.opt.etag) == (Code.VALID, b"", TEXT.etag)
    assert answer.opt.content_format is None
    assert read(gate, endpoint, 2, (ETAG, b"older")).code == Code.CONTENT


def test_a_format_that_the_state_does_not_have_is_4_06() -> None:
    gate = Gate()
    gate.contents.states["config"] = TEXT
    endpoint = opened(gate)

    assert read(gate, endpoint, 1, (ACCEPT, b"\x3c")).code == Code.NOT_ACCEPTABLE
    assert read(gate, endpoint, 2, (ACCEPT, b"")).code == Code.CONTENT


@pytest.mark.parametrize("code", [Code.FORBIDDEN, Code.SERVICE_UNAVAILABLE])
def test_what_may_not_or_cannot_be_read_is_refused_at_once(code: Code) -> None:
    gate = Gate()
    gate.contents.refusal = RequestRefused(code, "no")

    assert read(gate, opened(gate), 1).code == code
    assert len(gate.layer.states) == 0


def test_a_slow_look_up_is_answered_separately_and_once() -> None:
    gate = Gate()
    gate.contents.is_slow = True
    endpoint = opened(gate)
    gate.receive(endpoint, message(CON, Code.GET, 1, "config"), START)
    gate.run_timers(START + 1)
    assert gate.take() == [empty(ACK, 1)]
    ((ticket, _),) = gate.contents.asked

    gate.layer.respond_content(ticket, TEXT, START + 2)
    gate.layer.respond_content(ticket, TEXT, START + 2)
    gate.layer.refuse(ticket, RequestRefused(Code.SERVICE_UNAVAILABLE), START + 2)

    assert gate.take_one().payload == b"21.5"


def test_a_late_refusal_is_the_answer() -> None:
    gate = Gate()
    gate.contents.is_slow = True
    endpoint = opened(gate)
    gate.receive(endpoint, message(CON, Code.GET, 1, "config"), START)

    ticket = gate.contents.asked[0][0]
    gate.layer.refuse(ticket, RequestRefused(Code.SERVICE_UNAVAILABLE, max_age=7), START)

    answer = gate.take_one()
    assert (answer.code, answer.opt.max_age) == (Code.SERVICE_UNAVAILABLE, 7)
    assert len(gate.layer.states) == 0


def test_nobody_is_left_of_a_look_up_whose_device_has_gone() -> None:
    gate = Gate()
    gate.contents.is_slow = True
    endpoint = opened(gate)
    gate.receive(endpoint, message(CON, Code.GET, 1, "config", options=((6, b""),)), START)

    gate.layer.close(endpoint, START)
    gate.layer.respond_content(gate.contents.asked[0][0], TEXT, START)

    assert gate.take() == []
    assert (len(gate.layer.states), len(gate.layer.observations)) == (0, 0)
    assert gate.contents.observed_paths == []


# Blocks


@pytest.mark.parametrize("exponent", range(7))
def test_a_large_state_is_read_block_by_block_with_one_look_up(exponent: int) -> None:
    gate = Gate(rate=1.0, burst=2)
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    size = 16 << exponent

    body, number, more = b"", 0, True
    while more:
        answer = read(gate, endpoint, number, block2(number, exponent), now=START + number * 0.01)
        assert (answer.code, answer.opt.etag) == (Code.CONTENT, LARGE.etag)
        assert (answer.opt.block2.block_number, answer.opt.block2.size) == (number, size)
        assert answer.opt.size2 == (len(LARGE.payload) if number == 0 else None)
        body, more, number = body + answer.payload, answer.opt.block2.more, number + 1

    assert body == LARGE.payload
    assert len(gate.contents.asked) == 1


def test_whoever_does_not_ask_for_blocks_gets_the_first_of_a_large_state() -> None:
    gate = Gate()
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    endpoint.association.max_plaintext = 600

    answer = read(gate, endpoint, 1)

    assert answer.payload == LARGE.payload[:512]
    assert (answer.opt.block2.block_number, answer.opt.block2.more) == (0, True)
    assert read(gate, endpoint, 2, block2(1, 6)).payload == LARGE.payload[1024:1536]


def test_a_body_is_read_to_its_end_although_the_state_changes_and_the_next_one_is_the_new() -> None:
    gate = Gate()
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    read(gate, endpoint, 1, block2(0))
    gate.contents.states["config"] = newer = Content.of(bytes(3000), 42)

    assert read(gate, endpoint, 2, block2(1)).opt.etag == LARGE.etag
    assert read(gate, endpoint, 3, block2(0)).opt.etag == newer.etag
    assert read(gate, endpoint, 4, block2(1)).payload == bytes(1024)


def test_a_download_is_resumed_after_everything_was_forgotten() -> None:
    gate = Gate(Settings(transfer_timeout=30.0))
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    read(gate, endpoint, 1, block2(0))
    gate.run_timers(START + 31)
    assert (len(gate.layer.downloads), gate.layer.downloads.octets) == (0, 0)

    last = read(gate, endpoint, 4, block2(4), now=START + 39)
    answer = read(gate, endpoint, 2, block2(3), now=START + 40)

    assert (answer.payload, answer.opt.etag) == (LARGE.payload[3072:4096], LARGE.etag)
    assert read(gate, endpoint, 3, block2(4), now=START + 41).payload == LARGE.payload[4096:]
    assert (last.payload, last.opt.block2.more) == (LARGE.payload[4096:], False)
    assert len(gate.contents.asked) == 3


def test_a_block_after_the_end_is_4_00() -> None:
    gate = Gate()
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)

    assert read(gate, endpoint, 1, block2(5)).code == Code.BAD_REQUEST
    read(gate, endpoint, 2, block2(0))
    assert read(gate, endpoint, 3, block2(5)).code == Code.BAD_REQUEST


def test_only_blocks_in_order_are_free_of_the_devices_allowance() -> None:
    gate = Gate(rate=1.0, burst=2)
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    numbers = [0, 1, 2, 3, 1, 2, 3, 4, 4]

    answers = [read(gate, endpoint, m, block2(n)).code for m, n in enumerate(numbers)]

    # 0 and the first 1 after 3 cost one each, the repeated 4 is one too many.
    assert answers == [Code.CONTENT] * 8 + [Code.TOO_MANY_REQUESTS]


def test_large_states_have_a_bounded_memory_and_one_body_counts_once() -> None:
    gate = Gate(Settings(download_memory=12000, transfers_per_device=2))
    for device in range(20):
        gate.contents.states["config"] = LARGE
        assert read(gate, opened(gate, f"d{device}"), 1).code == Code.CONTENT
    assert (len(gate.layer.downloads), gate.layer.downloads.octets) == (20, 5120)

    gate.contents.states["config"] = Content.of(bytes(6000), 42)
    assert read(gate, opened(gate, "e1"), 1).code == Code.CONTENT
    gate.contents.states["config"] = Content.of(bytes(6000), 42)
    refused = read(gate, opened(gate, "e2"), 1)
    assert (refused.code, refused.opt.max_age) == (Code.SERVICE_UNAVAILABLE, 30)

    assert read(gate, opened(gate, "e3"), 1, now=START + 11).code == Code.CONTENT  # the idle yield
    assert gate.layer.downloads.octets <= 12000


def test_a_state_that_is_read_to_its_end_takes_no_memory_any_more() -> None:
    gate = Gate()
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    for number in range(5):
        assert len(gate.layer.downloads) == (number > 0)
        read(gate, endpoint, number, block2(number))

    assert (len(gate.layer.downloads), gate.layer.downloads.octets) == (0, 0)
    assert read(gate, endpoint, 9, block2(4)).payload == LARGE.payload[4096:]


def test_a_device_that_begins_many_downloads_gives_up_its_own_oldest() -> None:
    gate = Gate(Settings(transfers_per_device=2))
    endpoint = opened(gate)
    for number, path in enumerate(("a", "b", "c")):
        gate.contents.states[path] = Content.of(bytes(5000), number)
        read(gate, endpoint, number, path=path)

    assert (len(gate.layer.downloads), gate.layer.downloads.octets) == (2, 10000)


def test_downloads_end_each_in_its_time() -> None:
    gate = Gate(Settings(transfer_timeout=30.0))
    gate.contents.states["config"] = LARGE
    read(gate, opened(gate, "d1"), 1)
    read(gate, opened(gate, "d2"), 1, now=START + 10)

    gate.run_timers(START + 35)
    assert (len(gate.layer.downloads), gate.layer.downloads.octets) == (1, 5120)
    gate.run_timers(START + 41)
    assert (len(gate.layer.downloads), gate.layer.downloads.octets) == (0, 0)


def test_a_block_whose_number_no_option_can_hold_is_4_00() -> None:
    body = bytes((MAX_NUMBER + 2) * 16)

    with pytest.raises(RequestRefused) as refused:
        cut(body, Block(MAX_NUMBER, False, 6)._replace(number=(MAX_NUMBER + 1) // 64), 16)
    assert refused.value.code == Code.BAD_REQUEST
    assert cut(body, Block(MAX_NUMBER, False, 0), 16).block == (MAX_NUMBER, True, 0)


def test_without_contents_every_path_is_4_04() -> None:
    for act in (NoContents().find, NoContents().check_observable):
        with pytest.raises(RequestRefused) as refused:
            act(identity(), "a", *((1, START) if act.__name__ == "find" else ()))
        assert refused.value.code == Code.NOT_FOUND


def test_long_content_is_read_again_for_a_repetition_and_not_kept() -> None:
    gate = Gate()
    gate.contents.states["config"] = LARGE
    endpoint = opened(gate)
    first = read(gate, endpoint, 1)
    assert endpoint.exchanges == {}

    assert read(gate, endpoint, 1).payload == first.payload


def test_the_sites_answers_go_in_blocks_too() -> None:
    gate = Gate()
    endpoint = opened(gate)
    body = b"<" + b"x" * 1500 + b">"
    parts = []
    for number in range(2):
        options = (block2(number),) if number else ()
        gate.receive(endpoint, message(CON, Code.GET, number, "time", options=options), START)
        gate.layer.respond(gate.silent_site.asked[-1][0], Code.CONTENT, b"\xc1\x28", body, START)
        parts.append(gate.take_one())

    assert b"".join(part.payload for part in parts) == body
    assert [part.opt.block2.more for part in parts] == [True, False]
    assert {part.opt.content_format for part in parts} == {40}
    assert len({part.opt.etag for part in parts}) == 1


def test_a_block_that_the_sites_answer_does_not_have_is_4_00() -> None:
    gate = Gate()
    endpoint = opened(gate)
    gate.receive(endpoint, message(CON, Code.GET, 1, "time", options=(block2(1),)), START)

    gate.answer_content(START)

    assert gate.take_one().code == Code.BAD_REQUEST
    assert gate.layer._exchanges.additions == {}


def test_the_time_is_told_to_whoever_asks() -> None:
    gate = Gate()
    endpoint = opened(gate)
    asking = ((65000, b""),)
    gate.contents.states["config"] = TEXT

    state = read(gate, endpoint, 1, *asking)
    gate.receive(endpoint, message(CON, Code.POST, 2, "t", options=asking, payload=b"x"), START)
    gate.conclude(START)
    uplink = gate.take_one()

    for answer in (state, uplink):
        (option,) = answer.opt.get_option(65000)
        assert int.from_bytes(option.value, "big") == 1_700_000_000_250
    assert (state.code, uplink.code) == (Code.CONTENT, Code.CHANGED)
    assert gate.layer._exchanges.additions == {}


@pytest.mark.parametrize("kind", [CON, NON])
def test_a_rst_that_names_nothing_is_ignored(kind: int) -> None:
    gate = Gate()
    endpoint = opened(gate)
    gate.contents.states["config"] = TEXT
    gate.receive(endpoint, message(kind, Code.GET, 1, "config"), START)
    gate.take()

    gate.receive(endpoint, empty(RST, 0x1234), START)

    assert (gate.take(), gate.layer.counts.ignored) == ([], 1)
