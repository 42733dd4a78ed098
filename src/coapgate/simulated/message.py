"""One CoAP message as the device's side writes and reads it (RFC 7252 section 3)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from coapgate.coap.options import (
    CONTENT_FORMAT,
    ECHO,
    MAX_AGE,
    SIZE1,
    URI_PATH,
    URI_QUERY,
    encode_options,
    encode_uint,
)
from coapgate.errors import MessageFormatError
from coapgate.model import Code

MAX_ECHO_LENGTH = 40
"""Octets (RFC 9175 section 2.2.1)."""

_HEADER = struct.Struct("!BBH")
_VERSION = 1
_PAYLOAD_MARKER = 0xFF
_MAX_TOKEN_LENGTH = 8


class Kind(enum.IntEnum):
    """Message types (RFC 7252 section 3)."""

    CON = 0
    NON = 1
    ACK = 2
    RST = 3


@dataclass(frozen=True, slots=True)
class Message:
    """Any message; `options` are (number, value) in order of number."""

    kind: int
    code: int
    message_id: int
    token: bytes = b""
    options: tuple[tuple[int, bytes], ...] = ()
    payload: bytes = b""

    def encode(self) -> bytes:
        """The message as octets; the reverse of `parse`."""
        head = _VERSION << 6 | self.kind << 4 | len(self.token)
        octets = _HEADER.pack(head, self.code, self.message_id) + self.token
        octets += encode_options(sorted(self.options, key=lambda option: option[0]))
        return octets + bytes((_PAYLOAD_MARKER,)) + self.payload if self.payload else octets

    @classmethod
    def parse(cls, octets: bytes) -> Message:
        """Raises MessageFormatError."""
        if len(octets) < _HEADER.size:
            raise MessageFormatError("shorter than a header")
        head, code, message_id = _HEADER.unpack_from(octets)
        token_length = head & 0x0F
        start = _HEADER.size + token_length
        if head >> 6 != _VERSION or token_length > _MAX_TOKEN_LENGTH or start > len(octets):
            raise MessageFormatError("not a CoAP header")
        if code == Code.EMPTY and len(octets) != _HEADER.size:
            raise MessageFormatError("octets after an empty message")
        options, payload = _parse_options(octets, start)
        token = octets[_HEADER.size : start]
        return cls(head >> 4 & 3, code, message_id, token, options, payload)


@dataclass(frozen=True, slots=True)
class Response:
    """What a device is answered; `is_separate`: it came after an empty ACK or for a NON."""

    code: int
    options: tuple[tuple[int, bytes], ...] = ()
    payload: bytes = b""
    is_separate: bool = False

    def __str__(self) -> str:
        """As people write it: 2.04, and the diagnostic payload of an error."""
        text = render_code(self.code)
        if self.code >= Code.BAD_REQUEST and self.payload:
            text += f" {self.payload.decode(errors='replace')}"
        return text

    def option(self, number: int) -> int | None:
        """The first option of that number, read as an unsigned integer."""
        for found, value in self.options:
            if found == number:
                return int.from_bytes(value, "big")
        return None

    @property
    def max_age(self) -> int | None:
        """Seconds: with 4.29 and 5.03, how long to wait (RFC 8516, RFC 7252 section 5.9.3.4)."""
        return self.option(MAX_AGE)

    @property
    def size1(self) -> int | None:
        """Octets: with 4.13, how much would have been taken (RFC 7959 section 4)."""
        return self.option(SIZE1)

    @property
    def content_format(self) -> int | None:
        return self.option(CONTENT_FORMAT)

    @property
    def echo(self) -> bytes | None:
        """With 4.01: what the gateway wants to see in the request (RFC 9175 section 2.3)."""
        values = (value for number, value in self.options if number == ECHO)
        return next((value for value in values if 1 <= len(value) <= MAX_ECHO_LENGTH), None)


def render_code(code: int) -> str:
    """Class and detail, as in 2.04 (RFC 7252 section 3)."""
    return f"{code >> 5}.{code & 0x1F:02}"


def request_options(
    path: Sequence[bytes], query: Sequence[bytes] = (), content_format: int | None = None
) -> tuple[tuple[int, bytes], ...]:
    """The options of a usual request, in order."""
    options = [(URI_PATH, segment) for segment in path]
    if content_format is not None:
        options.append((CONTENT_FORMAT, encode_uint(content_format)))
    return tuple(options + [(URI_QUERY, argument) for argument in query])


def _parse_options(octets: bytes, position: int) -> tuple[tuple[tuple[int, bytes], ...], bytes]:
    """Options and payload (RFC 7252 section 3.1)."""
    options: list[tuple[int, bytes]] = []
    number = 0
    while position < len(octets):
        head = octets[position]
        position += 1
        if head == _PAYLOAD_MARKER:
            if position == len(octets):
                raise MessageFormatError("payload marker without payload")
            return tuple(options), octets[position:]
        delta, position = _parse_extended(octets, position, head >> 4)
        length, position = _parse_extended(octets, position, head & 0x0F)
        number += delta
        if position + length > len(octets):
            raise MessageFormatError("option longer than the message")
        options.append((number, octets[position : position + length]))
        position += length
    return tuple(options), b""


def _parse_extended(octets: bytes, position: int, nibble: int) -> tuple[int, int]:
    if nibble < 13:
        return nibble, position
    if nibble == 15:
        raise MessageFormatError("reserved option delta or length")
    width, base = (1, 13) if nibble == 13 else (2, 269)
    if position + width > len(octets):
        raise MessageFormatError("option cut short")
    value = int.from_bytes(octets[position : position + width], "big")
    return value + base, position + width
