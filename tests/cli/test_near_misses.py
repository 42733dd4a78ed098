"""Near misses of keys and identities: each is named, and none shows any of a key."""

from __future__ import annotations

import base64

import pytest

from coapgate.cli import near_misses

KEY = bytes.fromhex("00112233445566778899aabbccddeeff")
TEXT = b"correct-horse-16"


@pytest.mark.parametrize(
    ("given", "stored", "said"),
    [
        (KEY, KEY.hex().encode(), "the key on record is the text of the hexadecimal digits"),
        (KEY, KEY.hex().upper().encode(), "the key on record is the text of the hexadecimal"),
        (KEY, b"0x" + KEY.hex().encode(), "the key on record is the text of the hexadecimal"),
        (KEY.hex().encode(), KEY, "the device takes the text of the hexadecimal digits"),
        (KEY, base64.b64encode(KEY), "the key on record is the text in base64"),
        (base64.b64encode(KEY), KEY, "the device takes the text in base64"),
        (TEXT + b"\n", TEXT, "the device's has white space or a NUL around it"),
        (TEXT, TEXT + b"\0", "the one on record has white space or a NUL around it"),
        (TEXT.upper(), TEXT, "upper and lower case alone"),
        (KEY + KEY, KEY, "one is the beginning of the other: 32 and 16 octets"),
        (KEY[::-1], KEY, "reverse order"),
        (KEY, TEXT, ""),
        (KEY, KEY, ""),
    ],
)
def test_a_key_that_does_not_fit_is_told_from_a_wrong_one(
    given: bytes, stored: bytes, said: str
) -> None:
    message = near_misses.of_key(given, stored)

    assert said in message
    assert bool(message) == bool(said)
    for secret in (given, stored):
        assert secret.hex() not in message
        assert secret.decode(errors="replace").strip() not in message


def test_a_key_on_record_that_is_the_text_of_a_hex_key_says_so() -> None:
    assert near_misses.of_stored_key(KEY.hex().encode()).startswith("this is the text of a hex key")
    assert "begins or ends" in near_misses.of_stored_key(TEXT + b"\n")
    for fine in (KEY, TEXT, b"0123456789abcdef", KEY.hex().encode()[:-1]):
        assert near_misses.of_stored_key(fine) == ""


@pytest.mark.parametrize(
    ("given", "known", "said"),
    [
        (b"Sensor-1", b"sensor-1", "upper and lower case"),
        (b"sensor-1\n", b"sensor-1", "white space"),
        (b'"sensor-1"', b"sensor-1", "quotation marks"),
        (b"sensor-1", b"sensor-1".hex().encode(), "hexadecimal digits"),
        (b"sensor-1".hex().encode(), b"sensor-1", "hexadecimal digits"),
        (base64.b64encode(b"sensor-1"), b"sensor-1", "base64"),
        (b"sensor-1@a.example", b"sensor-1@b.example", "behind the @"),
        (b"sensor-1", b"sensor-1@b.example", "behind the @"),
    ],
)
def test_an_identity_like_one_on_record_is_named(given: bytes, known: bytes, said: str) -> None:
    (found,) = near_misses.of_identity(given, [b"other", known, b"another"])

    assert said in found
    assert known.decode() in found


def test_identities_that_are_nothing_alike_are_not_named() -> None:
    assert near_misses.of_identity(b"sensor-1", [b"sensor-2", b"", b"\xff\x00"]) == []


def test_few_of_many_alike_are_named() -> None:
    alike = [f"sensor-1@{number}".encode() for number in range(100)]

    assert len(near_misses.of_identity(b"sensor-1", alike)) == near_misses.MAX_SHOWN
