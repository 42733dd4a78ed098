"""A path that an association has moved to, until it has proven itself (RFC 9146 section 6)."""

from __future__ import annotations

AMPLIFICATION = 3
"""How many octets may be sent to an unproven path for each that came from it."""
ECHO_LENGTH = 8


class UnprovenPath:
    """Where an authenticated record came from that somebody else may have sent on from there.

    It proves itself by a record that answers what was sent only there: the ACK or RST of a message
    of ours, or `echo` (RFC 9175 section 2.3), octets that nobody can guess. Until then `credit` is
    how many octets of datagrams may still be sent to it. Mutable; every move makes a new one.
    """

    __slots__ = ("credit", "echo", "misses")

    def __init__(self, received: int, echo: bytes) -> None:
        """`received` is the octets of the datagram that moved the association here."""
        self.credit = AMPLIFICATION * received
        self.echo = echo
        self.misses = 0
        """Answers from there to what was never sent: guesses, maybe."""

    def __repr__(self) -> str:
        return f"<UnprovenPath credit={self.credit}>"
