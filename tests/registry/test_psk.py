"""Keys and identities as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgate.errors import Misused
from coapgate.registry.psk import parse_identity, parse_key, render_identity, render_key

SIXTEEN = bytes.fromhex("00112233445566778899aabbccddeeff")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hex:00112233445566778899aabbccddeeff", SIXTEEN),
        ("hex:00112233445566778899AABBCCDDEEFF", SIXTEEN),
        ("base64:ABEiM0RVZneImaq7zN3u/w==", SIXTEEN),
        ("text:sixteen octets: ä", "sixteen octets: ä".encode()),
        ("text:hex:00112233445566778899aabbccddeeff", b"hex:00112233445566778899aabbccddeeff"),
    ],
)
def test_a_key_says_how_it_is_written(text: str, key: bytes) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize(
    "text",
    [
        "000102030405060708090a0b0c0d0e0f",
        "AAECAwQFBgcICQoLDA0ODw==",
        "sixteen or more octets",
        "HEX:000102030405060708090a0b0c0d0e0f",
        " hex:000102030405060708090a0b0c0d0e0f",
        "0x000102030405060708090a0b0c0d0e0f",
        "",
    ],
)
def test_scenario_5_a_key_without_a_prefix_is_refused_and_the_three_forms_are_shown(
    text: str,
) -> None:
    with pytest.raises(Misused, match="a key says how it is written") as caught:
        parse_key(text)

    for form in ("hex:", "base64:", "text:"):
        assert form in caught.value.hint
    assert not text or text not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "form", ["hex:00112233445566778899aabbccddeeff", "base64:ABEiM0RVZneImaq7zN3u/w=="]
)
def test_the_forms_that_the_hint_shows_are_good(form: str) -> None:
    with pytest.raises(Misused) as caught:
        parse_key("bare")

    assert form in caught.value.hint
    assert parse_key(form) == SIXTEEN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hex:00112233445566778899aabbccddeef", "not hexadecimal"),
        ("hex:00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff", "not hexadecimal"),
        ("hex:0x112233445566778899aabbccddeeff", "not hexadecimal"),
        ("hex:\N{FULLWIDTH DIGIT ONE}0112233445566778899aabbccddeeff", "not hexadecimal"),
        ("base64:ABEiM0RVZneImaq7zN3u_w==", "not base64"),
        ("base64:ABEiM0RVZneImaq7zN3u/w", "not base64"),
        ("base64:ABEiM0RVZneI\nmaq7zN3u/w==", "not base64"),
        ("base64:ä", "not base64"),
        ("hex:", "0 octets; 16 to 64"),
        ("text:too short", "9 octets; 16 to 64"),
        ("text:" + "x" * 65, "65 octets; 16 to 64"),
        ("text:\udcff" + "x" * 16, "not UTF-8"),
    ],
)
def test_a_key_that_cannot_be_is_refused_without_showing_it(text: str, message: str) -> None:
    with pytest.raises(Misused, match=message) as caught:
        parse_key(text)

    shown = str(caught.value) + caught.value.hint
    assert text not in shown
    assert len(text) < 10 or text.partition(":")[2] not in shown
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("sensor-1", b"sensor-1"),
        ("device@example.com", b"device@example.com"),
        ("Fühler 1", "Fühler 1".encode()),
        ("hex:c0ffee", b"\xc0\xff\xee"),
        ("base64:wP/u", b"\xc0\xff\xee"),
        ("text:hex:c0ffee", b"hex:c0ffee"),
        ("hexagon", b"hexagon"),
        ("i" * 128, b"i" * 128),
    ],
)
def test_an_identity_is_text_or_octets_with_a_prefix(text: str, identity: bytes) -> None:
    assert parse_identity(text) == identity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("hex:", "is empty"),
        ("i" * 129, "129 octets; it may have 128"),
        ("ä" * 65, "130 octets"),
        ("a\0b", "NUL"),
        ("hex:6100", "NUL"),
        ("hex:c0ffe", "not hexadecimal"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_an_identity_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(Misused, match=message):
        parse_identity(text)


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (b"sensor-1", "sensor-1"),
        ("Fühler 1".encode(), "Fühler 1"),
        (b"\xc0\xff\xee", "hex:c0ffee"),
        (b"\x1b[31mred", "hex:1b5b33316d726564"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}x".encode(), "hex:e280ae78"),
        (b" padded", "hex:20706164646564"),
        (b"hex:c0ffee", "text:hex:c0ffee"),
    ],
)
def test_an_identity_is_shown_as_itself_where_it_prints(identity: bytes, text: str) -> None:
    assert render_identity(identity) == text


@given(st.binary(min_size=1, max_size=128).filter(lambda octets: 0 not in octets))
def test_an_identity_reads_back_as_it_was_shown(identity: bytes) -> None:
    assert parse_identity(render_identity(identity)) == identity
    assert render_identity(identity).isprintable()


@given(st.text(max_size=128).map(str.encode).filter(lambda octets: octets and 0 not in octets))
def test_an_identity_of_text_reads_back_as_it_was_shown(identity: bytes) -> None:
    if len(identity) <= 128:
        assert parse_identity(render_identity(identity)) == identity


@given(st.binary(min_size=16, max_size=64))
def test_a_key_reads_back_as_it_was_shown(key: bytes) -> None:
    assert parse_key(render_key(key)) == key
