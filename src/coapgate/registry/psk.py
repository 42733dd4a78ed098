"""How PSK identities and keys are written as text, and which of them can be.

A key always says how it is written, because a bare `abcdef0123456789` could be meant either way
and a device that disagrees cannot connect:

    hex:00112233445566778899aabbccddeeff
    base64:ABEiM0RVZneImaq7zN3u/w==
    text:sixteen or more octets

An identity is the text itself, or octets written in one of the same three forms.
"""

from __future__ import annotations

import base64
import binascii

from coapgate.errors import Misused
from coapgate.model import MAX_IDENTITY_LENGTH, MAX_KEY_LENGTH, MIN_KEY_LENGTH, PskState

KEY_FORMS = (
    "write hex:00112233445566778899aabbccddeeff, base64:ABEiM0RVZneImaq7zN3u/w== "
    "or text:sixteen-or-more-octets"
)

_PREFIXES = ("hex:", "base64:", "text:")


def parse_key(text: str, *, allow_weak: bool = False) -> bytes:
    """Read a key that says how it is written. No error shows any of it.

    Raises Misused.
    """
    octets = _parse_prefixed(text, "the key")
    if octets is None:
        raise Misused("a key says how it is written, by hex:, base64: or text:", KEY_FORMS)
    check_key(octets, allow_weak=allow_weak)
    return octets


def render_key(secret: bytes) -> str:
    """As `parse_key` reads it. For the one time that a new key is shown."""
    return f"hex:{secret.hex()}"


def check_key(secret: bytes, *, allow_weak: bool = False) -> None:
    """Raises Misused unless this can be a key: 16 to 64 octets, with `allow_weak` 1 to 64."""
    if 1 <= len(secret) < MIN_KEY_LENGTH and not allow_weak:
        raise Misused(
            f"the key has {len(secret)} octets; {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} are needed",
            "`--generate` makes a good one of 16 octets, which every DTLS library takes; "
            "`--allow-weak` takes a shorter one, which others can guess",
        )
    if not 1 <= len(secret) <= MAX_KEY_LENGTH:
        raise Misused(
            f"the key has {len(secret)} octets; {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} are needed",
            "`--generate` makes a good one of 16 octets, which every DTLS library takes",
        )


def parse_identity(text: str) -> bytes:
    """Read a PSK identity: text, or octets as `hex:`, `base64:` or `text:`.

    Raises Misused.
    """
    octets = _parse_prefixed(text, "the identity")
    if octets is None:
        octets = _encode(text, "the identity")
    check_identity(octets)
    return octets


def render_identity(identity: bytes) -> str:
    """As `parse_identity` reads it: the text where it prints as itself, else `hex:`."""
    try:
        text = identity.decode()
    except UnicodeDecodeError:
        return f"hex:{identity.hex()}"
    if not text.isprintable() or text != text.strip():
        return f"hex:{identity.hex()}"
    return f"text:{text}" if text.startswith(_PREFIXES) else text


def check_identity(identity: bytes) -> None:
    """Raises Misused unless this can be a PSK identity: 1 to 128 octets, none of them NUL."""
    if not identity:
        raise Misused("the identity is empty", "a device needs a name to claim")
    if len(identity) > MAX_IDENTITY_LENGTH:
        raise Misused(
            f"the identity has {len(identity)} octets; it may have {MAX_IDENTITY_LENGTH}",
            "choose a shorter one; every DTLS library takes 32 octets",
        )
    if 0 in identity:
        raise Misused("the identity holds a NUL octet", "DTLS libraries would cut it there")


def has_ended(
    state: str, not_after: float | None, retiring_until: float | None, now: float
) -> bool:
    """Whether a key will never be good again, so that another may take its place."""
    if state == PskState.REVOKED:
        return True
    if state == PskState.RETIRING and retiring_until is not None and retiring_until < now:
        return True
    return not_after is not None and not_after < now


def _parse_prefixed(text: str, what: str) -> bytes | None:
    """The octets a prefix announces; None without a prefix."""
    if text.startswith("hex:"):
        digits = text.removeprefix("hex:")
        try:
            # b16decode, unlike bytes.fromhex, takes no white space.
            return base64.b16decode(digits, casefold=True)
        except (binascii.Error, ValueError):
            raise Misused(
                f"{what} is not hexadecimal after hex:",
                "two digits 0-9 a-f an octet, nothing between them",
            ) from None
    if text.startswith("base64:"):
        try:
            return base64.b64decode(text.removeprefix("base64:"), validate=True)
        except (binascii.Error, ValueError):
            raise Misused(
                f"{what} is not base64 after base64:",
                "the alphabet is A-Z a-z 0-9 + / with = at the end",
            ) from None
    if text.startswith("text:"):
        return _encode(text.removeprefix("text:"), what)
    return None


def _encode(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # an argument whose octets are not UTF-8 arrives as surrogates
        raise Misused(f"{what} is not UTF-8", "write its octets as hex:...") from None
