"""CoAP, for all inputs."""

from __future__ import annotations

from contextlib import suppress

from aiocoap.options import Options
from hypothesis import example, given
from hypothesis import strategies as st

from coapgate.coap.blocks import Block
from coapgate.coap.messages import Settings
from coapgate.coap.options import encode_options, encode_uint, parse_request
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code
from tests.coap.gate import CON, Gate, message
from tests.fuzz.fuzz_coap import test_one_input as run

options_in_order = st.lists(
    st.tuples(st.integers(0, 65535), st.binary(max_size=300)), max_size=20
).map(lambda options: sorted(options, key=lambda option: option[0]))

text_options = st.lists(
    st.tuples(st.sampled_from([11, 15]), st.text(max_size=20).map(str.encode)), max_size=20
).map(lambda options: sorted(options, key=lambda option: option[0]))


@given(st.binary(max_size=1500))
@example(bytes.fromhex("00 06 40020001ff") * 3)
def test_whatever_arrives_nothing_is_raised_and_nothing_grows(data: bytes) -> None:
    run(data)


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=40)), max_size=40))
def test_nor_when_headers_are_right(messages: list[tuple[int, bytes]]) -> None:
    data = b""
    for number, (kind, rest) in enumerate(messages):
        octets = bytes((0x40 | kind << 4, 2, 0, number % 8)) + rest
        data += b"\0" + bytes((len(octets),)) + octets + bytes((0xC0 + number % 64,))
    run(data)


asking = st.tuples(
    st.sampled_from([0x40, 0x50, 0x60, 0x70]),
    st.sampled_from([0, 1, 1, 1, 2, 3, 0x44, 0x45, 0x5F, 0x84]),
    st.integers(0, 9),
    st.sampled_from([b"", b"t", b"u"]),
    st.lists(
        st.sampled_from(
            [
                *((11, path) for path in (b"a", b"b", b"c", b"time")),
                *((6, order) for order in (b"", b"\1")),
                *((number, bytes((value,))) for number in (23, 27) for value in range(0, 80, 3)),
                *((12, value) for value in (b"", b"\x2a")),
                *((17, value) for value in (b"", b"\x2a")),
                (4, b"12345678"),
                (60, b"\xff"),
                (65000, b""),
            ]
        ),
        max_size=5,
    ),
    st.sampled_from([0, 1, 16, 32, 64]),
)


@given(st.lists(asking | st.integers(0xC0, 0xFF), max_size=60))
def test_nor_when_it_observes_sends_in_blocks_and_is_asked(
    steps: list[int | tuple[int, int, int, bytes, list[tuple[int, bytes]], int]],
) -> None:
    data = b""
    for step in steps:
        if isinstance(step, int):
            data += bytes((step,))
            continue
        head, code, number, token, options, length = step
        octets = bytes((head | len(token), code, 0, number)) + token
        octets += encode_options(sorted(options, key=lambda option: option[0]))
        octets += b"\xff" + bytes(length) if length else b""
        data += bytes((number & 1, len(octets))) + octets
    run(data)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 2)), max_size=40),
    st.integers(1, 300),
)
def test_a_body_in_blocks_is_published_whole_or_not_at_all(
    blocks: list[tuple[int, bool, int]], length: int
) -> None:
    body = bytes(number % 251 for number in range(length))
    gate = Gate(Settings(max_body=250))
    endpoint = gate.open()
    for message_id, (number, more, exponent) in enumerate(blocks):
        size = 16 << exponent
        part = body[number * size : (number + 1) * size]
        block = (27, Block(number, more, exponent).encode())
        octets = message(CON, Code.POST, message_id, "a", options=(block,), payload=part)
        gate.receive(endpoint, octets, 100.0)

    for publication in gate.publisher.published:
        assert publication.payload == body[: len(publication.payload)]
    assert gate.layer.assembly.octets <= 500


@given(options_in_order)
def test_options_are_read_as_aiocoap_reads_them(options: list[tuple[int, bytes]]) -> None:
    octets = encode_options(options)
    theirs = Options()
    try:
        assert theirs.decode(octets + b"\xffpayload") == b"payload"
    except UnicodeDecodeError:
        return
    assert sum(len(values) for values in theirs._options.values()) == len(options)


@given(text_options, st.none() | st.integers(0, 65535), st.binary(min_size=1))
def test_a_request_is_read_as_it_was_written(
    texts: list[tuple[int, bytes]], content_format: int | None, payload: bytes
) -> None:
    options = list(texts)
    if content_format is not None:
        options.append((12, encode_uint(content_format)))
    options.sort(key=lambda option: option[0])

    octets = encode_options(options) + b"\xff" + payload
    request = parse_request(octets, 0, Code.POST, 1, b"", True)

    assert request.path == tuple(value for number, value in texts if number == 11)
    assert request.query == tuple(value for number, value in texts if number == 15)
    assert request.content_format == content_format
    assert request.payload == payload


@given(st.binary(max_size=300))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    with suppress(MessageFormatError, RequestRefused):
        parse_request(octets, 0, Code.POST, 1, b"", True)
