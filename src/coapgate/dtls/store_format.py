"""What a slot of the association store holds, octet by octet.

Every association has a slot of 512 octets, in the order of octets of the machine:

    offset  octets
         0       8  word: number in order of opening, from 1; all zero: the slot is free
         8       8  word: highest record number received
        16       8  word: highest send number leased
        24       8  word: when it was last heard, Unix seconds
        32       8  word: which copy of the path is in use (bit 0), whether it is proven (bit 1)
        40      64  two copies of the path: 28 octets of a `PathCodec`, CRC-32
       104     128  four answers, by the lowest bits of the message ID: CRC-32, when it expires in
                    Unix seconds (4), message ID (2), length (1), 21 octets
       232     280  what never changes, sealed: nonce (12), AES-256-GCM with a tag of 16

A word is a value of 48 bits, and 16 bits by which damage shows: any one octet that is not what it
was is found. Words change while the process may die between any two instructions; what is longer
carries a checksum. The additional data of what is sealed is slot and number: what is moved to
another slot, or left over from another association, does not open.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from coapgate.errors import StoreDamaged
from coapgate.model import MARK_LENGTH, MARK_PART_LENGTH, DeviceId, Identity, Method, Path, Tenant

SLOT_LENGTH = 512
WORD_LENGTH = 8
SLOT_WORDS = SLOT_LENGTH // WORD_LENGTH

NUMBER, NEWEST, LEASED, SEEN_AT, IN_USE = range(5)
"""The words of a slot."""

PATH_LENGTH = 28
PATHS_AT = 40
PATH_COPY_LENGTH = PATH_LENGTH + 4
ANSWERS_AT = PATHS_AT + 2 * PATH_COPY_LENGTH
ANSWER_COUNT = 4
ANSWER_LENGTH = 32
MAX_ANSWER = 21
"""Octets of the longest answer that is kept."""
SEALED_AT = ANSWERS_AT + ANSWER_COUNT * ANSWER_LENGTH

NONCE_LENGTH = 12
TAG_LENGTH = 16
CONTENT_LENGTH = SLOT_LENGTH - SEALED_AT - NONCE_LENGTH - TAG_LENGTH
"""Octets of what is sealed, padded: nothing tells how long a name is."""

ID_LENGTH = 8
MAX_VALUE = (1 << 48) - 1

CHECK_PRIME = 65521
"""Below 2**16; a multiple of no difference that one octet makes."""

ANSWER_BODY = struct.Struct(f"=IHB{MAX_ANSWER}s")
CHECKSUM = struct.Struct("=I")
BINDING = struct.Struct("=QQ")

_WORDS = struct.Struct("=5Q")
_NO_ANSWERS = bytes(ANSWER_COUNT * ANSWER_LENGTH)
_FIXED = struct.Struct(f"={ID_LENGTH}sHHdB")
_METHODS = (Method.PSK, Method.X509)
FIELD_COUNT = 9
"""Fields of variable length: first the length of each, an octet, then all of them."""
_METHOD, _VALUE_IS_DEVICE, _CREDENTIAL_IN_PATH, _ANCHOR_IN_PATH = 1, 2, 4, 8
"""Bits of the octet that says the method."""


class PathCodec(Protocol):
    """How a path is written in 28 octets; only the sockets know what a peer address is."""

    def pack(self, path: Path) -> bytes | None:
        """None: it cannot be written in such a way that `unpack` gives it back exactly."""

    def unpack(self, octets: bytes) -> Path: ...


@dataclass(frozen=True, slots=True)
class Established:
    """What never changes about an association. `suite` is its code, `id` 8 octets.

    `received_cid` is ours, `sent_cid` the peer's; empty: records have none.
    """

    id: bytes
    identity: Identity
    suite: int
    key_block: bytes = field(repr=False)
    received_cid: bytes
    sent_cid: bytes
    max_plaintext: int


class Answer(NamedTuple):
    """What a repeated request is answered with; empty: with nothing.

    From `expires_at` on (Unix seconds) the message ID means another request.
    """

    message_id: int
    expires_at: int
    octets: bytes


def word(value: int) -> int:
    """A value of 48 bits as it is stored. `AssociationStore.seen` says the same in place."""
    return value << 16 | (value + 1) % CHECK_PRIME


def value_of(stored: int) -> int:
    """Raises StoreDamaged if it is no word; all zero is none."""
    value = stored >> 16
    if stored != word(value):
        raise StoreDamaged("a word does not check")
    return value


def encode_established(established: Established) -> bytes | None:
    """252 octets; None if it is longer, or the limit on plaintexts not of 16 bits.

    There is room for whatever AES-128 suites and names of 121 characters for tenant and device
    together make; 113 with a Connection ID of 8 octets for the peer, too, and 24 less for each
    intermediate. What names the device in its certificate takes its own room where that is not
    the device's name.
    """
    identity = established.identity
    assert len(established.id) == ID_LENGTH
    if not 0 <= established.max_plaintext <= 0xFFFF:
        return None
    anchor, credential, value = identity.anchor or b"", identity.credential, identity.value
    flags = _METHODS.index(identity.method)
    # What the rest tells already is left out.
    if value == identity.device:
        flags, value = flags | _VALUE_IS_DEVICE, ""
    if identity.path and credential == _credential(identity.path):
        flags, credential = flags | _CREDENTIAL_IN_PATH, ""
    if identity.path and anchor[:MARK_PART_LENGTH] == _last_issuer(identity.path):
        flags, anchor = flags | _ANCHOR_IN_PATH, anchor[MARK_PART_LENGTH:]
    content = _FIXED.pack(
        established.id,
        established.suite,
        established.max_plaintext,
        math.nan if identity.not_after is None else identity.not_after,
        flags,
    )
    fields = (
        established.key_block,
        established.received_cid,
        established.sent_cid,
        identity.tenant.encode(),
        identity.device.encode(),
        credential.encode(),
        anchor,
        value.encode(),
        identity.path,
    )
    lengths = [len(octets) for octets in fields]
    if max(lengths) > 255:
        return None
    content += bytes(lengths) + b"".join(fields)
    return content.ljust(CONTENT_LENGTH, b"\0") if len(content) <= CONTENT_LENGTH else None


def parse_established(content: bytes) -> Established:
    """Of what was opened, and so is what `encode_established` made."""
    association_id, suite, max_plaintext, not_after, flags = _FIXED.unpack_from(content)
    fields = []
    at = _FIXED.size + FIELD_COUNT
    for length in content[_FIXED.size : at]:
        fields.append(content[at : at + length])
        at += length
    key_block, received_cid, sent_cid, tenant, device, credential, anchor, value, path = fields
    if flags & _ANCHOR_IN_PATH:
        anchor = _last_issuer(path) + anchor
    identity = Identity(
        Tenant(tenant.decode()),
        DeviceId(device.decode()),
        _METHODS[flags & _METHOD],
        _credential(path) if flags & _CREDENTIAL_IN_PATH else credential.decode(),
        anchor or None,
        None if math.isnan(not_after) else not_after,
        device.decode() if flags & _VALUE_IS_DEVICE else value.decode(),
        path,
    )
    return Established(
        association_id, identity, suite, key_block, received_cid, sent_cid, max_plaintext
    )


def _credential(path: bytes) -> str:
    """What a certificate is called after the part of its fingerprint that a path holds."""
    return f"sha256:{path[MARK_LENGTH - MARK_PART_LENGTH : MARK_LENGTH].hex()}"


def _last_issuer(path: bytes) -> bytes:
    """The first octets of the anchor's key id."""
    return path[-MARK_LENGTH:][:MARK_PART_LENGTH]


def encode_path(packed: bytes) -> bytes:
    """A copy of a path, 32 octets."""
    return packed + CHECKSUM.pack(zlib.crc32(packed))


class Slot(NamedTuple):
    """A slot in use. `path` is packed, `answers` are as they lie there, `sealed` has its nonce."""

    number: int
    newest: int
    leased: int
    seen_at: int
    is_proven: bool
    path: bytes
    answers: bytes
    sealed: bytes


def encode_slot(newest: int, leased: int, seen_at: int, packed: bytes, sealed: bytes) -> bytes:
    """Of a new association whose path is proven: what comes behind the number, 504 octets."""
    words = _WORDS.pack(0, word(newest), word(leased), word(seen_at), word(0b10))
    path = encode_path(packed)
    return b"".join((words[WORD_LENGTH:], path, path, _NO_ANSWERS, sealed))


def parse_slot(octets: bytes) -> Slot:
    """All but whether what is sealed opens. Raises StoreDamaged."""
    number, newest, leased, seen_at, in_use = map(value_of, _WORDS.unpack_from(octets))
    if in_use > 3:
        raise StoreDamaged("there are but two copies of a path")
    path_at = PATHS_AT + (in_use & 1) * PATH_COPY_LENGTH
    path = octets[path_at : path_at + PATH_LENGTH]
    if octets[path_at : path_at + PATH_COPY_LENGTH] != encode_path(path):
        raise StoreDamaged("a path does not check")
    answers = octets[ANSWERS_AT:SEALED_AT]
    return Slot(number, newest, leased, seen_at, in_use > 1, path, answers, octets[SEALED_AT:])


def parse_answers(octets: bytes) -> tuple[Answer, ...]:
    """Those that are there, those that expire first first."""
    places = range(0, len(octets), ANSWER_LENGTH)
    found = (parse_answer(octets[at : at + ANSWER_LENGTH]) for at in places)
    return tuple(
        sorted((answer for answer in found if answer), key=lambda answer: answer.expires_at)
    )


def parse_answer(octets: bytes) -> Answer | None:
    """None: there is none, or it was not written to its end, and then it was not sent either."""
    body = octets[CHECKSUM.size :]
    if octets[: CHECKSUM.size] != CHECKSUM.pack(zlib.crc32(body)):
        return None
    expires_at, message_id, length, padded = ANSWER_BODY.unpack(body)
    return Answer(message_id, expires_at, padded[:length])
