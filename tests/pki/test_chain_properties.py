"""Whatever octets a peer calls certificates: a verdict, and never any other error."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgate.errors import CertificateError, Refused
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, TrustAnchor, is_name
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.chains import ChainVerifier
from coapgate.pki.factory import AUTHORITY, DEVICE, FactoryCa
from tests.pki import der

WALL = 1_800_000_000.0

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Factory:
    """A root, one device beneath an intermediate, and who verifies it."""

    def __init__(self, key: Key) -> None:
        self.key = key
        # An extension of every kind that is read, so that changes reach each.
        names = x509.NameConstraints([x509.DNSName("acme.example")], None)
        authority = replace(AUTHORITY, path_length=1, extensions=((names, False),))
        name = x509.UniformResourceIdentifier("urn:dev:7")
        root = FactoryCa.create("Acme Root", key=key, wall=WALL)
        factory = root.intermediate("Acme Factory", key=key, profile=authority)
        profile = replace(DEVICE, alternative_names=(name,))
        self.chain = factory.issue_device("sensor-7", profile=profile).chain
        self.plain = root.intermediate("Plain", key=key).issue_device("sensor-7").chain
        certificate = root.certificate.public_bytes(serialization.Encoding.DER)
        self.verifiers = [
            ChainVerifier((TrustAnchor("a", DEFAULT_TENANT, bytes(32), certificate, source),))
            for source in DeviceIdSource
        ]

    def judge(self, chain: tuple[bytes, ...]) -> None:
        """Whatever is accepted has a usable value; whatever is not is Refused."""
        for verifier in self.verifiers:
            with contextlib.suppress(Refused):
                verified = verifier.verify(chain, WALL)
                assert is_name(verified.value)
                assert verified.fingerprint == hashlib.sha256(chain[0]).digest()


FACTORIES = [
    Factory(ec.generate_private_key(ec.SECP256R1())),
    Factory(ed25519.Ed25519PrivateKey.generate()),
]


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[float, int]]:
    """A few octets to be changed: where, as a fraction of the whole, and into what."""
    places = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    return draw(st.lists(places, min_size=1, max_size=4))


def change(octets: bytes, places: list[tuple[float, int]]) -> bytes:
    changed = bytearray(octets)
    for place, octet in places:
        changed[int(place * len(octets))] = octet
    return bytes(changed)


@given(chain=st.lists(st.binary(max_size=600), max_size=12))
def test_any_octets_are_refused(chain: list[bytes]) -> None:
    for factory in FACTORIES:
        for verifier in factory.verifiers:
            with pytest.raises(Refused):
                verifier.verify(chain, WALL)


@given(octets=st.binary(max_size=600))
def test_no_octets_are_a_key(octets: bytes) -> None:
    with pytest.raises(Refused):
        leaf_public_key(octets)


@given(octets=st.binary(max_size=600))
def test_no_octets_are_an_anchor(octets: bytes) -> None:
    with pytest.raises(CertificateError):
        parse_anchor(
            octets,
            name="a",
            tenant=DEFAULT_TENANT,
            device_id_source=DeviceIdSource.CN,
            auto_provision=False,
            wall=WALL,
        )


@settings(max_examples=300)
@given(places=changes(), which=st.integers(0, 1), end=st.integers(0, 900))
def test_a_changed_certificate_is_refused(
    places: list[tuple[float, int]], which: int, end: int
) -> None:
    for factory in FACTORIES:
        for broken in (change(factory.plain[which], places), factory.plain[which][:end]):
            if broken == factory.plain[which]:
                continue
            chain = list(factory.plain)
            chain[which] = broken
            with pytest.raises(Refused):
                factory.verifiers[0].verify(chain, WALL)


@settings(max_examples=500)
@given(places=changes(), which=st.integers(0, 1))
def test_a_changed_certificate_that_its_authority_signed_gets_a_verdict(
    places: list[tuple[float, int]], which: int
) -> None:
    for factory in FACTORIES:
        for good in (factory.chain, factory.plain):
            odd = der.signed(change(der.to_be_signed(good[which]), places), factory.key)
            with contextlib.suppress(Refused):
                leaf_public_key(odd)
            factory.judge((odd, good[1]) if which == 0 else (good[0], odd))
