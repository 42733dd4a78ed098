"""What is known of intermediates, so that those of a fleet cost their reading and signatures once.

Only what depends neither on the time nor on the leaf, and only of those whose signatures were
verified from an anchor down: a stranger adds nothing, and pushes nothing out. Validity, path
lengths and usages are judged for each leaf anew.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.x509 import verification

from coapgate.pki.certificates import Certificate, Statements

MAX_KNOWN = 256
"""Remembered signatures, intermediates, and ways from one to an anchor: as many of each kind."""

Edge = tuple[bytes, bytes]
"""A certificate and one that may be its issuer, both DER."""

Way = tuple[bytes, ...]
"""What is above a leaf: an intermediate first, an anchor last, DER."""


class Intermediate(NamedTuple):
    """A certificate and what it says."""

    certificate: Certificate
    says: Statements


class Intermediates:
    """Mutable: what was found out so far; a table that is full is emptied."""

    def __init__(self) -> None:
        self._signed: set[Edge] = set()
        self._read: dict[bytes, Intermediate] = {}
        self._policies: dict[Way, verification.PolicyBuilder] = {}
        self._marks: dict[Way, tuple[bytes, bytes]] = {}

    def find(self, octets: bytes) -> Intermediate | None:
        """One that was read before."""
        return self._read.get(octets)

    def add(self, found: Intermediate) -> None:
        """One of a path that was proven."""
        octets = found.certificate.octets
        if octets not in self._read:
            if len(self._read) >= MAX_KNOWN:
                self._read.clear()
            self._read[octets] = found

    def is_signed(self, edge: Edge) -> bool:
        """Whether the second is known to have signed the first."""
        return edge in self._signed

    def add_signed(self, edge: Edge) -> None:
        """The second, an anchor or itself signed by one that is known, signed the first."""
        if len(self._signed) >= MAX_KNOWN:
            self._signed.clear()
        self._signed.add(edge)

    def policy(self, way: Way) -> verification.PolicyBuilder | None:
        """With the first of a way as what is trusted, if that was said of this very way."""
        return self._policies.get(way)

    def trust(self, way: Way, policy: verification.PolicyBuilder) -> None:
        """The verifier has accepted the way, and nothing in it constrains what is beneath."""
        if len(self._policies) >= MAX_KNOWN:
            self._policies.clear()
        self._policies[way] = policy

    def marks(self, way: Way) -> tuple[bytes, bytes] | None:
        """How the first of a way is remembered as an issuer, and all of it but its anchor."""
        return self._marks.get(way)

    def add_marks(self, way: Way, issuer: bytes, marks: bytes) -> None:
        """Of a way that was proven."""
        if len(self._marks) >= MAX_KNOWN:
            self._marks.clear()
        self._marks[way] = (issuer, marks)
