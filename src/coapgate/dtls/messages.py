"""Handshake messages, parsed and encoded (RFC 5246 7.4, RFC 6347 4.2.2, RFC 4279, RFC 8422)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from coapgate.dtls.presentation import Reader, integers, vector
from coapgate.dtls.records import VERSION
from coapgate.errors import MalformedMessage

HEADER_LENGTH = 12
RANDOM_LENGTH = 32
MAX_SESSION_ID_LENGTH = 32
NAMED_CURVE = 3
NULL_COMPRESSION = 0
ECDSA_SIGN = 64
RSA_SIGN = 1
MAX_CERTIFICATES = 10
MAX_EXTENSIONS = 64
"""Several times what browsers send; five hundred empty ones would cost more than a handshake."""
MAX_FRAGMENTS = 16
"""Fragments of one record that are looked at: a flight has six messages."""

_new = tuple.__new__  # what the constructor of a named tuple does, without a call of its own
_NONE: Mapping[int, bytes] = MappingProxyType({})
_HEADER = struct.Struct("!IHHI")
"""Type and length (8 and 24 bits), message_seq, offset and length of the fragment (24 and 24)."""
_24_BITS = 0xFFFFFF
_HELLO = struct.Struct(f"!2s{RANDOM_LENGTH}s")
"""Version and random, with which both hellos begin."""
_EXTENSION = struct.Struct("!HH")
"""Type and length."""


class HandshakeType(enum.IntEnum):
    """RFC 5246 section 7.4, RFC 6347 section 4.3.2."""

    HELLO_REQUEST = 0
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    HELLO_VERIFY_REQUEST = 3
    CERTIFICATE = 11
    SERVER_KEY_EXCHANGE = 12
    CERTIFICATE_REQUEST = 13
    SERVER_HELLO_DONE = 14
    CERTIFICATE_VERIFY = 15
    CLIENT_KEY_EXCHANGE = 16
    FINISHED = 20


class Fragment(NamedTuple):
    """A piece of a handshake message (RFC 6347 section 4.2.2); `length` is the whole message's."""

    type: int
    length: int
    message_seq: int
    offset: int
    body: bytes


def parse_fragments(octets: bytes, position: int = 0) -> list[Fragment]:
    """The handshake fragments of one record's plaintext, which begins at `position`.

    Raises MalformedMessage if one is cut short, does not fit its own length or is one too many.
    """
    total = len(octets)
    found: list[Fragment] = []
    while position != total:
        start = position + HEADER_LENGTH
        if start > total:
            raise MalformedMessage("message cut short")
        if len(found) == MAX_FRAGMENTS:
            raise MalformedMessage("too many fragments in a record")
        what, message_seq, high, low = _HEADER.unpack_from(octets, position)
        length, offset, size = what & _24_BITS, high << 8 | low >> 24, low & _24_BITS
        position = start + size
        if position > total or offset + size > length:
            raise MalformedMessage("fragment outside its message")
        fields = what >> 24, length, message_seq, offset, octets[start:position]
        found.append(_new(Fragment, fields))
    return found


def encode_fragment(kind: int, length: int, message_seq: int, offset: int, body: bytes) -> bytes:
    """One fragment with its header."""
    what, where = kind << 24 | length, (offset & 0xFF) << 24 | len(body)
    return _HEADER.pack(what, message_seq, offset >> 8, where) + body


def encode_message(kind: int, message_seq: int, body: bytes) -> bytes:
    """A whole message in unfragmented form, as the transcript wants it (RFC 6347 4.2.6)."""
    length = len(body)
    return _HEADER.pack(kind << 24 | length, message_seq, 0, length) + body


def _parse_session_id(reader: Reader) -> bytes:
    session_id = reader.vector(1)
    if len(session_id) > MAX_SESSION_ID_LENGTH:
        raise MalformedMessage("session id too long")
    return session_id


def _parse_extensions(reader: Reader) -> dict[int, bytes]:
    """Extensions by type; none at all is as good as an empty list (RFC 5246 section 7.4.1.4)."""
    found: dict[int, bytes] = {}
    if reader.at_end:
        return found
    octets = reader.vector(2)
    position, total = 0, len(octets)
    while position != total:
        start = position + _EXTENSION.size
        if start > total:
            raise MalformedMessage("message cut short")
        kind, length = _EXTENSION.unpack_from(octets, position)
        position = start + length
        if position > total:
            raise MalformedMessage("message cut short")
        if len(found) == MAX_EXTENSIONS:
            raise MalformedMessage("too many extensions")
        if kind in found:
            raise MalformedMessage(f"extension {kind} sent twice")
        found[kind] = octets[start:position]
    return found


def _encode_extensions(extensions: Mapping[int, bytes]) -> bytes:
    if not extensions:
        return b""
    return vector(
        2, b"".join(kind.to_bytes(2, "big") + vector(2, body) for kind, body in extensions.items())
    )


class ClientHello(NamedTuple):
    """RFC 5246 section 7.4.1.2 with the cookie of RFC 6347 section 4.2.1."""

    random: bytes
    cipher_suites: tuple[int, ...]
    version: bytes = VERSION
    session_id: bytes = b""
    cookie: bytes = b""
    compression_methods: bytes = bytes((NULL_COMPRESSION,))
    extensions: Mapping[int, bytes] = _NONE

    @classmethod
    def parse(cls, body: bytes) -> ClientHello:
        reader = Reader(body)
        version, random = reader.fields(_HELLO)
        session_id = _parse_session_id(reader)
        cookie = reader.vector(1)
        cipher_suites = reader.integers(2, 2)
        compression_methods = reader.vector(1, minimum=1)
        extensions = _parse_extensions(reader)
        reader.finish()
        return cls(
            random, cipher_suites, version, session_id, cookie, compression_methods, extensions
        )

    def encode(self) -> bytes:
        return (
            self.version
            + self.random
            + vector(1, self.session_id)
            + vector(1, self.cookie)
            + integers(2, 2, self.cipher_suites)
            + vector(1, self.compression_methods)
            + _encode_extensions(self.extensions)
        )


class HelloStart(NamedTuple):
    """What the first fragment of every ClientHello holds: all that a cookie needs."""

    version: bytes
    random: bytes
    session_id: bytes
    cookie: bytes


def parse_hello_start(body: bytes) -> HelloStart:
    """Read a ClientHello up to and including its cookie; what follows may be missing."""
    reader = Reader(body)
    version, random = reader.fields(_HELLO)
    session_id = _parse_session_id(reader)
    return HelloStart(version, random, session_id, reader.vector(1))


def parse_hello_verify_request(body: bytes) -> bytes:
    """The cookie (RFC 6347 section 4.2.1); the version in it means nothing."""
    reader = Reader(body)
    reader.fixed(2)
    cookie = reader.vector(1)
    reader.finish()
    return cookie


class ServerHello(NamedTuple):
    """RFC 5246 section 7.4.1.3; our own session id is empty: there is no resumption."""

    random: bytes
    cipher_suite: int
    version: bytes = VERSION
    session_id: bytes = b""
    compression_method: int = NULL_COMPRESSION
    extensions: Mapping[int, bytes] = _NONE

    @classmethod
    def parse(cls, body: bytes) -> ServerHello:
        reader = Reader(body)
        version, random = reader.fields(_HELLO)
        session_id = _parse_session_id(reader)
        cipher_suite = reader.integer(2)
        compression_method = reader.integer(1)
        extensions = _parse_extensions(reader)
        reader.finish()
        return cls(random, cipher_suite, version, session_id, compression_method, extensions)

    def encode(self) -> bytes:
        return (
            self.version
            + self.random
            + vector(1, self.session_id)
            + self.cipher_suite.to_bytes(2, "big")
            + self.compression_method.to_bytes(1, "big")
            + _encode_extensions(self.extensions)
        )


def parse_certificate(body: bytes) -> tuple[bytes, ...]:
    """A chain of DER certificates, leaf first; empty if the peer has none (RFC 5246 7.4.2)."""
    outer = Reader(body)
    reader = Reader(outer.vector(3))
    outer.finish()
    chain: list[bytes] = []
    while not reader.at_end:
        if len(chain) == MAX_CERTIFICATES:
            raise MalformedMessage("too many certificates")
        chain.append(reader.vector(3, minimum=1))
    return tuple(chain)


def encode_certificate(chain: tuple[bytes, ...]) -> bytes:
    return vector(3, b"".join(vector(3, certificate) for certificate in chain))


@dataclass(frozen=True, slots=True)
class ServerKeyExchange:
    """ECDHE parameters and their signature (RFC 8422 section 5.4)."""

    group: int
    point: bytes
    scheme: int
    signature: bytes

    @staticmethod
    def encode_parameters(group: int, point: bytes) -> bytes:
        """What is signed, behind both randoms."""
        return NAMED_CURVE.to_bytes(1, "big") + group.to_bytes(2, "big") + vector(1, point)

    @classmethod
    def parse(cls, body: bytes) -> ServerKeyExchange:
        reader = Reader(body)
        if reader.integer(1) != NAMED_CURVE:
            raise MalformedMessage("not a named curve")
        group, point = reader.integer(2), reader.vector(1, minimum=1)
        scheme, signature = reader.integer(2), reader.vector(2)
        reader.finish()
        return cls(group, point, scheme, signature)

    def encode(self) -> bytes:
        return (
            self.encode_parameters(self.group, self.point)
            + self.scheme.to_bytes(2, "big")
            + vector(2, self.signature)
        )


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """RFC 5246 section 7.4.4; no authority names: ours would list the tenants."""

    certificate_types: bytes
    schemes: tuple[int, ...]
    authorities: bytes = b""

    @classmethod
    def parse(cls, body: bytes) -> CertificateRequest:
        reader = Reader(body)
        request = cls(reader.vector(1, minimum=1), reader.integers(2, 2), reader.vector(2))
        reader.finish()
        return request

    def encode(self) -> bytes:
        return (
            vector(1, self.certificate_types)
            + integers(2, 2, self.schemes)
            + vector(2, self.authorities)
        )


@dataclass(frozen=True, slots=True)
class CertificateVerify:
    """RFC 5246 section 7.4.8."""

    scheme: int
    signature: bytes

    @classmethod
    def parse(cls, body: bytes) -> CertificateVerify:
        reader = Reader(body)
        message = cls(reader.integer(2), reader.vector(2))
        reader.finish()
        return message

    def encode(self) -> bytes:
        return self.scheme.to_bytes(2, "big") + vector(2, self.signature)


def parse_psk_identity(body: bytes) -> bytes:
    """ClientKeyExchange of plain PSK: the identity, any octets (RFC 4279 section 2)."""
    reader = Reader(body)
    identity = reader.vector(2)
    reader.finish()
    return identity


def encode_psk_identity(identity: bytes) -> bytes:
    return vector(2, identity)


def parse_point(body: bytes) -> bytes:
    """ClientKeyExchange of ECDHE: the client's public point (RFC 8422 section 5.7)."""
    reader = Reader(body)
    point = reader.vector(1, minimum=1)
    reader.finish()
    return point


def encode_point(point: bytes) -> bytes:
    return vector(1, point)
