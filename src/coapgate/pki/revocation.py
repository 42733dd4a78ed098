"""Which certificates below a trust anchor are revoked, by lists (RFC 5280 section 5) or by command.

A certificate is remembered by 24 octets: 8 of the SHA-256 of its issuer's SubjectPublicKeyInfo, 8
of that of its serial number and 8 of its own. A path is remembered by those of all its certificates
below the anchor, the device's first: little enough to be kept with every association, so that a
list that is read tomorrow ends what it concerns, an intermediate's revocation included.

A list is one authority's: the anchor's own, or that of an intermediate whose certificate is in the
same file. It applies below that anchor alone. What a list names is revoked, whatever else the entry
says: an extension of an entry that is not understood can only be a reason more.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import MARK_LENGTH, MARK_PART_LENGTH, TrustAnchor
from coapgate.pki.certificates import judge_certificate, judge_issuer, read_statements
from coapgate.pki.keys import UNREADABLE, PublicKey, is_signed_by, signature_fault
from coapgate.pki.revoked import LISTED, Singly, issuer_mark, serial_mark

MAX_LIST_SIZE = 64 << 20
"""Octets of a file: more than a million entries."""

MAX_AUTHORITIES = 64
"""Certificates of intermediates, and lists, in one file: as many of each."""

MAX_SKEW = 300.0
"""Seconds by which the clock of whoever signs lists may be ahead."""

_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"


_PARTIAL = (x509.DeltaCRLIndicator, x509.IssuingDistributionPoint)
"""Extensions that say what a list leaves out, whether marked critical as they are to be or not."""


def mark(certificate: x509.Certificate, fingerprint: bytes) -> bytes:
    """How a certificate is remembered, all but its issuer: 16 octets."""
    return serial_mark(certificate.serial_number) + fingerprint[:MARK_PART_LENGTH]


def key_id_of(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of a certificate's SubjectPublicKeyInfo, 32 octets. Raises UNREADABLE."""
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(key).digest()


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What one authority has revoked.

    `issuer` is the SHA-256 of its key, `subject` its name for people. `number` is the list's own
    (RFC 5280 5.2.3), 0 if it has none. `this_update` and `next_update` are Unix seconds: from the
    latter on it is stale. `revoked` are the serial numbers as they are remembered, read as
    integers, in order: a million of them are 8 MB, and comparing two lists does not look at them.
    """

    issuer: bytes
    subject: str
    number: int
    this_update: float
    next_update: float
    revoked: array[int] = field(repr=False, compare=False)

    def names(self, mark: bytes) -> bool:
        """Whether it revokes the serial number that is remembered so."""
        revoked, wanted = self.revoked, int.from_bytes(mark, "big")
        at = bisect_left(revoked, wanted)
        return at < len(revoked) and revoked[at] == wanted

    def is_newer(self, other: RevocationList) -> bool:
        """Whether its authority issued it after another one of its own."""
        return (self.number, self.this_update) > (other.number, other.this_update)


@dataclass(frozen=True, slots=True)
class Revocations:
    """All that is revoked below one anchor, ready to be asked.

    `lists` are those in force, by their issuer as it is remembered; `singly` is what commands
    revoked. If `is_hard`, every certificate of a path needs a list of its issuer that is not stale.
    Unless `is_complete`, there is a list that nobody has read yet.
    """

    lists: Mapping[bytes, RevocationList] = field(default_factory=dict)
    singly: Singly = field(default_factory=Singly)
    is_hard: bool = False
    is_complete: bool = True

    @classmethod
    def gather(
        cls,
        lists: Iterable[RevocationList] = (),
        singly: Singly | None = None,
        *,
        is_hard: bool = False,
        is_complete: bool = True,
    ) -> Revocations:
        """Put together lists, the newest of each issuer, and what commands revoked."""
        in_force: dict[bytes, RevocationList] = {}
        for each in lists:
            issuer = issuer_mark(each.issuer)
            known = in_force.get(issuer)
            if known is None or each.is_newer(known):
                in_force[issuer] = each
        return cls(in_force, Singly() if singly is None else singly, is_hard, is_complete)

    def __bool__(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self.lists or self.singly or self.is_hard or not self.is_complete)

    def covers(self, path: bytes) -> bool:
        """Whether any certificate of a path (`Identity.path`) is revoked."""
        lists = self.lists
        if lists:
            for at in range(0, len(path), MARK_LENGTH):
                found = lists.get(path[at : at + MARK_PART_LENGTH])
                if found is not None and found.names(path[at + MARK_PART_LENGTH : at + LISTED]):
                    return True
        return self.singly.covers(path)

    def judge(self, path: bytes, wall: float) -> None:
        """Whether a path may be believed by a handshake; `wall` is Unix seconds.

        Raises Refused: revoked, or unavailable if nothing says that it is not: a device is told to
        come again, since its operator forgot something, not its owner.
        """
        if self.covers(path):
            which = "the device's certificate" if self.covers(path[:MARK_LENGTH]) else "its issuer"
            raise Refused(Reason.REVOKED, which)
        if not self.is_complete:
            # Not even `soft`: what was never read may name this one.
            raise Refused(Reason.UNAVAILABLE, "a revocation list could not be read yet")
        if not self.is_hard:
            return
        for at in range(0, len(path), MARK_LENGTH):
            found = self.lists.get(path[at : at + MARK_PART_LENGTH])
            if found is None:
                raise Refused(Reason.UNAVAILABLE, "an issuer has no revocation list here")
            if wall > found.next_update:
                raise Refused(Reason.UNAVAILABLE, "an issuer's revocation list is stale")


def load_lists(file: Path, anchor: TrustAnchor, wall: float) -> tuple[RevocationList, ...]:
    """Load the revocation lists of a file, which are to be used below `anchor`.

    Takes about 2 us for each entry. Raises CertificateError, as `parse_lists` does.
    """
    return parse_file(file, read_file(file), anchor, wall)


def read_file(file: Path, limit: int = MAX_LIST_SIZE) -> bytes:
    """The octets of a file of lists, one more than `limit` if there are more; waits for no writer.

    Raises CertificateError, also for one of more than MAX_LIST_SIZE.
    """
    try:
        with open(file, "rb", opener=_open_at_once) as opened:
            is_file = stat.S_ISREG(os.fstat(opened.fileno()).st_mode)
            octets = opened.read(limit + 1) if is_file else b""
    except OSError as error:
        raise CertificateError(
            f"the revocation list {str(file)!r} cannot be read: {error.strerror}",
            "check its path, and who may read it",
        ) from error
    if not is_file:
        raise CertificateError(
            f"the revocation list {str(file)!r} cannot be read: it is no regular file",
            "a pipe, a device or a directory is not watched",
        )
    if len(octets) > MAX_LIST_SIZE:
        raise CertificateError(
            f"the revocation list {str(file)!r} is larger than {MAX_LIST_SIZE} octets"
        )
    return octets


def _open_at_once(file: str, flags: int) -> int:
    """A pipe that nobody writes to would be waited for without end."""
    return os.open(file, flags | os.O_NONBLOCK)


def parse_file(
    file: Path, octets: bytes, anchor: TrustAnchor, wall: float
) -> tuple[RevocationList, ...]:
    """As `parse_lists`; what it raises names the file."""
    try:
        return parse_lists(octets, anchor, wall)
    except CertificateError as error:
        raise CertificateError(f"{str(file)!r}: {error}", error.hint) from error


def parse_lists(octets: bytes, anchor: TrustAnchor, wall: float) -> tuple[RevocationList, ...]:
    """Parse one list in DER, or any number of them in PEM with the intermediates that sign them.

    Raises CertificateError for a file without a list, and if any of them is signed by nobody that
    it could be of, is only a part, or is not to be used at `wall` (Unix seconds) yet. A stale one
    is taken: what it names is revoked for all that.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            lists, certificates = _read(octets)
            authorities = _authorities(anchor, certificates, wall)
            return tuple(_judge(each, authorities, anchor, wall) for each in lists)
        except UNREADABLE as error:
            raise CertificateError(
                "no revocation list can be read from it",
                "a list in PEM or DER is wanted: openssl crl -in FILE -noout -text shows one",
            ) from error


@dataclass(frozen=True, slots=True)
class _Authority:
    """Who may have signed a list."""

    certificate: x509.Certificate
    key_id: bytes


def _read(
    octets: bytes,
) -> tuple[list[x509.CertificateRevocationList], list[x509.Certificate]]:
    """Raises UNREADABLE, and CertificateError for too many."""
    if b"-----BEGIN" not in octets:
        return [x509.load_der_x509_crl(octets)], []
    lists, certificates = [], []
    for label, block in _blocks(octets):
        if label == b"CERTIFICATE":
            certificates.append(x509.load_pem_x509_certificate(block))
        elif label == b"X509 CRL":
            lists.append(x509.load_pem_x509_crl(block))
    if not lists:
        raise ValueError("no list")
    if max(len(lists), len(certificates)) > MAX_AUTHORITIES:
        raise CertificateError(
            f"it holds {len(lists)} lists and {len(certificates)} certificates",
            f"at most {MAX_AUTHORITIES} of each: split the file",
        )
    return lists, certificates


def _blocks(octets: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The blocks of PEM, each with its label. Raises ValueError for one that does not end."""
    end = 0
    while (begin := octets.find(_BEGIN, end)) >= 0:
        at = begin + len(_BEGIN)
        label = octets[at : octets.index(_DASHES, at)]
        closing = _END + label + _DASHES
        end = octets.index(closing, at) + len(closing)
        yield label, octets[begin:end]


def _authorities(
    anchor: TrustAnchor, certificates: Sequence[x509.Certificate], wall: float
) -> list[_Authority]:
    """The anchor, and the intermediates that are beneath it, in whatever order they stand.

    Raises UNREADABLE, and CertificateError for a certificate that is no authority beneath it.
    """
    root = x509.load_der_x509_certificate(anchor.certificate)
    found = [_Authority(root, anchor.key_id)]
    waiting = [each for each in certificates if each != root]
    while waiting:
        beneath = next((each for each in waiting if _is_beneath(each, found)), None)
        if beneath is None:
            raise CertificateError(
                f"the certificate of {_name(waiting[0].subject)} in it is not beneath the anchor "
                f"{anchor.name!r}",
                "put in only the intermediates that sign revocation lists, up to the anchor",
            )
        waiting.remove(beneath)
        try:
            says = read_statements(beneath)
            judge_certificate(says, wall)
            judge_issuer(says, 0)
        except Refused as refused:
            raise CertificateError(
                f"the certificate of {_name(beneath.subject)} in it cannot be used: {refused}",
                "an intermediate that is expired or no authority signs no lists",
            ) from refused
        found.append(_Authority(beneath, key_id_of(beneath)))
    return found


def _is_beneath(certificate: x509.Certificate, authorities: Iterable[_Authority]) -> bool:
    return not signature_fault(certificate) and any(
        certificate.issuer == each.certificate.subject
        and is_signed_by(certificate, each.certificate)
        for each in authorities
    )


def _judge(
    given: x509.CertificateRevocationList,
    authorities: Iterable[_Authority],
    anchor: TrustAnchor,
    wall: float,
) -> RevocationList:
    """Raises UNREADABLE and CertificateError."""
    issuer = next((each for each in authorities if _has_signed(each.certificate, given)), None)
    if issuer is None:
        raise CertificateError(
            f"the list of {_name(given.issuer)} is signed neither by the anchor {anchor.name!r} "
            "nor by an intermediate that is in the file",
            "append the certificate of the intermediate that signed it, in PEM, to the file",
        )
    number = 0
    for extension in given.extensions:
        if isinstance(extension.value, x509.CRLNumber):
            number = extension.value.crl_number
        elif isinstance(extension.value, _PARTIAL) or extension.critical:
            raise CertificateError(
                f"the list of {_name(given.issuer)} is only a part, or says what is not understood "
                f"(extension {extension.oid.dotted_string})",
                "a full list is wanted, for all of the authority's certificates and all reasons",
            )
    next_update = given.next_update_utc
    if next_update is None:
        raise CertificateError(
            f"the list of {_name(given.issuer)} does not say when the next one comes",
            "without nextUpdate (RFC 5280 5.1.2.5) nobody can tell whether it is stale",
        )
    this_update = given.last_update_utc.timestamp()
    if this_update > wall + MAX_SKEW:
        raise CertificateError(
            f"the list of {_name(given.issuer)} is of the future: {given.last_update_utc}",
            "is the clock of this machine right?",
        )
    marks = (int.from_bytes(serial_mark(entry.serial_number), "big") for entry in given)
    return RevocationList(
        issuer.key_id,
        _name(issuer.certificate.subject),
        number,
        this_update,
        next_update.timestamp(),
        array("Q", sorted(marks)),
    )


def _has_signed(authority: x509.Certificate, given: x509.CertificateRevocationList) -> bool:
    """Whether it is this authority's: RFC 5280 6.3.3 (f), (g). Raises UNREADABLE."""
    if given.issuer != authority.subject or signature_fault(given):
        return False
    usage = read_statements(authority).usage
    key = authority.public_key()
    if (usage is not None and not usage.crl_sign) or not isinstance(key, PublicKey):
        return False
    try:
        return given.is_signature_valid(key)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "(no name)"
