"""A certificate authority of a device factory, for the demonstration and the tests.

    ca = FactoryCa.create("Example Root")
    device = ca.issue_device("sensor-7")
    server = ca.issue_server(names=("localhost",), addresses=("127.0.0.1", "::1"))
    device.write(directory, "sensor-7")      # sensor-7.pem, sensor-7.key (mode 0600)

Keys are P-256 unless another is given. What a certificate says besides names and keys is a
`Profile`: `issue_device("sensor-7", profile=replace(DEVICE, path_length=0))` makes an odd one.
Nothing here leaves the process but through `write`.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
SignatureHash = hashes.SHA224 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512

DAY = 86400.0
LIFETIME = 30 * 365 * DAY
LIST_LIFETIME = 30 * DAY


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    """The two uses that matter here; who may sign certificates may sign CRLs (RFC 5280 4.2.1.3)."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class Profile:
    """What a certificate says besides its names and keys; None or empty leaves it out.

    `not_before` and `not_after` are Unix seconds; None is a day before, and 30 years after, the
    moment the authority was created at. `ca` None leaves BasicConstraints out. `extensions` are
    further ones, each with whether it is critical. Ed25519 signers ignore `signature_hash`.
    """

    ca: bool | None = False
    path_length: int | None = None
    usage: x509.KeyUsage | None = None
    purposes: tuple[x509.ObjectIdentifier, ...] = ()
    alternative_names: tuple[x509.GeneralName, ...] = ()
    not_before: float | None = None
    not_after: float | None = None
    signature_hash: SignatureHash = field(default_factory=hashes.SHA256)
    key_identifiers: bool = True
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = ()


AUTHORITY = Profile(ca=True, usage=key_usage(key_cert_sign=True))
DEVICE = Profile(
    usage=key_usage(digital_signature=True), purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)
)
SERVER = Profile(
    usage=key_usage(digital_signature=True), purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)
)


def encode_chain(chain: Sequence[bytes]) -> bytes:
    """Certificates, DER, as PEM in the same order."""
    return b"".join(
        x509.load_der_x509_certificate(certificate).public_bytes(serialization.Encoding.PEM)
        for certificate in chain
    )


def write_secret(file: Path, octets: bytes) -> None:
    """Write a new file that nobody else may read. Raises FileExistsError and OSError."""
    # The mode is given at creation: a key is never readable by others, not for a moment.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(octets)


def common_name(*values: str) -> x509.Name:
    """A subject of nothing but these CNs; usually one."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value) for value in values])


def build_certificate(
    subject: x509.Name,
    public_key: PublicKey,
    issuer: x509.Name,
    signing_key: PrivateKey,
    profile: Profile,
    *,
    wall: float,
) -> x509.Certificate:
    """Build and sign one certificate, as odd as `profile` is. `wall` is Unix seconds."""
    not_before = wall - DAY if profile.not_before is None else profile.not_before
    not_after = wall + LIFETIME if profile.not_after is None else profile.not_after
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_datetime(not_before))
        .not_valid_after(_datetime(not_after))
    )
    for extension, critical in _extensions(profile, public_key, signing_key):
        builder = builder.add_extension(extension, critical)
    if isinstance(signing_key, ed25519.Ed25519PrivateKey):
        return builder.sign(signing_key, None)
    return builder.sign(signing_key, profile.signature_hash)


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its key. `chain` is DER, leaf first, without the root."""

    chain: tuple[bytes, ...] = field(repr=False)
    key: PrivateKey = field(repr=False)

    @property
    def chain_pem(self) -> bytes:
        return encode_chain(self.chain)

    @property
    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write `name`.pem and `name`.key, which nobody else may read; the two paths.

        Raises FileExistsError rather than overwrite a key, and OSError.
        """
        certificate_file, key_file = directory / f"{name}.pem", directory / f"{name}.key"
        write_secret(key_file, self.key_pem)
        certificate_file.write_bytes(self.chain_pem)
        return certificate_file, key_file


@dataclass(frozen=True, slots=True)
class FactoryCa:
    """A root or an intermediate that issues certificates.

    `chain` is what its devices send after their leaf: DER, from it up, without the root.
    `created_at` is Unix seconds; everything it issues is valid around it.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    created_at: float
    chain: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        key: PrivateKey | None = None,
        profile: Profile = AUTHORITY,
        wall: float | None = None,
    ) -> FactoryCa:
        """Create a root that signs itself; `wall` is Unix seconds, by default the clock's."""
        key = key or _generate_key()
        created_at = time.time() if wall is None else wall
        subject = common_name(name)
        certificate = build_certificate(
            subject, key.public_key(), subject, key, profile, wall=created_at
        )
        return cls(certificate, key, created_at)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def intermediate(
        self, name: str, *, key: PrivateKey | None = None, profile: Profile = AUTHORITY
    ) -> FactoryCa:
        """Issue an authority beneath this one."""
        key = key or _generate_key()
        certificate = self.sign(common_name(name), key.public_key(), profile)
        return FactoryCa(certificate, key, self.created_at, (_encode(certificate), *self.chain))

    def issue_device(
        self,
        device: str,
        *,
        subject: x509.Name | None = None,
        key: PrivateKey | None = None,
        profile: Profile = DEVICE,
    ) -> IssuedCertificate:
        """Issue a client certificate; `device` is its CN unless a whole `subject` is given."""
        name = common_name(device) if subject is None else subject
        return self.issue(name, key=key, profile=profile)

    def issue_server(
        self,
        names: Sequence[str] = ("localhost",),
        addresses: Sequence[str] = ("127.0.0.1", "::1"),
        *,
        key: PrivateKey | None = None,
        profile: Profile = SERVER,
    ) -> IssuedCertificate:
        """Issue a server certificate for these DNS names and IP addresses."""
        alternative_names = (
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ip_address(address)) for address in addresses),
        )
        profile = replace(profile, alternative_names=alternative_names)
        return self.issue(common_name((*names, *addresses)[0]), key=key, profile=profile)

    def issue(
        self, subject: x509.Name, *, key: PrivateKey | None, profile: Profile
    ) -> IssuedCertificate:
        """Issue any certificate; a key is generated if none is given."""
        key = key or _generate_key()
        leaf = self.sign(subject, key.public_key(), profile)
        return IssuedCertificate((_encode(leaf), *self.chain), key)

    def sign(self, subject: x509.Name, public_key: PublicKey, profile: Profile) -> x509.Certificate:
        """Sign a certificate for a key held elsewhere; another authority's: cross-signed."""
        issuer = self.certificate.subject
        return build_certificate(
            subject, public_key, issuer, self.key, profile, wall=self.created_at
        )

    def sign_list(
        self,
        revoked: Mapping[int, float],
        *,
        number: int = 1,
        this_update: float | None = None,
        next_update: float | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.CertificateRevocationList:
        """Sign a list of what is revoked: serial numbers, and when each was (Unix seconds).

        `this_update` and `next_update` are Unix seconds; None is the moment the authority was
        created at, and 30 days after it. `extensions` are further ones, with whether each is
        critical.
        """
        begins = self.created_at if this_update is None else this_update
        ends = begins + LIST_LIFETIME if next_update is None else next_update
        builder = x509.CertificateRevocationListBuilder(
            self.certificate.subject,
            _datetime(begins),
            _datetime(ends),
            revoked_certificates=[
                x509.RevokedCertificateBuilder(serial, _datetime(at)).build()
                for serial, at in revoked.items()
            ],
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return builder.sign(self.key, None)
        return builder.sign(self.key, hashes.SHA256())


def _generate_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _datetime(wall: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(wall, datetime.UTC)


def _encode(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _extensions(
    profile: Profile, public_key: PublicKey, signing_key: PrivateKey
) -> list[tuple[x509.ExtensionType, bool]]:
    """The extensions of a profile, each with whether it is critical."""
    found: list[tuple[x509.ExtensionType, bool]] = []
    if profile.ca is not None:
        found.append((x509.BasicConstraints(profile.ca, profile.path_length), True))
    if profile.usage is not None:
        found.append((profile.usage, True))
    if profile.purposes:
        found.append((x509.ExtendedKeyUsage(profile.purposes), False))
    if profile.alternative_names:
        found.append((x509.SubjectAlternativeName(profile.alternative_names), False))
    if profile.key_identifiers:
        issuer_key = signing_key.public_key()
        found.append((x509.SubjectKeyIdentifier.from_public_key(public_key), False))
        found.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), False))
    found.extend(profile.extensions)
    return found
