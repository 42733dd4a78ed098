"""What a key or an identity that does not fit was probably meant to be.

No text here shows any of a key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Iterable

from coapgate.registry.psk import render_identity

MAX_SHOWN = 4
"""Identities that are named; more would be no hint."""

_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_MIN_DIGITS = 32
_AROUND = b" \t\r\n\0\"'"


def of_key(given: bytes, stored: bytes) -> str:
    """How the key of a device differs from the one on record, if in a way that is well known.

    Empty if they are the same, or nothing alike.
    """
    if hmac.compare_digest(given, stored):
        return ""
    for read, message in _READINGS:
        if read(stored) == given:
            return f"the key on record is {message} of the device's key: it was added as text:"
        if read(given) == stored:
            return f"the device takes {message} of its key for the key itself"
    if given.strip(b" \t\r\n\0") == stored.strip(b" \t\r\n\0"):
        longer, shorter = (
            ("device's", "one on record")
            if len(given) > len(stored)
            else (
                "one on record",
                "device's",
            )
        )
        return f"the {longer} has white space or a NUL around it that the {shorter} has not"
    if given.lower() == stored.lower():
        return "they differ in upper and lower case alone: text is compared octet by octet"
    if given.startswith(stored) or stored.startswith(given):
        return f"one is the beginning of the other: {len(given)} and {len(stored)} octets"
    if given == stored[::-1]:
        return "one is the other in reverse order of octets"
    return ""


def of_stored_key(stored: bytes) -> str:
    """What is odd about a key on record, whatever the device has; empty if nothing is."""
    if len(stored) >= _MIN_DIGITS and len(stored) % 2 == 0 and _HEX_DIGITS.issuperset(stored):
        return (
            f"this is the text of a hex key: {len(stored)} hexadecimal digits, taken as they "
            f"stand; a device that was given the {len(stored) // 2} octets fails"
        )
    if stored.strip() != stored:
        return "the key on record begins or ends with white space"
    return ""


def of_identity(given: bytes, known: Iterable[bytes]) -> list[str]:
    """Identities on record that the given one was probably meant to be, and why.

    Little is done for each of them: there may be a million.
    """
    spelled = {given.hex().encode(): _READINGS[0][1], base64.b64encode(given): _READINGS[1][1]}
    for read, message in _READINGS:
        octets = read(given)
        if octets:
            spelled[octets] = message
    folded, head = given.strip(_AROUND).lower(), given.partition(b"@")[0]
    found = []
    for identity in known:
        if identity.strip(_AROUND).lower() == folded:
            if identity.lower() == given.lower():
                why = "it differs by upper and lower case, which count"
            else:
                why = "it differs by white space, quotation marks or a NUL at its ends"
        elif identity in spelled:
            why = f"one is {spelled[identity]} of the other"
        elif identity.partition(b"@")[0] == head:
            why = "it differs behind the @"
        else:
            continue
        found.append(f"identity {render_identity(identity)!r} is known: {why}")
        if len(found) == MAX_SHOWN:
            break
    return found


def _from_hex(text: bytes) -> bytes | None:
    try:
        return binascii.unhexlify(text.removeprefix(b"0x").replace(b":", b"").replace(b" ", b""))
    except (binascii.Error, ValueError):
        return None


def _from_base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


_READINGS: tuple[tuple[Callable[[bytes], bytes | None], str], ...] = (
    (_from_hex, "the text of the hexadecimal digits"),
    (_from_base64, "the text in base64"),
)
