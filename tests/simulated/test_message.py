"""One CoAP message, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgate.coap.options import ECHO
from coapgate.errors import MessageFormatError
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, Response, render_code, request_options

options = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=300)), max_size=6).map(
    lambda found: tuple(sorted(found, key=lambda option: option[0]))
)
messages = st.builds(
    Message,
    st.sampled_from(Kind),
    st.integers(1, 255),
    st.integers(0, 65535),
    st.binary(max_size=8),
    options,
    st.binary(max_size=64),
)


@given(messages)
def test_what_is_encoded_parses_to_itself(message: Message) -> None:
    assert Message.parse(message.encode()) == message


@given(st.binary(max_size=64))
def test_any_octets_are_parsed_or_refused(octets: bytes) -> None:
    try:
        message = Message.parse(octets)
    except MessageFormatError:
        return
    assert Message.parse(message.encode()) == message


def test_a_post_looks_as_in_the_rfc() -> None:
    options = request_options((b"temperature",), (b"unit=C",), 50)
    post = Message(Kind.CON, Code.POST, 0x1234, b"\xab", options, b"21.5")

    # Uri-Path 11, Content-Format 12, Uri-Query 15 (RFC 7252 section 3.1)
    head, path = "41 02 1234 ab", "bb" + b"temperature".hex()
    rest = "11 32" + "36" + b"unit=C".hex() + "ff" + b"21.5".hex()
    assert post.encode() == bytes.fromhex(head + path + rest)


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "40 02 12",
        "80 02 1234",  # version 2
        "49 02 1234 010203040506070809",  # a token of 9 octets
        "44 02 1234 0102",  # a token cut short
        "40 00 1234 00",  # an empty message with an octet too many
        "40 02 1234 ff",  # a marker without payload
        "40 02 1234 f1 00",  # reserved delta
        "40 02 1234 1f 00",  # reserved length
        "40 02 1234 d0",  # an extended delta cut short
        "40 02 1234 12 00",  # an option longer than the message
    ],
)
def test_what_is_no_message_is_refused(octets: str) -> None:
    with pytest.raises(MessageFormatError):
        Message.parse(bytes.fromhex(octets))


def test_a_response_is_written_as_people_do() -> None:
    assert render_code(Code.CHANGED) == "2.04"
    assert render_code(Code.TOO_MANY_REQUESTS) == "4.29"
    assert str(Response(Code.NOT_FOUND, payload=b"no path")) == "4.04 no path"
    assert str(Response(Code.CONTENT, payload=b"21.5")) == "2.05"


def test_a_response_knows_its_numbers() -> None:
    response = Response(Code.SERVICE_UNAVAILABLE, ((12, b""), (14, b"\x3c"), (60, b"\x04\x00")))

    assert (response.content_format, response.max_age, response.size1) == (0, 60, 1024)
    assert Response(Code.CHANGED).max_age is None


def test_a_response_knows_the_echo_value_that_it_asks_for() -> None:
    twice = Response(Code.UNAUTHORIZED, ((ECHO, bytes(41)), (ECHO, b"1"), (ECHO, b"2")))

    assert twice.echo == b"1"
    assert Response(Code.UNAUTHORIZED, ((ECHO, b""),)).echo is None
