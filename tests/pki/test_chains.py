"""Chains of certificates: which are accepted, and the reason for which each other is refused."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import DeviceIdSource, Tenant, TrustAnchor
from coapgate.pki.chains import (
    MAX_CERTIFICATES,
    MAX_UNPROVEN_SIZE,
    ChainVerifier,
    VerifiedChain,
    claimed_subject,
    verify_chain,
)
from coapgate.pki.factory import (
    AUTHORITY,
    DAY,
    DEVICE,
    LIFETIME,
    FactoryCa,
    IssuedCertificate,
    PrivateKey,
    Profile,
    common_name,
    key_usage,
)
from coapgate.pki.intermediates import MAX_KNOWN
from tests.peers import require
from tests.pki import der

WALL = 1_800_000_000.0
YEAR_9999 = 253_402_300_799.0

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ANY_PURPOSE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

RSA_1024 = rsa.generate_private_key(65537, 1024)
RSA_2048 = rsa.generate_private_key(65537, 2048)
P224 = ec.generate_private_key(ec.SECP224R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()

UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def create(
    name: str = "Acme Root", *, key: PrivateKey | None = None, profile: Profile = AUTHORITY
) -> FactoryCa:
    return FactoryCa.create(name, key=key, profile=profile, wall=WALL)


def trust(
    ca: FactoryCa,
    name: str = "factory",
    *,
    source: DeviceIdSource = DeviceIdSource.CN,
    tenant: str = "default",
) -> TrustAnchor:
    """An anchor of any certificate, also one that `parse_anchor` would refuse."""
    certificate = ca.certificate.public_bytes(serialization.Encoding.DER)
    key_id = hashlib.sha256(certificate).digest()
    return TrustAnchor(name, Tenant(tenant), key_id, certificate, source)


def refusal(chain: Sequence[bytes], anchors: Sequence[TrustAnchor], wall: float = WALL) -> Reason:
    """The reason for which a chain is refused."""
    with pytest.raises(Refused) as caught:
        verify_chain(chain, anchors, wall)
    return caught.value.reason


def uris(*values: str) -> Profile:
    return replace(
        DEVICE,
        alternative_names=tuple(x509.UniformResourceIdentifier(value) for value in values),
    )


def subject(**attributes: str | tuple[str, ...]) -> x509.Name:
    """A subject: `subject(COMMON_NAME="a", SERIAL_NUMBER=("1", "2"))`."""
    return x509.Name(
        x509.NameAttribute(getattr(NameOID, name), value)
        for name, values in attributes.items()
        for value in ((values,) if isinstance(values, str) else values)
    )


# --- what is accepted


@dataclass(frozen=True)
class Good:
    """A root, and a chain that leads to it."""

    root: FactoryCa
    chain: tuple[bytes, ...]
    wall: float = WALL


def directly(
    key: PrivateKey | None = None, profile: Profile = DEVICE, root: FactoryCa | None = None
) -> Good:
    root = root or create()
    return Good(root, root.issue_device("sensor-7", key=key, profile=profile).chain)


def beneath(*profiles: Profile, root: FactoryCa | None = None) -> Good:
    """A chain through one intermediate for each profile."""
    root = authority = root or create()
    for number, profile in enumerate(profiles, 1):
        authority = authority.intermediate(f"Acme Factory {number}", profile=profile)
    return Good(root, authority.issue_device("sensor-7").chain)


def with_pss(algorithm: hashes.SHA256 | hashes.SHA224 | None = None) -> Good:
    algorithm = algorithm or hashes.SHA256()
    root = create(key=RSA_2048)
    issued = root.issue_device("sensor-7")
    leaf = x509.load_der_x509_certificate(issued.chain[0])
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .public_key(leaf.public_key())
        .serial_number(leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    signed = builder.sign(
        RSA_2048,
        algorithm,
        rsa_padding=padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH),
    )
    return Good(root, (signed.public_bytes(serialization.Encoding.DER),))


def renewed() -> Good:
    """An expired intermediate and, with the same name and key, its successor."""
    root = create()
    old = root.intermediate("Acme Factory", profile=replace(AUTHORITY, not_after=WALL - DAY))
    new = root.intermediate("Acme Factory", key=old.key)
    return Good(root, (*old.issue_device("sensor-7").chain, *new.chain))


def rekeyed() -> Good:
    """Two intermediates of one name with different keys; the second issued the device's."""
    root = create()
    old, new = root.intermediate("Acme Factory"), root.intermediate("Acme Factory")
    leaf = new.issue_device("sensor-7").chain[0]
    return Good(root, (leaf, *old.chain, *new.chain))


def cross_signed() -> Good:
    """The device's root is unknown here, but signed by one that is not."""
    old, new = create("Old Root"), create("New Root")
    crossed = old.sign(old.certificate.subject, old.key.public_key(), AUTHORITY)
    bridge = new.sign(crossed.subject, crossed.public_key(), AUTHORITY)  # type: ignore[arg-type]
    device = old.intermediate("Acme Factory").issue_device("sensor-7")
    encoding = serialization.Encoding.DER
    sent = (old.certificate.public_bytes(encoding), bridge.public_bytes(encoding))
    return Good(new, (*device.chain, *sent))


def self_issued() -> Good:
    """The new key of the root, signed with its old one (RFC 4210 4.4)."""
    root = create(profile=replace(AUTHORITY, path_length=1))
    again = root.intermediate("Acme Root")
    return Good(root, again.issue_device("sensor-7").chain)


def constrained() -> Good:
    constraints = x509.NameConstraints([x509.DNSName("acme.example")], None)
    return beneath(replace(AUTHORITY, extensions=((constraints, True),)))


def out_of_order() -> Good:
    good = beneath(AUTHORITY, AUTHORITY, AUTHORITY)
    return replace(good, chain=(good.chain[0], *reversed(good.chain[1:])))


def with_root() -> Good:
    good = beneath(AUTHORITY)
    sent = good.root.certificate.public_bytes(serialization.Encoding.DER)
    return replace(good, chain=(*good.chain, sent))


def with_junk() -> Good:
    """Certificates that lead nowhere, each of which would be refused if it were on the path."""
    good = beneath(AUTHORITY)
    weak = create("Weak", key=RSA_1024).issue_device("x")
    expired = create().intermediate(
        "Acme Factory 1", profile=replace(AUTHORITY, not_after=WALL - DAY)
    )
    junk = (*weak.chain, *expired.issue_device("y").chain, b"no certificate", good.chain[0])
    return replace(good, chain=(good.chain[0], *junk, *good.chain[1:]))


GOOD: dict[str, Callable[[], Good]] = {
    "directly under the root": directly,
    "through an intermediate": lambda: beneath(AUTHORITY),
    "through three intermediates": lambda: beneath(AUTHORITY, AUTHORITY, AUTHORITY),
    "as long as it may be": lambda: beneath(*[AUTHORITY] * (MAX_CERTIFICATES - 1)),
    "path lengths that suffice": lambda: beneath(
        replace(AUTHORITY, path_length=1),
        replace(AUTHORITY, path_length=0),
        root=create(profile=replace(AUTHORITY, path_length=2)),
    ),
    "nothing but a CN": lambda: directly(profile=Profile(ca=None, key_identifiers=False)),
    "no purposes": lambda: directly(profile=replace(DEVICE, purposes=())),
    "both purposes": lambda: directly(profile=replace(DEVICE, purposes=(SERVER, CLIENT))),
    "any purpose": lambda: directly(profile=replace(DEVICE, purposes=(ANY_PURPOSE,))),
    "an authority with purposes": lambda: beneath(replace(AUTHORITY, purposes=(CLIENT,))),
    "without end": lambda: directly(profile=replace(DEVICE, not_after=YEAR_9999)),
    "in its first second": lambda: directly(profile=replace(DEVICE, not_before=WALL)),
    "in its last second": lambda: directly(profile=replace(DEVICE, not_after=WALL)),
    "an unknown extension": lambda: directly(
        profile=replace(DEVICE, extensions=((UNKNOWN, False),))
    ),
    "P-384": lambda: directly(ec.generate_private_key(ec.SECP384R1())),
    "P-521": lambda: directly(ec.generate_private_key(ec.SECP521R1())),
    "Ed25519": lambda: directly(ED25519),
    "RSA-2048": lambda: directly(RSA_2048),
    "RSA-4096": lambda: directly(rsa.generate_private_key(65537, 4096)),
    "SHA-384": lambda: directly(profile=replace(DEVICE, signature_hash=hashes.SHA384())),
    "SHA-512": lambda: directly(profile=replace(DEVICE, signature_hash=hashes.SHA512())),
    "a P-384 root": lambda: directly(root=create(key=ec.generate_private_key(ec.SECP384R1()))),
    "a P-521 root": lambda: directly(root=create(key=ec.generate_private_key(ec.SECP521R1()))),
    "an RSA root": lambda: beneath(AUTHORITY, root=create(key=RSA_2048)),
    "an Ed25519 root": lambda: beneath(AUTHORITY, AUTHORITY, root=create(key=ED25519)),
    "an RSA-PSS signature": with_pss,
    "out of order": out_of_order,
    "with its root": with_root,
    "with junk": with_junk,
    "a renewed intermediate": renewed,
    "an intermediate with a new key": rekeyed,
    "cross-signed": cross_signed,
    "a self-issued intermediate": self_issued,
    "name constraints that hold": constrained,
}


@pytest.mark.parametrize("build", GOOD.values(), ids=GOOD.keys())
def test_a_good_chain_proves_its_device(build: Callable[[], Good]) -> None:
    good = build()
    anchor = trust(good.root)

    verified = verify_chain(good.chain, (anchor,), good.wall)

    assert verified.anchor == anchor
    assert verified.value == "sensor-7"
    assert verified.fingerprint == hashlib.sha256(good.chain[0]).digest()
    assert verified.not_after >= WALL


OPENSSL_DIFFERS = {
    "any purpose",  # it wants clientAuth by name
    "in its last second",  # it takes notAfter to be exclusive
    "cross-signed",  # it takes the self-signed one and does not look for another
}


@pytest.mark.parametrize("name", sorted(GOOD.keys() - OPENSSL_DIFFERS))
def test_openssl_accepts_them_too(name: str, tmp_path: Path) -> None:
    good = GOOD[name]()
    root, leaf, sent = tmp_path / "root.pem", tmp_path / "leaf.pem", tmp_path / "sent.pem"
    root.write_bytes(good.root.certificate_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    readable = tuple(each for each in good.chain[1:] if each.startswith(b"\x30"))
    leaf.write_bytes(IssuedCertificate(good.chain[:1], key).chain_pem)
    sent.write_bytes(IssuedCertificate(readable, key).chain_pem)
    command = [require("openssl"), "verify", "-purpose", "sslclient", "-attime", str(int(WALL))]
    command += ["-CAfile", str(root), *(["-untrusted", str(sent)] if readable else [])]

    finished = subprocess.run([*command, str(leaf)], capture_output=True, check=False)

    assert finished.returncode == 0, finished.stderr


def test_a_leaf_alone_suffices_with_its_intermediate_as_anchor() -> None:
    factory = create().intermediate("Acme Factory 1")
    leaf, intermediate = factory.issue_device("sensor-7").chain
    anchor = trust(factory)

    assert verify_chain((leaf,), (anchor,), WALL).value == "sensor-7"
    assert verify_chain((leaf, intermediate), (anchor,), WALL).value == "sensor-7"
    assert verify_chain((leaf,), (trust(create()), anchor), WALL).anchor == anchor


def test_two_anchors_of_one_subject_are_told_apart_by_their_keys() -> None:
    roots = [create("Root CA") for _ in range(12)]
    anchors = [trust(root, f"tenant-{number}") for number, root in enumerate(roots)]

    for number, root in enumerate(roots):
        chain = root.intermediate("Factory").issue_device("sensor-7").chain
        assert verify_chain(chain, anchors, WALL).anchor == anchors[number]
        assert verify_chain(root.issue_device("a").chain, anchors, WALL).anchor == anchors[number]


def test_an_expired_anchor_does_not_hide_another_of_its_subject() -> None:
    old = create(profile=replace(AUTHORITY, not_after=WALL - DAY))
    new = create(key=old.key)
    chain = old.issue_device("sensor-7").chain

    assert verify_chain(chain, (trust(old, "old"), trust(new, "new")), WALL).anchor.name == "new"


def test_a_chain_ends_with_the_first_certificate_of_its_path_to_end() -> None:
    root = create()
    short = root.intermediate("Factory", profile=replace(AUTHORITY, not_after=WALL + DAY))

    assert verify_chain(short.issue_device("a").chain, (trust(root),), WALL).not_after == WALL + DAY
    direct = verify_chain(root.issue_device("a").chain, (trust(root),), WALL)
    assert direct.not_after == WALL + LIFETIME


# --- what is refused


@dataclass(frozen=True)
class Bad:
    """A chain to a root, and the reason for which it is refused."""

    root: FactoryCa
    chain: tuple[bytes, ...]
    reason: Reason


def leaf(
    reason: Reason,
    profile: Profile = DEVICE,
    key: PrivateKey | None = None,
    name: x509.Name | None = None,
) -> Callable[[FactoryCa], Bad]:
    """A device's certificate that is odd."""
    return lambda root: Bad(
        root, root.issue_device("sensor-7", subject=name, key=key, profile=profile).chain, reason
    )


def intermediate(
    reason: Reason, profile: Profile = AUTHORITY, key: PrivateKey | None = None
) -> Callable[[FactoryCa], Bad]:
    """A good device beneath an intermediate that is odd."""
    return lambda root: Bad(
        root,
        root.intermediate("Acme Factory", key=key, profile=profile).issue_device("sensor-7").chain,
        reason,
    )


def signing_key(ca: FactoryCa) -> ec.EllipticCurvePrivateKey:
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    return ca.key


def leaf_with_sha1(root: FactoryCa) -> Bad:
    chain = root.issue_device("sensor-7").chain
    return Bad(root, (der.signed_with_sha1(chain[0], signing_key(root)),), Reason.WEAK_SIGNATURE)


def intermediate_with_sha1(root: FactoryCa) -> Bad:
    device, factory = root.intermediate("Acme Factory").issue_device("sensor-7").chain
    weak = der.signed_with_sha1(factory, signing_key(root))
    return Bad(root, (device, weak), Reason.WEAK_SIGNATURE)


def leaf_of_version_1(root: FactoryCa) -> Bad:
    chain = root.issue_device("sensor-7").chain
    return Bad(root, (der.version_1(chain[0], signing_key(root)),), Reason.MALFORMED)


def intermediate_of_version_1(root: FactoryCa) -> Bad:
    device, factory = root.intermediate("Acme Factory").issue_device("sensor-7").chain
    return Bad(root, (device, der.version_1(factory, signing_key(root))), Reason.MALFORMED)


def device_as_issuer(root: FactoryCa) -> Bad:
    """A device that issues certificates with its own."""
    device = root.issue_device("sensor-1")
    certificate = x509.load_der_x509_certificate(device.chain[0])
    forger = FactoryCa(certificate, device.key, WALL, device.chain)
    return Bad(root, forger.issue_device("sensor-7").chain, Reason.WRONG_USAGE)


def path_too_long(root: FactoryCa) -> Bad:
    upper = root.intermediate("Upper", profile=replace(AUTHORITY, path_length=0))
    return Bad(root, upper.intermediate("Lower").issue_device("sensor-7").chain, Reason.PATH_LENGTH)


def path_too_long_for_the_anchor(root: FactoryCa) -> Bad:
    strict = create(profile=replace(AUTHORITY, path_length=0))
    chain = strict.intermediate("Factory").issue_device("sensor-7").chain
    return Bad(strict, chain, Reason.PATH_LENGTH)


def self_issued_too_often(root: FactoryCa) -> Bad:
    strict = create(profile=replace(AUTHORITY, path_length=0))
    chain = strict.intermediate("Acme Root").issue_device("sensor-7").chain
    return Bad(strict, chain, Reason.PATH_LENGTH)


def extension_twice(root: FactoryCa) -> Bad:
    def twice(fields: list[bytes]) -> list[bytes]:
        extensions = der.elements(der.content(der.content(fields[-1])))
        again = der.element(der.SEQUENCE, b"".join([*extensions, extensions[0]]))
        return [*fields[:-1], der.element(der.EXTENSIONS, again)]

    chain = root.issue_device("sensor-7").chain
    odd = der.changed(chain[0], signing_key(root), twice)
    return Bad(root, (odd,), Reason.MALFORMED)


def missing_intermediate(root: FactoryCa) -> Bad:
    chain = root.intermediate("Acme Factory").issue_device("sensor-7").chain
    return Bad(root, chain[:1], Reason.UNTRUSTED)


def foreign(root: FactoryCa) -> Bad:
    chain = create("Another Root").issue_device("sensor-7").chain
    return Bad(root, chain, Reason.UNTRUSTED)


def namesake(root: FactoryCa) -> Bad:
    chain = create().intermediate("Acme Factory").issue_device("sensor-7").chain
    return Bad(root, chain, Reason.UNTRUSTED)


def tampered(root: FactoryCa) -> Bad:
    chain = root.issue_device("sensor-7").chain
    return Bad(root, (chain[0].replace(b"sensor-7", b"sensor-8"),), Reason.UNTRUSTED)


def self_signed(root: FactoryCa) -> Bad:
    return Bad(root, create("sensor-7", profile=DEVICE).issue_device("x").chain, Reason.UNTRUSTED)


def the_anchor_itself(root: FactoryCa) -> Bad:
    sent = root.certificate.public_bytes(serialization.Encoding.DER)
    return Bad(root, (sent,), Reason.WRONG_USAGE)


def expired_anchor(root: FactoryCa) -> Bad:
    old = create(profile=replace(AUTHORITY, not_after=WALL - 1))
    return Bad(old, old.issue_device("sensor-7").chain, Reason.EXPIRED)


def hash_224(profile: Profile) -> Profile:
    return replace(profile, signature_hash=hashes.SHA224())


HUGE_RSA = rsa.RSAPublicNumbers(65537, (1 << 8191) | 1).public_key()
SLOW_RSA = rsa.RSAPublicNumbers((1 << 2000) | 1, RSA_2048.public_key().public_numbers().n)


def key_alone(key: object) -> Callable[[FactoryCa], Bad]:
    """A device's certificate for a public key nobody here has the private half of."""
    return lambda root: Bad(
        root,
        (
            root.sign(common_name("sensor-7"), key, DEVICE).public_bytes(  # type: ignore[arg-type]
                serialization.Encoding.DER
            ),
        ),
        Reason.WEAK_KEY,
    )


def slow_intermediate(root: FactoryCa) -> Bad:
    """An authority whose key would take a thousand times as long to verify with."""
    odd = root.sign(common_name("Acme Factory"), SLOW_RSA.public_key(), AUTHORITY)
    device = create("Acme Factory").issue_device("sensor-7").chain
    return Bad(root, (*device, odd.public_bytes(serialization.Encoding.DER)), Reason.WEAK_KEY)


NAMES = x509.NameConstraints([x509.DNSName("acme.example")], None)
POLICIES = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)])

BAD: dict[str, Callable[[FactoryCa], Bad]] = {
    "expired": leaf(Reason.EXPIRED, replace(DEVICE, not_after=WALL - 1)),
    "expired intermediate": intermediate(Reason.EXPIRED, replace(AUTHORITY, not_after=WALL - 1)),
    "expired anchor": expired_anchor,
    "not yet valid": leaf(Reason.NOT_YET_VALID, replace(DEVICE, not_before=WALL + 1)),
    "intermediate not yet valid": intermediate(
        Reason.NOT_YET_VALID, replace(AUTHORITY, not_before=WALL + 1)
    ),
    "a server's certificate": leaf(Reason.WRONG_USAGE, replace(DEVICE, purposes=(SERVER,))),
    "an authority for servers": intermediate(
        Reason.WRONG_USAGE, replace(AUTHORITY, purposes=(SERVER,))
    ),
    "an authority as device": leaf(Reason.WRONG_USAGE, replace(DEVICE, ca=True)),
    "a device that may sign certificates": leaf(
        Reason.WRONG_USAGE,
        replace(DEVICE, usage=key_usage(digital_signature=True, key_cert_sign=True)),
    ),
    "a device that must not sign": leaf(Reason.WRONG_USAGE, replace(DEVICE, usage=key_usage())),
    "an intermediate that is no authority": intermediate(
        Reason.WRONG_USAGE, replace(AUTHORITY, ca=False)
    ),
    "an intermediate without constraints": intermediate(
        Reason.WRONG_USAGE, replace(AUTHORITY, ca=None)
    ),
    "an intermediate that must not sign": intermediate(
        Reason.WRONG_USAGE, replace(AUTHORITY, usage=key_usage(digital_signature=True))
    ),
    "a device as issuer": device_as_issuer,
    "the anchor itself": the_anchor_itself,
    "path too long": path_too_long,
    "path too long for the anchor": path_too_long_for_the_anchor,
    "path too long with a self-issued one": self_issued_too_often,
    "SHA-1": leaf_with_sha1,
    "intermediate with SHA-1": intermediate_with_sha1,
    "SHA-224": leaf(Reason.WEAK_SIGNATURE, hash_224(DEVICE)),
    "intermediate with SHA-224": intermediate(Reason.WEAK_SIGNATURE, hash_224(AUTHORITY)),
    "P-224": leaf(Reason.WEAK_KEY, key=P224),
    "intermediate with P-224": intermediate(Reason.WEAK_KEY, key=P224),
    "secp256k1": leaf(Reason.WEAK_KEY, key=ec.generate_private_key(ec.SECP256K1())),
    "RSA-1024": leaf(Reason.WEAK_KEY, key=RSA_1024),
    "intermediate with RSA-1024": intermediate(Reason.WEAK_KEY, key=RSA_1024),
    "RSA-8192": key_alone(HUGE_RSA),
    "RSA with a long exponent": key_alone(SLOW_RSA.public_key()),
    "intermediate with a long exponent": slow_intermediate,
    "Ed448": key_alone(ed448.Ed448PrivateKey.generate().public_key()),
    "version 1": leaf_of_version_1,
    "intermediate of version 1": intermediate_of_version_1,
    "an extension twice": extension_twice,
    "no CN": leaf(Reason.MALFORMED, name=subject(ORGANIZATION_NAME="Acme")),
    "no subject": leaf(Reason.MALFORMED, name=x509.Name([])),
    "two CNs": leaf(Reason.MALFORMED, name=common_name("sensor-7", "sensor-8")),
    "a CN with a slash": leaf(Reason.MALFORMED, name=common_name("a/b")),
    "a CN with a wildcard": leaf(Reason.MALFORMED, name=common_name("+")),
    "a CN with a newline": leaf(Reason.MALFORMED, name=common_name("sensor-7\n")),
    "a CN with NUL": leaf(Reason.MALFORMED, name=common_name("sensor-7\x00")),
    "a CN that begins with $": leaf(Reason.MALFORMED, name=common_name("$gateway")),
    "a CN of another script": leaf(Reason.MALFORMED, name=common_name("sensor-\u0667")),
    "a critical extension": leaf(Reason.UNTRUSTED, replace(DEVICE, extensions=((UNKNOWN, True),))),
    "an intermediate with one": intermediate(
        Reason.UNTRUSTED, replace(AUTHORITY, extensions=((UNKNOWN, True),))
    ),
    "critical policies": leaf(Reason.UNTRUSTED, replace(DEVICE, extensions=((POLICIES, True),))),
    "a missing intermediate": missing_intermediate,
    "an unknown root": foreign,
    "a root of the same name": namesake,
    "a changed certificate": tampered,
    "a self-signed one": self_signed,
}


@pytest.mark.parametrize("build", BAD.values(), ids=BAD.keys())
def test_every_refusal_has_its_own_reason(build: Callable[[FactoryCa], Bad]) -> None:
    bad = build(create())

    assert refusal(bad.chain, (trust(bad.root),)) is bad.reason


@pytest.mark.parametrize("build", BAD.values(), ids=BAD.keys())
def test_a_stranger_learns_nothing_about_the_anchors(build: Callable[[FactoryCa], Bad]) -> None:
    # The same certificates from an authority of the same name whose key is not trusted.
    impostor = build(create())

    trusted = FactoryCa.create(
        "Acme Root", profile=replace(AUTHORITY, not_after=WALL - 1), wall=WALL
    )
    assert refusal(impostor.chain, (trust(create()),)) is Reason.UNTRUSTED
    assert refusal(impostor.chain, (trust(trusted),)) is Reason.UNTRUSTED


NEEDS_ECDSA = {
    "SHA-1",
    "SHA-224",
    "an extension twice",
    "intermediate of version 1",
    "intermediate with SHA-1",
    "intermediate with SHA-224",
    "version 1",
}


@pytest.mark.parametrize("name", sorted(BAD.keys() - NEEDS_ECDSA))
def test_an_ed25519_authority_is_judged_alike(name: str) -> None:
    """The verifier does not know such authorities: our own rules have to find everything."""
    bad = BAD[name](create(key=ED25519))

    assert refusal(bad.chain, (trust(bad.root),)) is bad.reason


def test_name_constraints_beneath_an_ed25519_authority_are_not_judged_by_guessing() -> None:
    root = create(key=ED25519)
    odd = root.intermediate("Factory", profile=replace(AUTHORITY, extensions=((NAMES, False),)))

    assert refusal(odd.issue_device("a").chain, (trust(root),)) is Reason.UNTRUSTED


def test_name_constraints_that_do_not_hold_are_refused() -> None:
    root = create()
    factory = root.intermediate("Factory", profile=replace(AUTHORITY, extensions=((NAMES, True),)))
    profile = replace(DEVICE, alternative_names=(x509.DNSName("evil.example"),))

    chain = factory.issue_device("a", profile=profile).chain

    assert refusal(chain, (trust(root),)) is Reason.UNTRUSTED


@pytest.mark.parametrize("key", [RSA_2048, None], ids=["rsa", "p256"])
def test_a_weak_signature_is_told_to_those_alone_who_really_have_one(
    key: PrivateKey | None,
) -> None:
    root, impostor = create(key=key), create(key=RSA_1024)

    issued = root.issue_device("sensor-7", profile=hash_224(DEVICE))
    claimed = impostor.issue_device("sensor-7", profile=hash_224(DEVICE))

    assert refusal(issued.chain, (trust(root),)) is Reason.WEAK_SIGNATURE
    assert refusal(claimed.chain, (trust(root),)) is Reason.UNTRUSTED
    assert refusal(claimed.chain, (trust(create(key=ED25519)),)) is Reason.UNTRUSTED


def test_a_weak_hash_in_an_rsa_pss_signature_is_weak_too() -> None:
    odd = with_pss(hashes.SHA224())

    assert refusal(odd.chain, (trust(odd.root),)) is Reason.WEAK_SIGNATURE
    assert refusal(odd.chain, (trust(create()),)) is Reason.UNTRUSTED


def test_a_signature_of_an_unknown_algorithm_proves_nothing() -> None:
    root = create()
    to_be_signed = der.to_be_signed(root.issue_device("sensor-7").chain[0])
    unknown = der.element(der.SEQUENCE, bytes.fromhex("06032b6571"))  # Ed448
    fields = der.elements(der.content(to_be_signed))
    odd = der.element(der.SEQUENCE, b"".join((*fields[:2], unknown, *fields[3:])))

    chain = (der.signed(odd, signing_key(root), algorithm=unknown),)

    assert refusal(chain, (trust(root),)) is Reason.UNTRUSTED


def with_unreadable_organization(root: FactoryCa, profile: Profile) -> tuple[bytes, ...]:
    """A device whose subject holds an O that is not UTF-8, beside its CN."""
    name = subject(ORGANIZATION_NAME="Acme Works", COMMON_NAME="sensor-7")
    certificate = root.issue_device("", subject=name, profile=profile).chain[0]

    def spoiled(fields: list[bytes]) -> list[bytes]:
        return [field.replace(b"Acme Works", b"Acme\xff\xfeorks") for field in fields]

    return (der.changed(certificate, signing_key(root), spoiled),)


def test_a_name_that_does_not_parse_is_malformed_if_the_anchor_signed_it() -> None:
    root = create()
    chain = with_unreadable_organization(root, DEVICE)
    refused = with_unreadable_organization(root, replace(DEVICE, extensions=((UNKNOWN, True),)))

    assert refusal(chain, (trust(root),)) is Reason.MALFORMED
    assert refusal(chain, (trust(create()),)) is Reason.UNTRUSTED
    # The verifier fails at describing such a certificate when it refuses it.
    assert refusal(refused, (trust(root),)) is Reason.UNTRUSTED


def test_the_first_reason_found_is_told_even_if_another_path_says_less() -> None:
    root, namesake = create(), create()
    expired = root.issue_device("sensor-7", profile=replace(DEVICE, not_after=WALL - 1)).chain

    for anchors in ((trust(root), trust(namesake)), (trust(namesake), trust(root))):
        assert refusal(expired, anchors) is Reason.EXPIRED


def test_no_certificate_and_too_many() -> None:
    root = create()
    chain = root.issue_device("a").chain

    assert refusal((), (trust(root),)) is Reason.NO_CERTIFICATE
    assert refusal(chain * (MAX_CERTIFICATES + 1), (trust(root),)) is Reason.MALFORMED
    assert verify_chain(chain * MAX_CERTIFICATES, (trust(root),), WALL).value == "a"


def test_without_anchors_everything_is_untrusted() -> None:
    assert refusal(create().issue_device("a").chain, ()) is Reason.UNTRUSTED


def test_octets_that_are_no_certificate_are_malformed() -> None:
    root = create()
    device, _ = root.intermediate("Factory").issue_device("a").chain

    assert refusal((b"",), (trust(root),)) is Reason.MALFORMED
    assert refusal((b"\x30\x03\x02\x01\x00",), (trust(root),)) is Reason.MALFORMED
    assert refusal((bytes(100_000),), (trust(root),)) is Reason.MALFORMED
    # The intermediate that would complete the chain does not parse: that is the reason.
    assert refusal((device, b"\x30\x00"), (trust(root),)) is Reason.MALFORMED


def test_what_a_stranger_claims_is_read_for_the_log_if_that_is_no_work() -> None:
    root = create()
    (named,) = root.issue_device("sensor-7").chain
    many = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")] * 100)
    (laborious,) = root.issue_device("x", subject=many).chain

    assert claimed_subject(named) == b"CN=sensor-7"
    assert len(laborious) < MAX_UNPROVEN_SIZE
    assert claimed_subject(laborious) == b""
    assert claimed_subject(b"\x30\x00") == b""
    assert claimed_subject(bytes(100_000)) == b""


def test_a_detail_shows_a_peers_text_escaped_and_cut() -> None:
    root = create()
    chain = root.issue_device("x", subject=common_name("\x1b[31m" + "\u20ac" * 18)).chain

    with pytest.raises(Refused) as caught:
        verify_chain(chain, (trust(root),), WALL)

    assert "\\x1b" in caught.value.detail
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()


# --- which value names the device


@pytest.mark.parametrize(
    ("source", "name", "profile", "value"),
    [
        (DeviceIdSource.CN, subject(COMMON_NAME="a:B.c_d~e-9"), DEVICE, "a:B.c_d~e-9"),
        (DeviceIdSource.CN, subject(COMMON_NAME="x" * 64), DEVICE, "x" * 64),
        (DeviceIdSource.CN, subject(SERIAL_NUMBER="1", COMMON_NAME="a"), uris("urn:b"), "a"),
        (
            DeviceIdSource.SERIAL_NUMBER,
            subject(SERIAL_NUMBER="SN-7", COMMON_NAME="a"),
            DEVICE,
            "SN-7",
        ),
        (DeviceIdSource.SERIAL_NUMBER, subject(SERIAL_NUMBER=("1", "2")), DEVICE, None),
        (DeviceIdSource.SERIAL_NUMBER, subject(COMMON_NAME="a"), DEVICE, None),
        (
            DeviceIdSource.SAN_URI,
            subject(COMMON_NAME="a"),
            uris("urn:dev:mac:1a"),
            "urn:dev:mac:1a",
        ),
        (DeviceIdSource.SAN_URI, x509.Name([]), uris("urn:dev:1"), "urn:dev:1"),
        (DeviceIdSource.SAN_URI, subject(COMMON_NAME="a"), uris("urn:a", "urn:b"), None),
        (DeviceIdSource.SAN_URI, subject(COMMON_NAME="a"), uris("coaps://a/b"), None),
        (DeviceIdSource.SAN_URI, subject(COMMON_NAME="a"), DEVICE, None),
        (
            DeviceIdSource.SAN_URI,
            subject(COMMON_NAME="a"),
            replace(DEVICE, alternative_names=(x509.DNSName("a.example"),)),
            None,
        ),
    ],
)
def test_the_value_that_names_the_device_occurs_exactly_once_and_is_never_rewritten(
    source: DeviceIdSource, name: x509.Name, profile: Profile, value: str | None
) -> None:
    root = create()
    chain = root.issue_device("", subject=name, profile=profile).chain
    anchors = (trust(root, source=source),)

    if value is None:
        assert refusal(chain, anchors) is Reason.MALFORMED
    else:
        assert verify_chain(chain, anchors, WALL).value == value


# --- the verifier as an object


def test_a_verifier_gives_the_same_answer_every_time() -> None:
    root = create()
    verifier = ChainVerifier((trust(root),))
    good = root.intermediate("Factory").issue_device("sensor-7").chain
    impostor = create().intermediate("Factory").issue_device("sensor-7").chain

    for _ in range(3):
        assert isinstance(verifier.verify(good, WALL), VerifiedChain)
        for chain in (impostor, (impostor[0], good[1]), (good[0], impostor[1])):
            with pytest.raises(Refused, match="untrusted"):
                verifier.verify(chain, WALL)
        with pytest.raises(Refused, match="expired"):
            verifier.verify(good, WALL + LIFETIME + DAY)


def test_what_is_known_of_intermediates_is_not_known_of_leaves_times_or_positions() -> None:
    root = create()
    upper = root.intermediate("Upper", profile=replace(AUTHORITY, path_length=1))
    lower = upper.intermediate("Lower", profile=replace(AUTHORITY, not_after=WALL + DAY))
    verifier = ChainVerifier((trust(root),))
    good = lower.issue_device("sensor-7").chain
    assert verifier.verify(good, WALL).value == "sensor-7"
    lowest = lower.intermediate("Lowest")
    forged = replace(lower, key=create().key).issue_device("sensor-7").chain
    odd = replace(DEVICE, extensions=((UNKNOWN, True),))

    assert verifier.verify(lower.issue_device("sensor-8").chain, WALL + DAY).value == "sensor-8"
    for chain, wall, reason in (
        (forged, WALL, "untrusted"),
        (lower.issue_device("sensor-7", profile=odd).chain, WALL, "untrusted"),
        (good, WALL + DAY + 1, "expired"),
        (lowest.issue_device("sensor-7").chain, WALL, "path_length"),
        (good[1:], WALL, "wrong_usage"),
        ((*good[:2], create("Acme Root").intermediate("Upper").chain[0]), WALL, "untrusted"),
        (good[:2], WALL, "untrusted"),
    ):
        for _ in range(2):
            with pytest.raises(Refused, match=reason):
                verifier.verify(chain, wall)


def test_known_intermediates_prove_nothing_to_another_anchor() -> None:
    root, other = create("Root CA"), create("Root CA")
    verifier = ChainVerifier((trust(root, "one"), trust(other, "other")))
    factory = root.intermediate("Factory")
    twin = replace(
        factory,
        chain=(
            other.sign(
                factory.certificate.subject, signing_key(factory).public_key(), AUTHORITY
            ).public_bytes(serialization.Encoding.DER),
        ),
    )

    for _ in range(2):
        assert verifier.verify(factory.issue_device("a").chain, WALL).anchor.name == "one"
        assert verifier.verify(twin.issue_device("a").chain, WALL).anchor.name == "other"


@pytest.mark.parametrize("place", ["nearest", "above", "the anchor"])
def test_name_constraints_are_judged_for_each_leaf_however_often_they_were_seen(place: str) -> None:
    constrained = replace(AUTHORITY, extensions=((NAMES, True),))
    root = create(profile=constrained if place == "the anchor" else AUTHORITY)
    upper = root.intermediate("Upper", profile=constrained if place == "above" else AUTHORITY)
    lower = upper.intermediate("Lower", profile=constrained if place == "nearest" else AUTHORITY)
    verifier = ChainVerifier((trust(root),))
    evil = replace(DEVICE, alternative_names=(x509.DNSName("evil.example"),))

    for _ in range(3):
        assert verifier.verify(lower.issue_device("a").chain, WALL).value == "a"
        with pytest.raises(Refused, match="untrusted"):
            verifier.verify(lower.issue_device("a", profile=evil).chain, WALL)


def test_any_number_of_intermediates_is_served() -> None:
    root = create()
    verifier = ChainVerifier((trust(root),))

    for number in range(MAX_KNOWN + 2):
        chain = root.intermediate(f"Factory {number}").issue_device("sensor-7").chain
        assert verifier.verify(chain, WALL).value == "sensor-7"


@pytest.mark.parametrize("key", [P224, RSA_1024], ids=["p224", "rsa1024"])
def test_an_anchor_with_a_weak_key_makes_no_verifier(key: PrivateKey) -> None:
    with pytest.raises(CertificateError, match="'factory' is not accepted") as caught:
        ChainVerifier((trust(create(key=key)),))

    assert "coapgate anchor remove factory" in caught.value.hint


def test_an_anchor_that_does_not_parse_makes_no_verifier() -> None:
    with pytest.raises(CertificateError, match="'factory' cannot be read"):
        ChainVerifier((replace(trust(create()), certificate=b"\x30\x00"),))


def cost(chain: Sequence[bytes], anchors: Sequence[TrustAnchor]) -> float:
    """CPU seconds of judging a chain at first sight, the least of a few runs."""
    found = []
    for _ in range(5):
        verifier = ChainVerifier(anchors)
        started = time.process_time()
        with contextlib.suppress(Refused):
            verifier.verify(chain, WALL)
        found.append(time.process_time() - started)
    return min(found)


def test_a_hostile_chain_costs_little_more_than_an_honest_one() -> None:
    root = create()
    anchors = (trust(root),)
    factory = root.intermediate("Acme Factory")
    honest = cost(factory.issue_device("sensor-7").chain, anchors)

    slow = [ec.generate_private_key(ec.SECP521R1()) for _ in range(3)]
    (genuine,) = factory.chain

    # Nine that all have one name, each signed by each other, beside a genuine intermediate that
    # anybody can see on the network: 9! orders, and every signature but the last one holds.
    forged = []
    for number in range(8):
        ca = create("Acme Factory", key=slow[number % 3])
        forged.append(
            ca.sign(
                common_name("Acme Factory"), slow[(number + 1) % 3].public_key(), AUTHORITY
            ).public_bytes(serialization.Encoding.DER)
        )
    device = create("Acme Factory", key=slow[0]).issue_device("sensor-7").chain[0]
    same_name = (device, genuine, *forged)

    # A tower of nine beneath the genuine one.
    tower = create("Acme Factory", key=slow[0])
    tower = replace(tower, chain=())
    for number in range(7):
        tower = tower.intermediate(f"Level {number}", key=slow[number % 3])
    towering = (*tower.issue_device("sensor-7").chain, genuine)

    # Nine that claim to be issued by the anchor.
    fakes = [create().intermediate("Factory") for _ in range(9)]
    device = fakes[0].issue_device("sensor-7").chain[0]
    claims = (device, *(fake.chain[0] for fake in fakes))

    # A leaf of thousands of names.
    names = replace(DEVICE, alternative_names=(x509.DNSName("a"),) * 2500)
    large = create().issue_device("sensor-7", profile=names).chain

    for chain in (same_name, towering, claims, large):
        assert refusal(chain, anchors) is Reason.UNTRUSTED
        assert cost(chain, anchors) < 12 * honest
