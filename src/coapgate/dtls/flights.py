"""A flight: messages into datagrams, repeated on time and on demand (RFC 6347 section 4.2.4)."""

from __future__ import annotations

from collections.abc import Iterable

from coapgate.dtls.messages import HEADER_LENGTH as MESSAGE_HEADER
from coapgate.dtls.messages import encode_fragment
from coapgate.dtls.records import HEADER_LENGTH as RECORD_HEADER
from coapgate.dtls.records import ContentType, encode

MAX_RETRANSMISSION_TIME = 60.0
REPEAT_INTERVAL = 1.0
"""Seconds between two answers to a peer that repeats its flight."""
_SMALLEST_FRAGMENT = 32
"""Octets: rather a new datagram than a smaller piece at the end of one."""


class Repeats:
    """How often a repeated flight is answered: at once, then once a second, `limit` times in all.

    The interval runs from the last such answer, not from the first sending: a client that repeats
    after one second would otherwise be too early by the time its datagram took.
    """

    __slots__ = ("_answered_at", "_left")

    def __init__(self, limit: int | None = None) -> None:
        self._left = limit
        self._answered_at: float | None = None

    def allow(self, now: float) -> bool:
        """Whether to answer now; if so, it counts as answered."""
        if self._left == 0:
            return False
        if self._answered_at is not None and now < self._answered_at + REPEAT_INTERVAL:
            return False
        self._answered_at = now
        if self._left is not None:
            self._left -= 1
        return True


class Flight:
    """The messages of one flight, in unfragmented form, and when they are sent again."""

    __slots__ = ("_delay", "_repeats", "due_at", "messages")

    def __init__(self, messages: tuple[bytes, ...], delay: float, now: float) -> None:
        self.messages = messages
        self._delay = delay
        self._repeats = Repeats()
        self.due_at = now + delay

    def is_due(self, now: float) -> bool:
        """Whether it is to be sent again because nothing came; the delay doubles to 60 s."""
        if now < self.due_at:
            return False
        self._delay = min(self._delay * 2, MAX_RETRANSMISSION_TIME)
        self.due_at = now + self._delay
        return True

    def is_wanted(self, now: float) -> bool:
        """Whether it is to be sent again because the peer repeated its own."""
        if not self._repeats.allow(now):
            return False
        self.due_at = now + self._delay
        return True


def encode_flight(
    messages: Iterable[bytes], sequence: int, max_datagram: int, max_fragment: int
) -> tuple[list[bytes], int]:
    """Datagrams of epoch 0 and the record sequence number after them.

    `max_datagram` octets of UDP payload at most; `max_fragment` octets of plaintext in a record,
    handshake headers included (RFC 6066 section 4).
    """
    datagrams: list[bytes] = []
    datagram = b""
    for message in messages:
        if len(message) <= min(max_datagram - len(datagram) - RECORD_HEADER, max_fragment):
            # In unfragmented form it is its own one fragment.
            datagram += encode(ContentType.HANDSHAKE, sequence, message)
            sequence += 1
            continue
        kind, length = message[0], int.from_bytes(message[1:4], "big")
        message_seq = int.from_bytes(message[4:6], "big")
        offset = 0
        while True:
            room = min(max_datagram - len(datagram) - RECORD_HEADER, max_fragment) - MESSAGE_HEADER
            if datagram and room < min(_SMALLEST_FRAGMENT, length - offset):
                datagrams.append(datagram)
                datagram = b""
                continue
            start = MESSAGE_HEADER + offset
            body = message[start : start + room]
            fragment = encode_fragment(kind, length, message_seq, offset, body)
            datagram += encode(ContentType.HANDSHAKE, sequence, fragment)
            sequence += 1
            offset += len(body)
            if offset == length:
                break
    if datagram:
        datagrams.append(datagram)
    return datagrams, sequence
