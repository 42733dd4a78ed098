"""Signature schemes."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from coapgate.dtls.signatures import SCHEMES, PrivateKey, Scheme, choose

OCTETS = b"everything that was said so far"

KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa.generate_private_key(65537, 2048),
}
SCHEMES_OF = {
    "P-256": (0x0403, 0x0503, 0x0603),
    "P-384": (0x0403, 0x0503, 0x0603),
    "P-521": (0x0403, 0x0503, 0x0603),
    "Ed25519": (0x0807,),
    "RSA": (0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601),
}
FITTING = [(name, code) for name, codes in SCHEMES_OF.items() for code in codes]
NOT_FITTING = [(n, code) for n in KEYS for code in SCHEMES if code not in SCHEMES_OF[n]]

each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: f"{s.code:#06x}")


def test_neither_sha_1_nor_dsa_is_among_the_schemes() -> None:
    assert set(SCHEMES) == {
        *(0x0403, 0x0503, 0x0603),
        *(0x0804, 0x0805, 0x0806),
        *(0x0401, 0x0501, 0x0601),
        0x0807,
    }


@pytest.mark.parametrize(("name", "code"), FITTING)
def test_what_a_scheme_signs_it_verifies(name: str, code: int) -> None:
    scheme, key = SCHEMES[code], KEYS[name]

    signature = scheme.sign(key, OCTETS)

    assert scheme.verify(key.public_key(), signature, OCTETS)
    assert not scheme.verify(key.public_key(), signature, OCTETS + b".")
    assert not scheme.verify(key.public_key(), signature[:-1], OCTETS)
    assert not scheme.verify(key.public_key(), signature + b"\0", OCTETS)
    for other_code in SCHEMES_OF[name]:
        other = SCHEMES[other_code]
        assert other.verify(key.public_key(), signature, OCTETS) == (other is scheme)


@pytest.mark.parametrize(("name", "code"), NOT_FITTING)
def test_the_scheme_must_fit_the_leaf_s_key(name: str, code: int) -> None:
    public = KEYS[name].public_key()

    for other_name, other_code in FITTING:
        if other_code == code:
            signature = SCHEMES[code].sign(KEYS[other_name], OCTETS)
            assert not SCHEMES[code].verify(public, signature, OCTETS)
    for code_of_key in SCHEMES_OF[name]:
        signature = SCHEMES[code_of_key].sign(KEYS[name], OCTETS)
        assert not SCHEMES[code].verify(public, signature, OCTETS)


@each_scheme
@pytest.mark.parametrize("name", KEYS)
def test_octets_that_are_no_signature_are_refused(scheme: Scheme, name: str) -> None:
    public = KEYS[name].public_key()
    sizes = (0, 1, 8, 64, 72, 255, 256, 257, 1020)

    for octet in (b"\0", b"\x30", b"\xff"):
        for size in sizes:
            assert not scheme.verify(public, octet * size, OCTETS)


@pytest.mark.parametrize("signature", ["3006020100020100", "3006020101020101", "300602010002017f"])
def test_a_trivial_ecdsa_signature_is_refused(signature: str) -> None:
    public = KEYS["P-256"].public_key()

    assert not SCHEMES[0x0403].verify(public, bytes.fromhex(signature), OCTETS)


def test_a_signature_of_another_key_of_the_same_kind_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())

    signature = SCHEMES[0x0403].sign(other, OCTETS)

    assert not SCHEMES[0x0403].verify(KEYS["P-256"].public_key(), signature, OCTETS)


def test_rsa_pss_has_a_salt_as_long_as_its_hash() -> None:
    # RFC 8446 section 4.2.3, which TLS 1.2 follows for these code points.
    key = KEYS["RSA"]
    assert isinstance(key, rsa.RSAPrivateKey)
    short = padding.PSS(padding.MGF1(hashes.SHA256()), 16)

    signature = key.sign(OCTETS, short, hashes.SHA256())

    assert not SCHEMES[0x0804].verify(key.public_key(), signature, OCTETS)


def test_an_rsa_key_too_short_for_its_scheme_is_a_refusal_not_an_error() -> None:
    # 1024 bits have no room for a SHA-512 digest and a salt of its length.
    public = rsa.generate_private_key(65537, 1024).public_key()

    for scheme in SCHEMES.values():
        assert not scheme.verify(public, bytes(128), OCTETS)


@pytest.mark.parametrize("name", KEYS)
def test_the_first_of_our_schemes_that_is_offered_and_fits_is_chosen(name: str) -> None:
    key, codes = KEYS[name], SCHEMES_OF[name]

    for first in range(len(codes)):
        offered = (0x0201, *reversed(codes[first:]), 0x0A0A)
        chosen = choose(key, offered)
        assert chosen is SCHEMES[codes[first]]
        assert chosen.verify(key.public_key(), chosen.sign(key, OCTETS), OCTETS)
    assert choose(key, tuple(SCHEMES)) is SCHEMES[codes[0]]


@pytest.mark.parametrize("name", KEYS)
def test_signature_algorithms_that_do_not_fit_our_key_leave_no_scheme(name: str) -> None:
    others = tuple(code for code in SCHEMES if code not in SCHEMES_OF[name])

    assert choose(KEYS[name], others) is None
    assert choose(KEYS[name], ()) is None


def test_absent_signature_algorithms_mean_sha_1_and_leave_no_scheme() -> None:
    assert choose(KEYS["P-256"], None) is None
