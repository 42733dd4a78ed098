"""What the server counts: plain integers, read at scrape time."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field


class Drop(enum.StrEnum):
    """Why a record or datagram was dropped."""

    MALFORMED = "malformed"
    WRONG_EPOCH = "wrong_epoch"
    REPLAYED = "replayed"
    FORGED = "forged"
    UNKNOWN_CID = "unknown_cid"
    WITHOUT_CID = "without_cid"
    """A record of the old format, where a Connection ID was agreed on (RFC 9146 section 3)."""
    UNEXPECTED_RECORD = "unexpected_record"
    NO_ASSOCIATION = "no_association"
    NO_HANDSHAKE = "no_handshake"
    HELLO_NUMBER = "hello_number"
    """A hello with a message_seq or record sequence number that no first hello has."""
    MANY_HELLOS = "many_hellos"
    """A hello without a valid cookie behind another in one datagram."""
    NOT_ACCEPTING = "not_accepting"
    HANDSHAKE_LIMIT = "handshake_limit"
    ECDHE_RATE = "ecdhe_rate"
    UNPROVEN_PATH = "unproven_path"
    """Of our own: more than three times what came from a path that has not proven itself."""
    TOO_LONG = "too_long"
    """Of our own: more octets than a record to this peer may carry."""


@dataclass(slots=True)
class Counters:
    """Of one server."""

    cookies_sent: int = 0
    handshakes_started: int = 0
    handshakes_completed: int = 0
    records_opened: int = 0
    address_moves: int = 0
    """Associations that went on from another path."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Records or datagrams, by `Drop`."""
