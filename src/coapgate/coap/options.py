"""Which options a request may carry: known, once, of the right length, or not critical.

An option that is unknown, repeated without leave, or of a wrong length is ignored if it is
elective and refuses the request if it is critical (RFC 7252 sections 5.4.1, 5.4.3, 5.4.5).
If-Match and If-None-Match count as unknown: an uplink has no state that a condition could
speak about, so ignoring them would break their promise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from coapgate.coap.blocks import BLOCK_OPTION_LENGTH, Block, parse_block
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code

ETAG = 4
OBSERVE = 6
URI_PATH = 11
CONTENT_FORMAT = 12
MAX_AGE = 14
URI_QUERY = 15
ACCEPT = 17
BLOCK2 = 23
BLOCK1 = 27
SIZE2 = 28
PROXY_URI = 35
PROXY_SCHEME = 39
SIZE1 = 60
ECHO = 252
NO_RESPONSE = 258
REQUEST_TAG = 292
TIME = 65000
"""Of no RFC: Californium's, in milliseconds since 1970; a request that has it is told the time."""

PAYLOAD_MARKER = 0xFF
MAX_OPTIONS = 128
"""Options of one request; more are refused before they cost anything."""
SUPPRESS_SUCCESS = 0x02
"""No-Response: not interested in 2.xx (RFC 7967 section 2.1)."""

_KNOWN: dict[int, tuple[int, int, bool]] = {
    3: (1, 255, False),  # Uri-Host: ignored, there is one host here
    ETAG: (1, 8, True),
    OBSERVE: (0, 3, False),  # RFC 7641
    7: (0, 2, False),  # Uri-Port: ignored
    URI_PATH: (0, 255, True),
    CONTENT_FORMAT: (0, 2, False),
    MAX_AGE: (0, 4, False),
    URI_QUERY: (0, 255, True),
    16: (1, 1, False),  # Hop-Limit (RFC 8768)
    ACCEPT: (0, 2, False),
    BLOCK2: (0, BLOCK_OPTION_LENGTH, False),  # RFC 7959
    BLOCK1: (0, BLOCK_OPTION_LENGTH, False),
    SIZE2: (0, 4, False),
    PROXY_URI: (1, 1034, False),
    PROXY_SCHEME: (1, 255, False),
    SIZE1: (0, 4, False),
    ECHO: (1, 40, False),  # RFC 9175
    NO_RESPONSE: (0, 1, False),
    REQUEST_TAG: (0, 8, True),  # RFC 9175
    TIME: (0, 8, False),
}
"""Number -> shortest, longest value in octets, may be repeated (RFC 7252 table 4)."""

_PROXY = frozenset((PROXY_URI, PROXY_SCHEME))
_EXTENSIONS = frozenset((ETAG, OBSERVE, BLOCK2, BLOCK1, SIZE1, REQUEST_TAG, TIME))
_UNTIL_TOO_MANY = range(MAX_OPTIONS + 1)


class Extensions(NamedTuple):
    """What few requests have: options of a state's version, of observations and of blocks."""

    etags: tuple[bytes, ...] = ()
    observe: int | None = None
    block1: Block | None = None
    block2: Block | None = None
    size1: int | None = None
    tags: tuple[bytes, ...] = ()
    """Request-Tags: bodies of one path that are sent at one time differ in them (RFC 9175)."""
    time: int | None = None


class Request(NamedTuple):
    """What a device asks; `method` is a code octet, numbers are absent as None.

    `no_response` is the bitmap of RFC 7967, 0 when absent; `echo` is empty when absent.
    `extensions` is None for all but a few requests.
    """

    method: int
    message_id: int
    token: bytes
    confirmable: bool
    path: tuple[bytes, ...]
    query: tuple[bytes, ...]
    content_format: int | None
    accept: int | None
    no_response: int
    payload: bytes
    echo: bytes = b""
    extensions: Extensions | None = None


def parse_request(
    octets: bytes, position: int, method: int, message_id: int, token: bytes, confirmable: bool
) -> Request:
    """Read the options and the payload of a request; `position` is the first after the token.

    Raises MessageFormatError for what is no CoAP message (RFC 7252 section 3.1), else
    RequestRefused for an option that cannot be honoured: 4.02, 4.00 for a block size that is
    reserved, or 5.05 for a proxy's.
    """
    path: list[bytes] = []
    query: list[bytes] = []
    content_format: int | None = None
    accept: int | None = None
    no_response = 0
    payload = b""
    echo = b""
    others: list[tuple[int, bytes]] | None = None
    refusal: tuple[Code, str] | None = None
    number = 0
    end = len(octets)
    for _ in _UNTIL_TOO_MANY:
        if position >= end:
            break
        head = octets[position]
        position += 1
        if head == PAYLOAD_MARKER:
            if position == end:
                raise MessageFormatError("payload marker without payload")
            payload = octets[position:]
            break
        delta = head >> 4
        length = head & 0x0F
        if delta > 12:
            delta, position = _parse_extended(octets, position, delta)
        if length > 12:
            length, position = _parse_extended(octets, position, length)
        number += delta
        start = position
        position += length
        if position > end:
            raise MessageFormatError("option longer than the message")
        if number == URI_PATH and length < 256:
            path.append(octets[start:position])
            continue
        known = _KNOWN.get(number)
        if known is None or not known[0] <= length <= known[1] or (not delta and not known[2]):
            if number > 0xFFFF:
                raise MessageFormatError("option number above 65535")
            if number & 1 and refusal is None:
                refusal = Code.BAD_OPTION, f"option {number}"
        elif number == CONTENT_FORMAT:
            content_format = int.from_bytes(octets[start:position], "big")
        elif number == URI_QUERY:
            query.append(octets[start:position])
        elif number == NO_RESPONSE:
            no_response = int.from_bytes(octets[start:position], "big")
        elif number == ACCEPT:
            accept = int.from_bytes(octets[start:position], "big")
        elif number == ECHO:
            echo = octets[start:position]
        elif number in _EXTENSIONS:
            if others is None:
                others = []
            others.append((number, octets[start:position]))
        elif number in _PROXY and refusal is None:
            refusal = Code.PROXYING_NOT_SUPPORTED, "not a proxy"
    else:
        raise RequestRefused(Code.BAD_OPTION, "too many options")
    if refusal is not None:
        raise RequestRefused(*refusal)
    return Request(
        method,
        message_id,
        token,
        confirmable,
        tuple(path),
        tuple(query),
        content_format,
        accept,
        no_response,
        payload,
        echo,
        None if others is None else _extensions(others),
    )


def _extensions(options: list[tuple[int, bytes]]) -> Extensions:
    """Raises RequestRefused (4.00) for a block size that is reserved."""
    etags: list[bytes] = []
    tags: list[bytes] = []
    numbers: dict[int, int] = {}
    for number, value in options:
        if number == ETAG:
            etags.append(value)
        elif number == REQUEST_TAG:
            tags.append(value)
        else:
            numbers[number] = int.from_bytes(value, "big")
    return Extensions(
        tuple(etags),
        numbers.get(OBSERVE),
        parse_block(numbers.get(BLOCK1)),
        parse_block(numbers.get(BLOCK2)),
        numbers.get(SIZE1),
        tuple(tags),
        numbers.get(TIME),
    )


def _parse_extended(octets: bytes, position: int, nibble: int) -> tuple[int, int]:
    """An option's delta or length above 12 (RFC 7252 section 3.1), and the position after it."""
    if nibble == 13:
        after, base = position + 1, 13
    elif nibble == 14:
        after, base = position + 2, 269
    else:
        raise MessageFormatError("reserved option delta or length")
    if after > len(octets):
        raise MessageFormatError("option cut short")
    return int.from_bytes(octets[position:after], "big") + base, after


def split_options(octets: bytes, start: int) -> tuple[bytes, bytes]:
    """Options, still encoded, and payload of a message of ours; options begin at `start`."""
    position = start
    while position < len(octets) and octets[position] != PAYLOAD_MARKER:
        delta, length = octets[position] >> 4, octets[position] & 0x0F
        position += 1
        if delta > 12:
            _, position = _parse_extended(octets, position, delta)
        if length > 12:
            length, position = _parse_extended(octets, position, length)
        position += length
    return octets[start:position], octets[position + 1 :]


def parse_options(encoded: bytes) -> list[tuple[int, bytes]]:
    """Numbers and values of options without header and payload.

    Raises MessageFormatError for what is no CoAP message (RFC 7252 section 3.1).
    """
    options: list[tuple[int, bytes]] = []
    position = number = 0
    while position < len(encoded):
        delta, length = encoded[position] >> 4, encoded[position] & 0x0F
        position += 1
        if delta > 12:
            delta, position = _parse_extended(encoded, position, delta)
        if length > 12:
            length, position = _parse_extended(encoded, position, length)
        number += delta
        if position + length > len(encoded) or number > 0xFFFF:
            raise MessageFormatError("option longer than the message, or its number too large")
        if len(options) == MAX_OPTIONS:
            raise MessageFormatError("too many options")
        options.append((number, encoded[position : position + length]))
        position += length
    return options


def encode_uint(value: int) -> bytes:
    """A number as an option value, without leading zeros (RFC 7252 section 3.2)."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def encode_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    """Options as they stand in a message; their numbers ascend (RFC 7252 section 3.1)."""
    parts: list[bytes] = []
    before = 0
    for number, value in options:
        delta, more_delta = _encode_extended(number - before)
        length, more_length = _encode_extended(len(value))
        parts += bytes((delta << 4 | length,)), more_delta, more_length, value
        before = number
    return b"".join(parts)


def _encode_extended(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes((value - 13,))
    return 14, (value - 269).to_bytes(2, "big")
