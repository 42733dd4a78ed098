"""What would become of a chain of certificates that a device shows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.cli import output
from coapgate.cli.explanation import Explanation
from coapgate.cli.rehearsal import Rehearsal
from coapgate.errors import CertificateError, CoapgateError, Misused, NotFound, Reason, Refused
from coapgate.model import AnchorState, DeviceId, TrustAnchor
from coapgate.pki.chains import VerifiedChain, verify_chain
from coapgate.pki.keys import UNREADABLE, is_signed_by
from coapgate.registry.sqlite import SqliteRegistry

MAX_FILE_SIZE = 1 << 20

_TO_DO = {
    Reason.EXPIRED: "the device needs a new certificate; how it gets one without this gateway is "
    "for its maker to say",
    Reason.NOT_YET_VALID: "are the clocks of the authority and of this machine right?",
    Reason.REVOKED: "issue a new certificate for a device that may come back",
    Reason.WEAK_KEY: "P-256, P-384, P-521, Ed25519 and RSA of 2048 to 4096 bits are accepted",
    Reason.WEAK_SIGNATURE: "SHA-256, SHA-384 and SHA-512 are accepted",
    Reason.WRONG_USAGE: "`coapgate anchor show` says what is accepted, and a certificate that "
    "`coapgate pki issue` made how one for a device looks",
    Reason.PATH_LENGTH: "an authority on the way may not have so many below it",
    Reason.TENANT_MISMATCH: "`coapgate anchor show` lists the tenants that an anchor serves",
    Reason.MALFORMED: "`coapgate anchor show` says which values name a device",
    Reason.UNAVAILABLE: "put a newer list in place of the old one: the gateway sees it in seconds; "
    "a gateway that had read the file before it broke goes by what was in it",
}


async def explain_chain(
    file: Path, rehearsal: Rehearsal, registry: SqliteRegistry, wall: float
) -> Explanation:
    """What a gateway would decide about the certificates in a file.

    Raises CertificateError, Misused, RegistryError.
    """
    chain = _load(file)
    subject = f"the certificate in {str(file)!r}"
    faults = await rehearsal.use_lists(wall)
    with warnings.catch_warnings(action="ignore"):
        facts = tuple(_facts(chain))
    notes = tuple(f"revocation list {fault}" for fault in faults)
    ders = tuple(each.public_bytes(Encoding.DER) for each in chain)
    verdict = await rehearsal.judge_chain(ders, wall)
    if verdict.refused is None:
        return Explanation(subject, verdict, None, "", facts, notes)
    refused = verdict.refused
    with warnings.catch_warnings(action="ignore"):
        hints = _hints(refused, chain, ders, registry, wall)
    return Explanation(subject, verdict, refused.reason, refused.detail, facts, (*hints, *notes))


def _load(file: Path) -> list[x509.Certificate]:
    try:
        with file.open("rb") as opened:
            octets = opened.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise Misused(
            f"cannot read {str(file)!r}: {error.strerror}", "give a certificate, in PEM"
        ) from error
    if len(octets) > MAX_FILE_SIZE:
        raise Misused(f"{str(file)!r} is too large", "give what one device shows, in PEM")
    with warnings.catch_warnings(action="ignore"):
        try:
            if b"-----BEGIN" in octets:
                return x509.load_pem_x509_certificates(octets)
            return [x509.load_der_x509_certificate(octets)]
        except UNREADABLE as error:
            advice = "a file with -----BEGIN CERTIFICATE----- is wanted"
            if b"PRIVATE KEY" in octets:
                advice = "this is a key: its certificate is wanted"
            raise CertificateError(
                f"no certificate can be read from {str(file)!r}", advice
            ) from error


def _facts(chain: Sequence[x509.Certificate]) -> list[tuple[str, str]]:
    from cryptography.hazmat.primitives import hashes

    leaf = chain[0]
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    above = ", ".join(_name(each.subject) for each in chain[1:])
    return [
        ("subject", _name(leaf.subject)),
        ("issuer", _name(leaf.issuer)),
        ("serial number", f"{leaf.serial_number:x}"),
        ("fingerprint", f"sha256:{leaf.fingerprint(hashes.SHA256()).hex()}"),
        ("valid", f"{output.time(begins.timestamp())} to {output.time(ends.timestamp())}"),
        ("sent with it", above or "nothing"),
    ]


def _hints(
    refused: Refused,
    chain: Sequence[x509.Certificate],
    ders: tuple[bytes, ...],
    registry: SqliteRegistry,
    wall: float,
) -> list[str]:
    anchors = registry.anchors_all()
    active = [each for each in anchors if each.state == AnchorState.ACTIVE]
    match refused.reason:
        case Reason.UNTRUSTED:
            return _why_untrusted(chain, ders, anchors, wall)
        case Reason.CREDENTIAL_MISMATCH:
            return _why_mismatched(_verified(ders, active, wall), registry)
        case Reason.DISABLED if refused.proven is not None:
            tenant, device, _ = refused.proven
            return [f"`coapgate device enable {device} --tenant {tenant}` lets it in again"]
        case Reason.EXPIRED | Reason.NOT_YET_VALID:
            ended = [each for each in chain if not _is_valid(each, wall)]
            which = [f"{_name(each.subject)} is valid {_validity(each)}" for each in ended]
            which = which or ["the certificate of the anchor itself is not valid now"]
            return [*which, _TO_DO[refused.reason]]
        case Reason.WRONG_USAGE if _is_authority(chain[0]):
            return ["the first certificate is an authority's: the device's own comes first"]
        case reason:
            return [_TO_DO[reason]] if reason in _TO_DO else []


def _why_untrusted(
    chain: Sequence[x509.Certificate],
    ders: tuple[bytes, ...],
    anchors: Sequence[TrustAnchor],
    wall: float,
) -> list[str]:
    """Near misses: an anchor that is not active, a namesake, a link that is missing."""
    for anchor in anchors:
        if anchor.state != AnchorState.ACTIVE and _verified(ders, [anchor], wall) is not None:
            way = "prove" if anchor.state == AnchorState.STAGED else "enable"
            return [
                f"anchor {anchor.name!r} would vouch for it, but is {anchor.state}: "
                f"`coapgate anchor {way}` is next"
            ]
    leaf = chain[0]
    if leaf.issuer == leaf.subject:
        return ["it is signed by itself: an authority has to issue it"]
    if not anchors:
        return ["there is no trust anchor: `coapgate anchor add` makes one known"]
    top = _top(chain)
    parsed = [(each, x509.load_der_x509_certificate(each.certificate)) for each in anchors]
    hints = []
    for anchor, certificate in parsed:
        if certificate.subject == top.issuer and not is_signed_by(top, certificate):
            hints.append(
                f"anchor {anchor.name!r} has the name of the issuer, {_name(top.issuer)}, but "
                "another key: it is another authority, or its renewed certificate is wanted"
            )
    if not hints:
        hints.append(
            f"no anchor is called {_name(top.issuer)}, which issued {_name(top.subject)}: add it "
            "with `coapgate anchor add`, or have the device send what is missing up to an anchor"
        )
    names = {_name(certificate.subject) for _, certificate in parsed}
    hints.append(f"anchors are {', '.join(sorted(names))}")
    return hints


def _why_mismatched(verified: VerifiedChain | None, registry: SqliteRegistry) -> list[str]:
    if verified is None:
        return []
    tenant, device, anchor = verified.tenant, DeviceId(verified.value), verified.anchor
    trust = f"`coapgate device trust {device} --tenant {tenant} --anchor {anchor.name}` joins them"
    try:
        registry.get_device(tenant, device)
    except NotFound:
        return [
            f"there is no device {device!r} in tenant {tenant!r}: {trust}",
            "with another name of the device, say --value "
            f"{device} besides; `anchor add --auto-provision` creates devices by themselves",
        ]
    return [f"device {device!r} is there, by other credentials: {trust}"]


def _verified(
    ders: tuple[bytes, ...], anchors: Sequence[TrustAnchor], wall: float
) -> VerifiedChain | None:
    try:
        return verify_chain(ders, anchors, wall)
    except CoapgateError:
        return None


def _top(chain: Sequence[x509.Certificate]) -> x509.Certificate:
    """The last certificate on the way up that the file holds."""
    top, waiting = chain[0], list(chain[1:])
    while above := next((each for each in waiting if each.subject == top.issuer), None):
        if above.subject == above.issuer:
            break  # a root that was sent along
        waiting.remove(above)
        top = above
    return top


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return found.value.ca


def _is_valid(certificate: x509.Certificate, wall: float) -> bool:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins.timestamp() <= int(wall) <= ends.timestamp()


def _validity(certificate: x509.Certificate) -> str:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return f"{output.time(begins.timestamp())} to {output.time(ends.timestamp())}"


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "(no name)"
