"""Whether a chain that a device shows leads to a trust anchor.

Paths are built by name alone, which costs no signature. Each path is judged by our own rules
first (`certificates`), since they name the reason, and the verifier of `cryptography` has the last
word; what it alone refuses is `untrusted`, its text is never read. Certificates of the chain that
are on no path are never judged.

A reason other than `untrusted` is told only if the signatures from the anchor down to the
certificate it is about hold: a stranger learns nothing about the anchors, not even their names.
The work is bounded: only a few paths are tried, and the signatures of a path are verified from the
anchor down, so a tower built on nothing falls at the first one.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509 import verification

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import Tenant, TrustAnchor
from coapgate.pki.certificates import (
    Certificate,
    Statements,
    judge_certificate,
    judge_device,
    judge_issuer,
    judge_signature,
    parse_certificate,
    read_statements,
)
from coapgate.pki.intermediates import Edge, Intermediate, Intermediates
from coapgate.pki.keys import UNREADABLE, is_signed_by
from coapgate.pki.revocation import key_id_of, mark
from coapgate.pki.revoked import issuer_mark
from coapgate.pki.templates import Template, TenantRule, parse_template, parse_tenant_rule

MAX_CERTIFICATES = 10
MAX_PATHS = 8
"""Paths of one chain that are tried, besides one for each anchor of the same subject."""

MAX_WAYS = 64
"""Ways by name that are looked at; an honest chain has two or three."""

MAX_UNPROVEN_SIZE = 2048
"""Octets of a leaf that is read before its signature is verified, which the verifier does once
more. Reading a thousand names costs more than that."""

DAY = 86400.0

MAX_CLAIMED_SIZE = 256
"""Octets of a subject that is read for a log, before anything of it is proven."""

_PERMIT_ALL = verification.ExtensionPolicy.permit_all()
# The library insists on BasicConstraints for authorities. Whatever the policy, it refuses critical
# extensions that nobody looked at, and judges NameConstraints.
_AUTHORITY_POLICY = _PERMIT_ALL.require_present(
    x509.BasicConstraints, verification.Criticality.AGNOSTIC, None
)


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """What a chain proves: the anchor, whose devices they are, and how it calls this one.

    `fingerprint` is the SHA-256 of the leaf, 32 octets; `path` is how the certificates below the
    anchor are remembered (`revocation`). `not_after` is when the first certificate of the path
    ends, the anchor's included, in Unix seconds.
    """

    anchor: TrustAnchor
    tenant: Tenant
    value: str
    fingerprint: bytes
    path: bytes
    not_after: float


@dataclass(frozen=True, slots=True)
class _Anchor:
    """A trust anchor, ready to verify with."""

    trusted: TrustAnchor
    certificate: Certificate
    says: Statements
    policy: verification.PolicyBuilder
    device: Template
    tenant: TenantRule | None


@dataclass(frozen=True, slots=True)
class _Path:
    """A way by name: `certificates` are leaf first and end with the anchor's."""

    certificates: tuple[Certificate, ...]
    anchor: _Anchor


def verify_chain(
    chain: Sequence[bytes], anchors: Sequence[TrustAnchor], wall: float
) -> VerifiedChain:
    """`ChainVerifier(anchors).verify(chain, wall)`, for one chain."""
    return ChainVerifier(anchors).verify(chain, wall)


def claimed_subject(leaf: bytes) -> bytes:
    """What a certificate (DER) says it is about, as in `CN=sensor-7`: for a log, nothing is judged.

    Empty if it cannot be read, or has so many names that reading them is work: a stranger makes
    them up.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            certificate = parse_certificate(leaf)
            if len(certificate.subject) > MAX_CLAIMED_SIZE:
                return b""
            subject = certificate.parsed.subject.rfc4514_string()
    except (Refused, *UNREADABLE):
        return b""
    return subject.encode(errors="backslashreplace")


class ChainVerifier:
    """Verifies chains against trust anchors that are parsed once; build another when they change.

    Anchors are verified with one by one, never together; two of one subject and different keys are
    two anchors. Mutable state: `_known`, the intermediates that were seen beneath them.
    """

    def __init__(self, anchors: Sequence[TrustAnchor]) -> None:
        """Raises CertificateError for an anchor that `parse_anchor` would not have made."""
        self._anchors: dict[bytes, list[_Anchor]] = {}
        for anchor in map(_load_anchor, anchors):
            self._anchors.setdefault(anchor.certificate.subject, []).append(anchor)
        self._max_paths = MAX_PATHS + max(map(len, self._anchors.values()), default=0)
        self._known = Intermediates()

    def verify(self, chain: Sequence[bytes], wall: float) -> VerifiedChain:
        """Verify a chain, DER and leaf first, at `wall` (Unix seconds).

        Raises Refused, and nothing else whatever the octets are.
        """
        if not chain:
            raise Refused(Reason.NO_CERTIFICATE)
        if len(chain) > MAX_CERTIFICATES:
            raise Refused(Reason.MALFORMED, f"{len(chain)} certificates")
        # The library warns of oddities on standard error: peers must not write there.
        with warnings.catch_warnings(action="ignore"):
            return self._verify(chain, wall)

    def _verify(self, chain: Sequence[bytes], wall: float) -> VerifiedChain:
        leaf = parse_certificate(chain[0])
        attempt = _Attempt(wall, self._known)
        others, unreadable = attempt.parse_others(chain)
        refusal: Refused | None = None
        for path in itertools.islice(self._paths(leaf, others), self._max_paths):
            try:
                return attempt.prove(path)
            except Refused as refused:
                if refusal is None or refusal.reason is Reason.UNTRUSTED:
                    refusal = refused
        raise refusal or unreadable or Refused(Reason.UNTRUSTED, "issued by no trust anchor")

    def _paths(self, leaf: Certificate, others: Sequence[Certificate]) -> Iterator[_Path]:
        """The ways by name from the leaf to an anchor, the shortest first.

        Nine certificates of one name have 9! orders: no more than `MAX_WAYS` are looked at.
        """
        waiting: deque[tuple[Certificate, ...]] = deque([(leaf,)])
        for _ in range(MAX_WAYS):
            if not waiting:
                return
            way = waiting.popleft()
            wanted = way[-1].issuer
            for anchor in self._anchors.get(wanted, ()):
                yield _Path((*way, anchor.certificate), anchor)
            waiting.extend(
                (*way, each) for each in others if each.subject == wanted and each not in way
            )


class _Attempt:
    """The work on one chain, each piece of which is done once.

    Mutable: what was read and verified so far.
    """

    def __init__(self, wall: float, known: Intermediates) -> None:
        self._wall = wall
        self._time = datetime.datetime.fromtimestamp(int(wall), datetime.UTC)
        self._known = known
        self._statements: dict[bytes, Statements] = {}
        self._failed: set[Edge] = set()

    def parse_others(self, chain: Sequence[bytes]) -> tuple[list[Certificate], Refused | None]:
        """What follows the leaf and may issue something, each once.

        One that does not parse is passed over: it matters only if no path is found without it.
        """
        others: list[Certificate] = []
        unreadable: Refused | None = None
        for octets in dict.fromkeys(chain[1:]):
            if octets == chain[0]:
                continue
            known = self._known.find(octets)
            if known is not None:
                self._statements[octets] = known.says
                others.append(known.certificate)
                continue
            try:
                others.append(parse_certificate(octets))
            except Refused as refused:
                unreadable = refused
        return others, unreadable

    def prove(self, path: _Path) -> VerifiedChain:
        """What the path proves. Raises Refused."""
        self._statements.setdefault(path.anchor.certificate.octets, path.anchor.says)
        anchor = len(path.certificates) - 1
        for index in range(anchor, -1, -1):
            large = len(path.certificates[index].octets) > MAX_UNPROVEN_SIZE
            if index < anchor and (index > 0 or large):
                self._require_signature(path, index)
            try:
                self._judge(path, index)
            except Refused:
                # What is wrong with the anchor or the leaf is told to those alone who really
                # show something that the anchor, or the one above the leaf, has signed.
                if index in (0, anchor):
                    self._require_signature(path, min(index, anchor - 1))
                raise
        statements = [self._read(each) for each in path.certificates]
        if any(says.has_ed25519_key for says in statements[1:]):
            self._judge_ourselves(path, statements)
        else:
            self._ask_verifier(path, statements)
        for certificate, says in zip(path.certificates[1:-1], statements[1:-1], strict=True):
            self._known.add(Intermediate(certificate, says))
        return self._conclude(path, statements)

    def _conclude(self, path: _Path, statements: Sequence[Statements]) -> VerifiedChain:
        """What a path that holds says of its device. Raises Refused."""
        leaf, anchor, says = path.certificates[0], path.anchor, statements[0]
        longest, lasts = anchor.trusted.max_validity, says.not_after - says.not_before
        if longest is not None and lasts > longest:
            raise Refused(
                Reason.WRONG_USAGE,
                f"valid for {lasts / DAY:.0f} days, the anchor accepts {longest / DAY:.0f}",
            )
        tenant = (
            anchor.trusted.tenant if anchor.tenant is None else anchor.tenant.render(leaf.parsed)
        )
        fingerprint = hashlib.sha256(leaf.octets).digest()
        issuer, above = self._marks(path)
        return VerifiedChain(
            anchor.trusted,
            tenant,
            anchor.device.render(leaf.parsed),
            fingerprint,
            issuer + mark(leaf.parsed, fingerprint) + above,
            min(each.not_after for each in statements),
        )

    def _marks(self, path: _Path) -> tuple[bytes, bytes]:
        """How the leaf's issuer is remembered as such, and the intermediates of a proven path."""
        anchor = issuer_mark(path.anchor.trusted.key_id)
        intermediates = path.certificates[1:-1]
        if not intermediates:
            return anchor, b""
        way = tuple(each.octets for each in path.certificates[1:])
        known = self._known.marks(way)
        if known is None:
            issuers = [issuer_mark(key_id_of(each.parsed)) for each in intermediates]
            known = (
                issuers[0],
                b"".join(
                    issuer + mark(each.parsed, hashlib.sha256(each.octets).digest())
                    for issuer, each in zip([*issuers[1:], anchor], intermediates, strict=True)
                ),
            )
            self._known.add_marks(way, *known)
        return known

    def _judge(self, path: _Path, index: int) -> None:
        """Judge one certificate of a path by our own rules. Raises Refused."""
        says = self._read(path.certificates[index])
        judge_certificate(says, self._wall)
        if index < len(path.certificates) - 1:
            judge_signature(says)
        if index == 0:
            judge_device(says)
        else:
            judge_issuer(says, beneath=index - 1)

    def _require_signature(self, path: _Path, index: int) -> None:
        """Whether the next one signed this one, which was judged, so its key is bounded.

        Raises Refused (untrusted).
        """
        certificate, issuer = path.certificates[index : index + 2]
        edge = (certificate.octets, issuer.octets)
        if self._known.is_signed(edge):
            return
        if edge in self._failed or not is_signed_by(certificate.parsed, issuer.parsed):
            self._failed.add(edge)
            raise Refused(Reason.UNTRUSTED, "a signature of the chain does not hold")
        if index > 0:
            self._known.add_signed(edge)

    def _judge_ourselves(self, path: _Path, statements: Sequence[Statements]) -> None:
        """Prove a path with an Ed25519 issuer, which the verifier does not know.

        Our rules and the signatures are the whole of RFC 5280 section 6 for certificates without
        constraints; with any, nobody here can judge them.
        """
        if any(says.has_constraints for says in statements):
            raise Refused(Reason.UNTRUSTED, "constraints beneath an Ed25519 issuer")
        self._require_signature(path, 0)

    def _ask_verifier(self, path: _Path, statements: Sequence[Statements]) -> None:
        """Let the verifier judge a path, or its leaf alone if it knows what is above that.

        It is asked about the same way again only if that can change its answer: the signatures
        above the leaf hold for ever, times, path lengths and usages were judged by our own rules
        just now, and constraints on what is beneath are not among them. Raises Refused (untrusted).
        """
        leaf, *issuers = (each.parsed for each in path.certificates[:-1])
        way = tuple(each.octets for each in path.certificates[1:])
        policy = self._known.policy(way) if issuers else path.anchor.policy
        asked = issuers if policy is None else []
        verifier = (policy or path.anchor.policy).time(self._time).build_client_verifier()
        try:
            verified = verifier.verify(leaf, asked)
        except (verification.VerificationError, *UNREADABLE) as error:
            # The latter while it describes a name that does not parse.
            raise Refused(Reason.UNTRUSTED, "the chain does not verify") from error
        if (
            asked
            # It may have found another way, past an intermediate of the name of its issuer.
            and verified.chain == [each.parsed for each in path.certificates]
            and not any(says.has_constraints for says in statements[1:])
        ):
            self._known.trust(way, _policy(issuers[0]))

    def _read(self, certificate: Certificate) -> Statements:
        if certificate.octets not in self._statements:
            self._statements[certificate.octets] = read_statements(certificate.parsed)
        return self._statements[certificate.octets]


def _load_anchor(trusted: TrustAnchor) -> _Anchor:
    try:
        with warnings.catch_warnings(action="ignore"):
            certificate = parse_certificate(trusted.certificate)
            says = read_statements(certificate.parsed)
    except Refused as refused:
        raise CertificateError(
            f"the trust anchor {trusted.name!r} cannot be read",
            f"remove it and add it again: coapgate anchor remove {trusted.name}",
        ) from refused
    if says.key_fault:
        raise CertificateError(
            f"the key of the trust anchor {trusted.name!r} is not accepted: {says.key_fault}",
            f"remove it: coapgate anchor remove {trusted.name}",
        )
    template = trusted.device_id_template or f"{{{trusted.device_id_source}}}"
    return _Anchor(
        trusted,
        certificate,
        says,
        _policy(certificate.parsed),
        parse_template(template),
        parse_tenant_rule(trusted.tenant_template, trusted.tenants)
        if trusted.tenant_template
        else None,
    )


def _policy(trusted: x509.Certificate) -> verification.PolicyBuilder:
    """What the verifier is told of one authority; a verifier built with it wants the time, too."""
    return (
        verification.PolicyBuilder()
        .store(verification.Store([trusted]))
        .max_chain_depth(MAX_CERTIFICATES)
        .extension_policies(ca_policy=_AUTHORITY_POLICY, ee_policy=_PERMIT_ALL)
    )
