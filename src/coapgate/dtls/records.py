"""The record layer's headers (RFC 6347 section 4.1) and tls12_cid (RFC 9146 section 4)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from coapgate.errors import MalformedRecord

DTLS_1_0 = 0xFEFF
DTLS_1_2 = 0xFEFD
VERSION = DTLS_1_2.to_bytes(2, "big")

HEADER_LENGTH = 13
"""Octets before the fragment of a record without Connection ID."""
CID_LENGTH = 8
"""Octets of the Connection IDs that a server of ours hands out."""
MAX_SEQUENCE = (1 << 48) - 1
MAX_PLAINTEXT = 1 << 14
"""Octets of plaintext in a record (RFC 5246 section 6.2.1)."""
MAX_RECORDS = 32
"""Records of one datagram that are looked at: a flight has six messages, and an empty record would
cost its sender 13 octets and us as much as a full one."""

_MAX_LENGTH = MAX_PLAINTEXT + 2048
"""Octets of a fragment (RFC 5246 section 6.2.3)."""
_HEADER = struct.Struct("!BHQH")
"""Type, version, epoch and sequence number (16 and 48 bits) as one, length."""
_TLS12_CID = 25
_new = tuple.__new__  # what the constructor of a named tuple does, without a call of its own
_ACCEPTED_VERSIONS = frozenset((DTLS_1_0, DTLS_1_2))


class ContentType(enum.IntEnum):
    """What a record carries (RFC 5246 section 6.2.1, RFC 9146 section 4)."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23
    TLS12_CID = _TLS12_CID


class Record(NamedTuple):
    """One record as it came; `octets` is all of it, the fragment begins at `start`."""

    content_type: int
    epoch: int
    sequence: int
    octets: bytes
    start: int = HEADER_LENGTH

    @property
    def fragment(self) -> bytes:
        return self.octets[self.start :]

    @property
    def connection_id(self) -> bytes:
        """Empty unless the content type is tls12_cid."""
        return self.octets[11 : self.start - 2]


def split(datagram: bytes, cid_length: int = 0) -> Iterator[Record]:
    """The records of a datagram in their order, without decrypting anything.

    `cid_length` is the length in octets of the Connection IDs that we hand out (RFC 9146 3).
    Raises MalformedRecord at the first record that is cut short, too long, of a foreign version or
    one too many; the records before it have been yielded by then.
    """
    position, total = 0, len(datagram)
    for _ in range(MAX_RECORDS):
        if position == total:
            return
        start = HEADER_LENGTH
        if datagram[position] == _TLS12_CID:
            start += cid_length
        body = position + start
        if body > total:
            raise MalformedRecord("record header cut short")
        content_type, version, number, length = _HEADER.unpack_from(datagram, position)
        if version not in _ACCEPTED_VERSIONS:
            raise MalformedRecord(f"record version {version:#06x}")
        if start != HEADER_LENGTH:
            length = int.from_bytes(datagram[body - 2 : body], "big")
        if length > _MAX_LENGTH:
            raise MalformedRecord("record too long")
        end = body + length
        if end > total:
            raise MalformedRecord("record cut short")
        fields = content_type, number >> 48, number & MAX_SEQUENCE, datagram[position:end], start
        yield _new(Record, fields)
        position = end
    if position != total:
        raise MalformedRecord("too many records in a datagram")


def encode(content_type: int, sequence: int, fragment: bytes, version: int = DTLS_1_2) -> bytes:
    """A record of epoch 0, in the clear."""
    return _HEADER.pack(content_type, version, sequence, len(fragment)) + fragment
