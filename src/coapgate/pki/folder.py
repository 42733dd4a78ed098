"""A certificate authority that lives in a folder, for laboratories and small fleets.

    ca.pem        its certificate: the trust anchor
    ca.key        its key, PKCS #8, mode 0600, encrypted if there is a passphrase
    chain.pem     of an intermediate: it and those above it, but for the root; devices send these
    issued.csv    a line for each certificate: serial number, subject, its end, when it was issued
    revoked.json  what was revoked, and the number of the newest list (`revoked_record`)
    ca.crl        that list, in PEM, with the intermediates that a reader needs

Everything works without a network. Nothing is ever overwritten but the last two, each at once, the
record before the list. One process at a time: the folder is locked.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.errors import CertificateError
from coapgate.pki import revoked_record
from coapgate.pki.factory import (
    AUTHORITY,
    DAY,
    DEVICE,
    SERVER,
    FactoryCa,
    IssuedCertificate,
    PrivateKey,
    Profile,
    encode_chain,
    write_secret,
)
from coapgate.pki.keys import UNREADABLE
from coapgate.pki.requests import Request, parse_uri, subject_of

MAX_FILE_SIZE = 1 << 20
"""Octets, of a certificate, a chain or a key."""

CERTIFICATE, KEY, CHAIN, ISSUED, LIST = "ca.pem", "ca.key", "chain.pem", "issued.csv", "ca.crl"


def create(
    folder: Path,
    name: str,
    *,
    lifetime: float,
    wall: float,
    passphrase: bytes = b"",
    parent: CaFolder | None = None,
) -> FactoryCa:
    """Create an authority in a new or empty folder: a root, or an intermediate beneath `parent`.

    Raises CertificateError, also if something is there already.
    """
    if not name:
        raise CertificateError("an authority needs a name", "--name 'Example Root'")
    subject = subject_of(name)
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.iterdir()):
            raise CertificateError(
                f"the folder {str(folder)!r} is not empty",
                "an authority is never overwritten: name a new folder",
            )
        if parent is None:
            profile = replace(AUTHORITY, not_before=wall - DAY, not_after=wall + lifetime)
            ca = FactoryCa.create(name, profile=profile, wall=wall)
        else:
            profile = parent.lasting(replace(AUTHORITY, path_length=0), lifetime)
            ca = parent.ca.intermediate(name, profile=profile)
            parent.record(ca.certificate)
            (folder / CHAIN).write_bytes(encode_chain(ca.chain))
        assert ca.certificate.subject == subject
        write_secret(folder / KEY, _encode_key(ca.key, passphrase))
        revoked_record.write(folder, 0, {})
        (folder / CERTIFICATE).write_bytes(ca.certificate_pem)
    return ca


@contextmanager
def opened(folder: Path, *, wall: float, passphrase: bytes = b"") -> Iterator[CaFolder]:
    """The authority in a folder, at the moment `wall` (Unix seconds).

    Raises CertificateError if it cannot be read, its key does not fit, or it has expired;
    PassphraseNeeded if its key is encrypted and the passphrase is not the right one.
    """
    with _told(folder):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _told(folder):
            yield _load(folder, wall, passphrase)
    finally:
        os.close(lock)


class PassphraseNeeded(CertificateError):
    """The key of an authority is encrypted, and not with the passphrase that was given."""


@dataclass(frozen=True, slots=True)
class CaFolder:
    """An open authority; `wall` is the moment (Unix seconds) that it works at."""

    folder: Path
    ca: FactoryCa
    wall: float

    def issue_device(
        self, subject: x509.Name, *, lifetime: float, uris: Iterable[str] = ()
    ) -> IssuedCertificate:
        """Issue a device's certificate and key, for `lifetime` seconds at most."""
        names = tuple(map(parse_uri, uris))
        profile = replace(self.lasting(DEVICE, lifetime), alternative_names=names)
        issued = self.ca.issue(subject, key=None, profile=profile)
        self.record(x509.load_der_x509_certificate(issued.chain[0]))
        return issued

    def issue_server(
        self, names: tuple[str, ...], addresses: tuple[str, ...], *, lifetime: float
    ) -> IssuedCertificate:
        """Issue the certificate and key of a gateway. Raises CertificateError."""
        try:
            issued = self.ca.issue_server(names, addresses, profile=self.lasting(SERVER, lifetime))
        except (ValueError, TypeError) as error:
            raise CertificateError(
                f"a name or address cannot be: {error}", "--dns gateway.example --ip 192.0.2.1"
            ) from error
        self.record(x509.load_der_x509_certificate(issued.chain[0]))
        return issued

    def sign_request(self, request: Request, *, lifetime: float) -> tuple[bytes, ...]:
        """Sign a request, by what was granted of it: a chain, DER and leaf first."""
        profile = replace(self.lasting(DEVICE, lifetime), alternative_names=request.uris)
        certificate = self.ca.sign(request.subject, request.key, profile)
        self.record(certificate)
        return (certificate.public_bytes(Encoding.DER), *self.ca.chain)

    def revoke(self, serials: Mapping[int, float], *, lifetime: float) -> int:
        """Write the next revocation list, with these added (serial number, when in Unix seconds).

        It is good for `lifetime` seconds. The answer is how many certificates it names.

        Raises CertificateError.
        """
        try:
            number, revoked = revoked_record.read(self.folder)
        except (ValueError, FileNotFoundError) as error:
            raise _damaged(self.folder / revoked_record.FILE) from error
        revoked = {**serials, **revoked}
        revoked_record.write(self.folder, number + 1, revoked)
        signed = self.ca.sign_list(
            revoked,
            number=number + 1,
            this_update=self.wall,
            next_update=self.wall + lifetime,
        )
        revoked_record.replace_file(
            self.folder / LIST, signed.public_bytes(Encoding.PEM) + encode_chain(self.ca.chain)
        )
        return len(revoked)

    def lasting(self, profile: Profile, lifetime: float) -> Profile:
        """Nothing outlives its issuer: the path would have ended anyhow."""
        ends_at = min(self.wall + lifetime, self.ca.certificate.not_valid_after_utc.timestamp())
        return replace(profile, not_before=self.wall - DAY, not_after=ends_at)

    def record(self, certificate: x509.Certificate) -> None:
        """Note what was issued, before it is handed out. Raises OSError."""
        with (self.folder / ISSUED).open("a", newline="") as file:
            csv.writer(file).writerow(
                (
                    f"{certificate.serial_number:x}",
                    certificate.subject.rfc4514_string(),
                    _time(certificate.not_valid_after_utc),
                    _time(datetime.fromtimestamp(self.wall, UTC)),
                )
            )
            file.flush()
            os.fsync(file.fileno())

    def has_issued(self, serial: int) -> bool:
        """Whether a certificate of this serial number was recorded. Raises OSError."""
        file = self.folder / ISSUED
        if not file.exists():
            return False
        with file.open(newline="") as opened_file:
            return any(row and row[0] == f"{serial:x}" for row in csv.reader(opened_file))


def _load(folder: Path, wall: float, passphrase: bytes) -> CaFolder:
    file = folder / CERTIFICATE
    try:
        certificate = x509.load_pem_x509_certificate(_read(file))
        chain = (
            tuple(
                each.public_bytes(Encoding.DER)
                for each in x509.load_pem_x509_certificates(_read(folder / CHAIN))
            )
            if (folder / CHAIN).exists()
            else ()
        )
    except UNREADABLE as error:
        raise _damaged(file) from error
    key = _load_key(folder / KEY, passphrase)
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"the key {str(folder / KEY)!r} does not belong to {str(file)!r}",
            "both are from one `coapgate pki init`: restore them from one backup",
        )
    if wall > certificate.not_valid_after_utc.timestamp():
        raise CertificateError(
            f"the authority {str(folder)!r} ended at {_time(certificate.not_valid_after_utc)}",
            "nothing that it issues would be believed: `coapgate pki init` makes a new one",
        )
    return CaFolder(folder, FactoryCa(certificate, key, wall, chain), wall)


def _load_key(file: Path, passphrase: bytes) -> PrivateKey:
    octets = _read(file)
    is_encrypted = b"ENCRYPTED PRIVATE KEY" in octets
    if is_encrypted and not passphrase:
        raise PassphraseNeeded(
            f"the key {str(file)!r} is encrypted", "--passphrase-file names the file that opens it"
        )
    try:
        key = serialization.load_pem_private_key(octets, passphrase if is_encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if is_encrypted:
            raise PassphraseNeeded(
                f"the key {str(file)!r} does not open with this passphrase",
                "it is the first line of the file, without its end",
            ) from error
        raise _damaged(file) from error
    if not isinstance(
        key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    ):
        raise _damaged(file)
    return key


def _encode_key(key: PrivateKey, passphrase: bytes) -> bytes:
    return key.private_bytes(
        Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def _read(file: Path) -> bytes:
    """Raises OSError, and CertificateError if it is too large."""
    with file.open("rb") as opened_file:
        octets = opened_file.read(MAX_FILE_SIZE + 1)
    if len(octets) > MAX_FILE_SIZE:
        raise CertificateError(f"{str(file)!r} is larger than {MAX_FILE_SIZE} octets")
    return octets


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the file system refuses, in words of ours."""
    try:
        yield
    except OSError as error:
        raise CertificateError(
            f"the folder of an authority {str(folder)!r} cannot be used: {error.strerror}",
            "`coapgate pki init FOLDER --name NAME` makes one",
        ) from error


def _damaged(file: Path) -> CertificateError:
    return CertificateError(
        f"{str(file)!r} is not as `coapgate pki` has written it", "restore it from a backup"
    )


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
