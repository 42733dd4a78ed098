"""Bounded reassembly of handshake messages (RFC 6347 section 4.2.3)."""

from __future__ import annotations

from coapgate.dtls.messages import Fragment, HandshakeType

MESSAGES_AHEAD = 3
"""A message_seq may be this far beyond the next expected one."""
MAX_AHEAD_LENGTH = 2048
"""Octets held, all in all, of messages that are not yet expected."""

_MAX_LENGTHS: dict[int, int] = {
    HandshakeType.CLIENT_HELLO: 2048,
    HandshakeType.CLIENT_KEY_EXCHANGE: 512,
    HandshakeType.CERTIFICATE_VERIFY: 1024,
    HandshakeType.FINISHED: 64,
}
"""Declared lengths in octets; of any other type `max_length`."""
_WIDE = bytes.maketrans(b"01", b"\x00\xff")


class _Partial:
    """One message on its way: the octets that came, and a bitmap of which of them did."""

    __slots__ = ("_body", "_seen", "length", "type")

    def __init__(self, kind: int, length: int) -> None:
        self.type = kind
        self.length = length
        self._body = bytearray(length)
        self._seen = 0

    def add(self, offset: int, octets: bytes) -> bool:
        """False if the octets contradict those already held: the first one wins."""
        end = offset + len(octets)
        mask = (1 << end) - (1 << offset)
        overlap = self._seen & mask
        if overlap:
            held = int.from_bytes(self._body[offset:end], "big")
            differences = held ^ int.from_bytes(octets, "big")
            if differences & _widen(overlap >> offset, len(octets)):
                return False
        self._body[offset:end] = octets
        self._seen |= mask
        return True

    @property
    def body(self) -> bytes | None:
        """The whole message, or None while octets are missing."""
        return bytes(self._body) if self._seen.bit_count() == self.length else None


class _Whole:
    """A message that came in one fragment, as nearly all do."""

    __slots__ = ("body", "length", "type")

    def __init__(self, kind: int, body: bytes) -> None:
        self.type = kind
        self.length = len(body)
        self.body = body

    def add(self, offset: int, octets: bytes) -> bool:
        """False if the octets contradict those already held: the first one wins."""
        return self.body[offset : offset + len(octets)] == octets


class Reassembly:
    """Puts messages together in order of message_seq, within `max_length` octets each."""

    __slots__ = ("_max_length", "_partials", "expected")

    def __init__(self, expected: int, max_length: int) -> None:
        self.expected = expected
        self._max_length = max_length
        self._partials: dict[int, _Partial | _Whole] = {}

    def add(self, fragment: Fragment) -> bool:
        """Take a fragment; False if it is dropped: out of bounds, or at odds with another."""
        ahead = fragment.message_seq - self.expected
        limit = min(self._max_length, _MAX_LENGTHS.get(fragment.type, self._max_length))
        if not 0 <= ahead <= MESSAGES_AHEAD or fragment.length > limit:
            return False
        partial = self._partials.get(fragment.message_seq)
        if partial is None:
            if ahead and fragment.length + self._held_ahead() > MAX_AHEAD_LENGTH:
                return False
            if len(fragment.body) == fragment.length:
                self._partials[fragment.message_seq] = _Whole(fragment.type, fragment.body)
                return True
            partial = _Partial(fragment.type, fragment.length)
            self._partials[fragment.message_seq] = partial
        if (partial.type, partial.length) != (fragment.type, fragment.length):
            return False
        return partial.add(fragment.offset, fragment.body)

    def _held_ahead(self) -> int:
        return sum(p.length for seq, p in self._partials.items() if seq != self.expected)

    def next(self) -> tuple[int, bytes] | None:
        """Type and body of the expected message once it is whole; `advance` or `drop` it then."""
        partial = self._partials.get(self.expected)
        if partial is None:
            return None
        body = partial.body
        return None if body is None else (partial.type, body)

    def advance(self) -> None:
        """The expected message was taken: expect the one after it."""
        self._partials.pop(self.expected)
        self.expected += 1

    def drop(self) -> None:
        """The expected message does not parse or fit: wait for another of its number."""
        self._partials.pop(self.expected, None)


def _widen(bits: int, length: int) -> int:
    """A bitmap of `length` octets, the first one lowest, as a mask of those octets in big-endian.

    Linear: to shift for each octet would be quadratic, and a stranger chooses the octets.
    """
    return int.from_bytes(f"{bits:0{length}b}".encode().translate(_WIDE), "little")
