"""What a slot holds: everything comes back, and damage shows."""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgate.dtls import store_format as f
from coapgate.dtls.suites import SUITES
from coapgate.errors import StoreDamaged
from coapgate.model import DeviceId, Identity, Method, Tenant
from tests.dtls.store_book import established

VALUES = st.integers(0, f.MAX_VALUE)

NAMES = st.text("abcXYZ019._~:-", min_size=1, max_size=64)

IDENTITIES = st.builds(
    Identity,
    NAMES.map(Tenant),
    NAMES.map(DeviceId),
    st.sampled_from(Method),
    st.text("sha256:psk-0123456789", min_size=1, max_size=23),
    st.none() | st.binary(min_size=32, max_size=32),
    st.none() | st.floats(allow_nan=False),
    st.just("") | NAMES,
    st.integers(0, 4).flatmap(lambda count: st.binary(min_size=24 * count, max_size=24 * count)),
)

ESTABLISHED = st.builds(
    f.Established,
    id=st.binary(min_size=8, max_size=8),
    identity=IDENTITIES,
    suite=st.integers(0, 0xFFFF),
    key_block=st.sampled_from([40, 72]).flatmap(lambda length: st.binary(min_size=length)),
    received_cid=st.sampled_from([0, 8]).flatmap(lambda length: st.binary(min_size=length)),
    sent_cid=st.binary(max_size=255),
    max_plaintext=st.integers(0, 0xFFFF),
)


def test_the_parts_of_a_slot_fill_it() -> None:
    assert f.PATHS_AT == 5 * f.WORD_LENGTH
    assert f.ANSWERS_AT == f.PATHS_AT + 2 * f.PATH_COPY_LENGTH
    assert f.CHECKSUM.size + f.ANSWER_BODY.size == f.ANSWER_LENGTH
    assert f.SEALED_AT + f.NONCE_LENGTH + f.CONTENT_LENGTH + f.TAG_LENGTH == f.SLOT_LENGTH == 512
    # An answer is forgotten by a word at its beginning.
    assert f.ANSWERS_AT % f.WORD_LENGTH == f.ANSWER_LENGTH % f.WORD_LENGTH == 0


@given(VALUES)
def test_a_value_comes_back_from_its_word(value: int) -> None:
    assert 0 < f.word(value) < 1 << 64
    assert f.value_of(f.word(value)) == value


@given(VALUES, st.integers(0, 7), st.integers(1, 255))
def test_a_word_with_one_octet_changed_does_not_check(value: int, place: int, flips: int) -> None:
    octets = bytearray(f.word(value).to_bytes(8, "big"))
    octets[place] ^= flips

    with pytest.raises(StoreDamaged):
        f.value_of(int.from_bytes(octets, "big"))


def test_no_word_is_all_zero() -> None:
    with pytest.raises(StoreDamaged):
        f.value_of(0)


@given(ESTABLISHED)
def test_what_never_changes_comes_back_or_does_not_fit(established: f.Established) -> None:
    content = f.encode_established(established)

    if content is not None:
        assert len(content) == f.CONTENT_LENGTH
        assert f.parse_established(content) == established


def certified(names: int, intermediates: int) -> Identity:
    """What a chain proved, with names of so many characters for tenant and device together."""
    tenant, device = "t" * 57, "d" * (names - 57)
    anchor = bytes(range(32))
    fingerprint = bytes.fromhex("0123456789abcdef")
    path = b"i" * 8 + b"s" * 8 + fingerprint + b"above" * 24
    path = path[: 24 * intermediates] + anchor[:8] + path[24 * intermediates + 8 :]
    return Identity(
        Tenant(tenant),
        DeviceId(device),
        Method.X509,
        "sha256:0123456789abcdef",
        anchor,
        2e9,
        device,
        path[: 24 * (intermediates + 1)],
    )


@pytest.mark.parametrize(
    ("names", "cid_length", "intermediates"),
    [(121, 0, 0), (113, 8, 0), (97, 0, 1), (89, 8, 1), (65, 8, 2)],
)
def test_what_is_promised_to_fit_fits(names: int, cid_length: int, intermediates: int) -> None:
    (key_block_length,) = {s.key_block_length for s in SUITES.values() if s.key_length == 16}
    identity = certified(names, intermediates)
    largest = f.Established(
        id=bytes(8),
        identity=identity,
        suite=0xC0AE,
        key_block=bytes(key_block_length),
        received_cid=bytes(8),
        sent_cid=bytes(cid_length),
        max_plaintext=1200,
    )
    content = f.encode_established(largest)

    assert content is not None
    assert f.parse_established(content) == largest
    room = len(content) - len(content.rstrip(b"\0"))
    assert room < 16
    assert f.encode_established(replace(largest, sent_cid=bytes(cid_length + 16))) is None


def test_a_field_that_is_too_long_for_its_length_does_not_fit() -> None:
    assert f.encode_established(replace(established(1), sent_cid=bytes(256))) is None


def test_keys_are_in_no_repr() -> None:
    shown = repr(replace(established(2), key_block=b"secret-key-block"))

    assert "secret" not in shown
    assert "sensor-2" in shown


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=f.MAX_ANSWER))
def test_an_answer_comes_back(message_id: int, at: int, octets: bytes) -> None:
    body = f.ANSWER_BODY.pack(at, message_id, len(octets), octets)
    entry = f.CHECKSUM.pack(zlib.crc32(body)) + body

    assert f.parse_answer(entry) == f.Answer(message_id, at, octets)
    for place in range(len(entry)):
        damaged = bytearray(entry)
        damaged[place] ^= 1
        assert f.parse_answer(bytes(damaged)) is None


def test_there_is_no_answer_where_nothing_was_written() -> None:
    assert f.parse_answers(bytes(f.ANSWER_COUNT * f.ANSWER_LENGTH)) == ()


def test_a_path_has_but_two_copies() -> None:
    slot = f.word(1).to_bytes(8, sys.byteorder) + f.encode_slot(0, 63, 0, bytes(28), bytes(280))
    assert f.parse_slot(slot).is_proven
    third = slot[:32] + f.word(4).to_bytes(8, sys.byteorder) + slot[40:]

    with pytest.raises(StoreDamaged, match="two copies"):
        f.parse_slot(third)
