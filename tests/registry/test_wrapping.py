"""Secrets encrypted at rest and bound to whose they are, and keys for what is kept elsewhere."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from coapgate.errors import RegistryError
from coapgate.registry.wrapping import Keyring, WrappingKey
from tests.registry.values import KEY_1

OLD = WrappingKey(b"o" * 32)
NEW = WrappingKey(b"n" * 32)

OWNER = ("default", "sensor-1", b"identity")


def test_a_secret_opens_for_its_owner() -> None:
    keyring = Keyring([NEW])

    wrapped = keyring.wrap(KEY_1, *OWNER)

    assert keyring.unwrap(wrapped, *OWNER) == KEY_1
    assert KEY_1 not in wrapped


def test_a_wrapped_secret_says_its_version_and_its_key() -> None:
    wrapped = Keyring([NEW]).wrap(KEY_1, *OWNER)

    assert wrapped[:1] == b"\x01"
    assert wrapped[1:9] == NEW.id
    assert len(wrapped) == 1 + 8 + 12 + len(KEY_1) + 16


def test_no_nonce_is_used_twice() -> None:
    keyring = Keyring([NEW])

    assert len({keyring.wrap(KEY_1, *OWNER)[9:21] for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "other",
    [
        ("default", "sensor-2", b"identity"),
        ("acme", "sensor-1", b"identity"),
        ("default", "sensor-1", b"identitz"),
        # The same octets in a row, cut elsewhere: what the lengths are for.
        ("defaults", "ensor-1", b"identity"),
        ("default", "sensor-1i", b"dentity"),
        ("default", "sensor-", b"1identity"),
    ],
)
def test_a_secret_does_not_open_for_another(other: tuple[str, str, bytes]) -> None:
    keyring = Keyring([NEW])
    wrapped = keyring.wrap(KEY_1, *OWNER)

    with pytest.raises(RegistryError, match="was altered"):
        keyring.unwrap(wrapped, *other)


def test_an_altered_or_cut_secret_does_not_open() -> None:
    keyring = Keyring([NEW])
    wrapped = keyring.wrap(KEY_1, *OWNER)

    for place in range(len(wrapped)):
        altered = bytearray(wrapped)
        altered[place] ^= 1
        with pytest.raises(RegistryError):
            keyring.unwrap(bytes(altered), *OWNER)
        with pytest.raises(RegistryError):
            keyring.unwrap(wrapped[:place], *OWNER)


def test_the_newest_key_wraps_and_the_older_ones_still_open() -> None:
    wrapped = Keyring([OLD]).wrap(KEY_1, *OWNER)
    both = Keyring([OLD, NEW])

    assert both.unwrap(wrapped, *OWNER) == KEY_1
    assert both.wrap(KEY_1, *OWNER)[1:9] == NEW.id
    assert both.newest == NEW.id
    assert both.holds(OLD.id)
    assert not Keyring([NEW]).holds(OLD.id)
    assert Keyring().newest is None


def test_a_secret_of_another_key_file_says_so() -> None:
    wrapped = Keyring([OLD]).wrap(KEY_1, *OWNER)
    keyring = Keyring([NEW])

    assert not keyring.knows(wrapped)
    with pytest.raises(RegistryError, match="not encrypted with any key of the key file"):
        keyring.unwrap(wrapped, *OWNER)


def test_a_key_has_an_id_of_its_own_and_no_repr() -> None:
    assert OLD.id != NEW.id
    assert len(OLD.id) == 8
    assert "oooo" not in repr(OLD)
    assert WrappingKey.generate().key != WrappingKey.generate().key


def test_a_derived_key_is_hkdf_sha256_of_the_key_its_salt_and_its_purpose() -> None:
    """RFC 5869, written out: what is encrypted under it must open in every later version."""
    extracted = hmac.digest(b"salt", NEW.key, hashlib.sha256)
    expanded = hmac.digest(extracted, b"purpose" + b"\x01", hashlib.sha256)

    assert Keyring([NEW]).derive(NEW.id, b"salt", b"purpose") == expanded


def test_another_key_salt_or_purpose_derives_another_key() -> None:
    keyring = Keyring([OLD, NEW])

    derived = {
        keyring.derive(key_id, salt, purpose)
        for key_id in (OLD.id, NEW.id)
        for salt in (b"salt", b"other")
        for purpose in (b"purpose", b"other")
    }

    assert len(derived) == 8
    assert {len(key) for key in derived if key is not None} == {32}
    assert not derived & {OLD.key, NEW.key}


def test_nothing_is_derived_from_a_key_that_is_not_there() -> None:
    assert Keyring([NEW]).derive(OLD.id, b"salt", b"purpose") is None
    assert Keyring([NEW]).derive(b"", b"salt", b"purpose") is None
    assert Keyring().derive(NEW.id, b"salt", b"purpose") is None
