"""Hello extensions that we know; everything else is ignored.

RFC 5246, 5746, 6066, 7627, 8422 and 9146.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import NamedTuple

from coapgate.dtls.groups import GROUPS
from coapgate.dtls.presentation import Reader, integers, vector
from coapgate.dtls.signatures import SCHEMES
from coapgate.errors import Reason, Refused

RENEGOTIATION_SCSV = 0x00FF
UNCOMPRESSED = 0
FRAGMENT_LENGTHS = {1: 512, 2: 1024, 3: 2048, 4: 4096}
"""Octets of plaintext a record may carry, by the code of RFC 6066 section 4."""
_FRAGMENT_LENGTH_CODES = {length: bytes((code,)) for code, length in FRAGMENT_LENGTHS.items()}


class ExtensionType(enum.IntEnum):
    MAX_FRAGMENT_LENGTH = 1
    SUPPORTED_GROUPS = 10
    EC_POINT_FORMATS = 11
    SIGNATURE_ALGORITHMS = 13
    EXTENDED_MASTER_SECRET = 23
    CONNECTION_ID = 54
    RENEGOTIATION_INFO = 0xFF01


(
    _MAX_FRAGMENT_LENGTH,
    _SUPPORTED_GROUPS,
    _EC_POINT_FORMATS,
    _SIGNATURE_ALGORITHMS,
    _EXTENDED_MASTER_SECRET,
    _CONNECTION_ID,
    _RENEGOTIATION_INFO,
) = ExtensionType  # names of their own: a look into an Enum costs more, in every hello


class Offer(NamedTuple):
    """What a ClientHello's extensions say; None where one is absent.

    Lists hold what we know of them, in our order: a handshake keeps its offer, and a thousand
    numbers that mean nothing to us would cost it twenty times the octets that they came in.
    """

    max_fragment_length: int | None = None
    """In octets."""
    groups: tuple[int, ...] | None = None
    point_formats: tuple[int, ...] | None = None
    signature_algorithms: tuple[int, ...] | None = None
    extended_master_secret: bool = False
    secure_renegotiation: bool = False
    connection_id: bytes | None = None
    """What our records are to carry; empty: nothing, while the client's carry ours."""


def parse_offer(extensions: Mapping[int, bytes], cipher_suites: tuple[int, ...]) -> Offer:
    """Read the extensions of a ClientHello.

    Raises MalformedMessage, or Refused(illegal_parameter) for an unknown maximum fragment length
    (RFC 6066 section 4).
    """
    max_fragment_length = None
    if (body := extensions.get(_MAX_FRAGMENT_LENGTH)) is not None:
        code = _single(body)
        if code not in FRAGMENT_LENGTHS:
            raise Refused(Reason.ILLEGAL_PARAMETER, f"maximum fragment length {code}")
        max_fragment_length = FRAGMENT_LENGTHS[code]
    if (body := extensions.get(_EXTENDED_MASTER_SECRET)) is not None:
        Reader(body).finish()
    connection_id = None
    if (body := extensions.get(_CONNECTION_ID)) is not None:
        connection_id = parse_connection_id(body)
    if extensions.get(_RENEGOTIATION_INFO, b"\0") != b"\0":
        # A first handshake has nothing to renegotiate (RFC 5746 section 3.6).
        raise Refused(Reason.ILLEGAL_PARAMETER, "renegotiation_info in a first handshake")
    return Offer(
        max_fragment_length,
        _known(extensions.get(_SUPPORTED_GROUPS), 2, 2, GROUPS),
        _known(extensions.get(_EC_POINT_FORMATS), 1, 1, (UNCOMPRESSED,)),
        _known(extensions.get(_SIGNATURE_ALGORITHMS), 2, 2, SCHEMES),
        _EXTENDED_MASTER_SECRET in extensions,
        _RENEGOTIATION_INFO in extensions or RENEGOTIATION_SCSV in cipher_suites,
        connection_id,
    )


def parse_connection_id(body: bytes) -> bytes:
    """The Connection ID that the peer wants to see, 0 to 255 octets (RFC 9146 section 3).

    Raises MalformedMessage.
    """
    reader = Reader(body)
    connection_id = reader.vector(1)
    reader.finish()
    return connection_id


def _single(body: bytes) -> int:
    reader = Reader(body)
    value = reader.integer(1)
    reader.finish()
    return value


def _known(
    body: bytes | None, prefix: int, size: int, known: Collection[int]
) -> tuple[int, ...] | None:
    """Which of `known` an extension lists, in their order."""
    if body is None:
        return None
    reader = Reader(body)
    listed = frozenset(reader.integers(prefix, size))
    reader.finish()
    return tuple(number for number in known if number in listed)


def encode_offer(
    groups: tuple[int, ...],
    signature_algorithms: tuple[int, ...],
    max_fragment_length: int | None = None,
    connection_id: bytes | None = None,
) -> dict[int, bytes]:
    """The extensions of our own ClientHello; without groups, those of a client with a PSK only."""
    extensions: dict[int, bytes] = {
        _RENEGOTIATION_INFO: b"\0",
        _EXTENDED_MASTER_SECRET: b"",
    }
    if groups:
        extensions[_SUPPORTED_GROUPS] = integers(2, 2, groups)
        extensions[_EC_POINT_FORMATS] = vector(1, bytes((UNCOMPRESSED,)))
        extensions[_SIGNATURE_ALGORITHMS] = integers(2, 2, signature_algorithms)
    if max_fragment_length is not None:
        extensions[_MAX_FRAGMENT_LENGTH] = _FRAGMENT_LENGTH_CODES[max_fragment_length]
    if connection_id is not None:
        extensions[_CONNECTION_ID] = vector(1, connection_id)
    return extensions


def encode_answer(
    offer: Offer, *, with_ecdhe: bool, connection_id: bytes = b""
) -> dict[int, bytes]:
    """The extensions of our ServerHello: only what the client asked for.

    `connection_id` is what its records are to carry, if it offered to.
    """
    extensions: dict[int, bytes] = {}
    if offer.secure_renegotiation:
        extensions[_RENEGOTIATION_INFO] = b"\0"
    if offer.max_fragment_length is not None:
        extensions[_MAX_FRAGMENT_LENGTH] = _FRAGMENT_LENGTH_CODES[offer.max_fragment_length]
    if with_ecdhe and offer.point_formats is not None:
        extensions[_EC_POINT_FORMATS] = vector(1, bytes((UNCOMPRESSED,)))
    if offer.extended_master_secret:
        extensions[_EXTENDED_MASTER_SECRET] = b""
    if offer.connection_id is not None:
        extensions[_CONNECTION_ID] = vector(1, connection_id)
    return extensions
