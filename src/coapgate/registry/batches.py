"""Keys that are derived, so that a factory needs no network and nobody stores them.

    key = HMAC-SHA256(master key of the batch, PSK identity)            (RFC 2104, 32 octets)

An identity of a batch is a prefix, the device's name, a suffix: `acme-{device}`. No identity fits
two active batches.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from coapgate.errors import Misused
from coapgate.model import MAX_IDENTITY_LENGTH, Batch, DeviceId, PskCredential, is_name

DEVICE_FIELD = "{device}"

MAX_BATCH_DEVICES = 10_000_000
"""Devices that a batch may bring into being, at most."""

MAX_ACTIVE_BATCHES = 1000
"""Each costs every handshake of a stranger up to a third of a microsecond, and some memory."""

_PATTERN_HINT = f"write what surrounds the device's name: acme-{DEVICE_FIELD}"


def derive_key(master_key: bytes, identity: bytes) -> bytes:
    """The key of an identity, 32 octets."""
    return hmac.digest(master_key, identity, "sha256")


def parse_pattern(text: str) -> tuple[str, str]:
    """The prefix and the suffix of a pattern.

    Raises Misused.
    """
    prefix, field, suffix = text.partition(DEVICE_FIELD)
    if not field or any(brace in prefix + suffix for brace in "{}"):
        raise Misused(f"pattern {text!r} does not say where the device's name is", _PATTERN_HINT)
    if not text.isprintable():  # nor do octets that are not UTF-8
        raise Misused(f"pattern {text!r} does not print", _PATTERN_HINT)
    if len((prefix + suffix).encode()) >= MAX_IDENTITY_LENGTH:
        raise Misused(
            f"pattern {text!r} leaves no room for a name",
            f"an identity has {MAX_IDENTITY_LENGTH} octets at most",
        )
    return prefix, suffix


def may_overlap(one: Batch, other: Batch) -> bool:
    """Whether some identity could fit both patterns."""
    return (one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix)) and (
        one.suffix.endswith(other.suffix) or other.suffix.endswith(one.suffix)
    )


@dataclass(frozen=True, slots=True)
class Derived:
    """An identity that fits a batch: the device it names, and its key."""

    batch: Batch
    device: DeviceId
    secret: bytes = field(repr=False)

    def credential(self, identity: bytes) -> PskCredential:
        """As a key that no registry has a row of."""
        return PskCredential(
            0,
            self.batch.tenant,
            self.device,
            identity,
            self.secret,
            not_before=self.batch.not_before,
            not_after=self.batch.not_after,
            batch=self.batch.number,
        )


class BatchBook:
    """The batches that are active now, by what their identities begin with."""

    def __init__(self, batches: Iterable[tuple[Batch, bytes]] = ()) -> None:
        """Each with its master key; no two of them overlap."""
        self._by_pattern = {
            (batch.prefix.encode(), batch.suffix.encode()): (batch, master_key)
            for batch, master_key in batches
        }
        self._lengths = sorted({(len(prefix), len(suffix)) for prefix, suffix in self._by_pattern})
        self._decoy = secrets.token_bytes(32)

    def find(self, identity: bytes) -> Derived | None:
        """What an identity is by its text alone. One that fits no batch costs as much."""
        if not self._lengths:
            return None
        found = self._match(identity)
        # The work does not tell strangers which identities fit a batch.
        secret = derive_key(self._decoy if found is None else found[2], identity)
        return None if found is None else Derived(found[0], found[1], secret)

    def _match(self, identity: bytes) -> tuple[Batch, DeviceId, bytes] | None:
        for before, after in self._lengths:
            end = len(identity) - after
            middle = identity[before:end]  # empty if it is shorter than prefix and suffix
            found = self._by_pattern.get((identity[:before], identity[end:]))
            if found is not None and middle.isascii() and is_name(middle.decode()):
                return found[0], DeviceId(middle.decode()), found[1]
        return None
