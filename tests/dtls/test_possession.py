"""A certificate, and whether its key is held."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from coapgate.dtls.messages import CertificateVerify, encode_certificate
from coapgate.dtls.possession import Possession
from coapgate.dtls.signatures import SCHEMES, PrivateKey, choose
from coapgate.errors import MalformedMessage, Reason, Refused
from coapgate.pki.certificates import leaf_public_key
from tests.dtls.factory import authority, device_certificate

SAID = b"hello and all that"


def sign(key: PrivateKey, octets: bytes, scheme: int | None = None) -> bytes:
    chosen = SCHEMES[scheme] if scheme else choose(key, tuple(SCHEMES))
    assert chosen is not None
    return CertificateVerify(chosen.code, chosen.sign(key, octets)).encode()


def show(chain: tuple[bytes, ...]) -> tuple[Possession, bytes]:
    """A Certificate after SAID, and the transcript with it."""
    body = encode_certificate(chain)
    return Possession(body, len(SAID), leaf_public_key), SAID + body


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "P-521", "Ed25519", "RSA"],
)
def test_every_scheme_that_fits_the_key_proves_possession_and_no_other(key: PrivateKey) -> None:
    chain = authority().issue_device("sensor-1", key=key).chain
    for code, scheme in SCHEMES.items():
        possession, transcript = show(chain)
        fits = isinstance(key.public_key(), scheme.key)
        if fits:
            body = sign(key, transcript + b" more", code)
        else:
            own = choose(key, tuple(SCHEMES))
            assert own is not None
            body = CertificateVerify(code, own.sign(key, transcript + b" more")).encode()

        assert possession.verify(body, transcript + b" more") == chain

        expected = None if fits else Reason.BAD_SIGNATURE
        assert (possession.refusal and possession.refusal.reason) == expected


def test_a_peer_without_certificate_is_refused() -> None:
    possession, _ = show(())

    assert possession.is_empty
    assert possession.refusal is not None
    assert possession.refusal.reason is Reason.NO_CERTIFICATE


def test_a_key_that_may_not_be_used_is_refused_whatever_is_signed() -> None:
    key = rsa.generate_private_key(65537, 1024)
    chain = authority().issue_device("sensor-1", key=key).chain
    possession, transcript = show(chain)

    possession.verify(sign(key, transcript), transcript)

    assert not possession.is_empty
    assert possession.refusal is not None
    assert possession.refusal.reason is Reason.WEAK_KEY


def test_a_signature_over_something_else_or_by_another_key_is_refused() -> None:
    issued = device_certificate()
    stranger = ec.generate_private_key(ec.SECP256R1())
    for body in (
        sign(issued.key, b"something else"),
        sign(stranger, SAID + encode_certificate(issued.chain)),
        CertificateVerify(0x0403, b"no signature").encode(),
        CertificateVerify(0x0203, b"SHA-1 was never offered").encode(),
    ):
        possession, transcript = show(issued.chain)
        possession.verify(body, transcript)
        assert possession.refusal is not None
        assert possession.refusal.reason is Reason.BAD_SIGNATURE


def test_what_does_not_parse_changes_nothing() -> None:
    with pytest.raises(MalformedMessage):
        Possession(b"\0\0\1", 0, leaf_public_key)

    possession, transcript = show(device_certificate().chain)
    with pytest.raises(MalformedMessage):
        possession.verify(b"\4", transcript)
    assert possession.refusal is None


def test_a_certificate_that_cannot_be_read_is_remembered() -> None:
    def unreadable(certificate: bytes) -> ec.EllipticCurvePublicKey:
        raise Refused(Reason.MALFORMED, "not DER")

    possession = Possession(encode_certificate((b"junk",)), 0, unreadable)

    assert possession.refusal is not None
    assert possession.refusal.reason is Reason.MALFORMED
