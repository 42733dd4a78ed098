"""From a ClientHello to what both will use; the server chooses (RFC 5246 7.4.1, RFC 8422 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls import signatures
from coapgate.dtls.extensions import UNCOMPRESSED, Offer, parse_offer
from coapgate.dtls.groups import CURVES, GROUPS, P_256, Group
from coapgate.dtls.messages import NULL_COMPRESSION, ClientHello
from coapgate.dtls.records import DTLS_1_2
from coapgate.dtls.signatures import Scheme
from coapgate.dtls.suites import SUITES, KeyExchange, Suite
from coapgate.errors import Reason, Refused

_MAJOR = 0xFE
"""Of every DTLS version; minor versions count down."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The server's chain, DER, leaf first, and the leaf's key on P-256 or P-384."""

    chain: tuple[bytes, ...]
    key: ec.EllipticCurvePrivateKey = field(repr=False)


class Parameters(NamedTuple):
    """What a handshake was agreed on; `group` and `scheme` with ECDHE only."""

    suite: Suite
    offer: Offer
    group: Group | None = None
    scheme: Scheme | None = None


def negotiate(hello: ClientHello, certificate: ServerCertificate | None) -> Parameters:
    """Choose; without a certificate of ours only PSK can be chosen.

    Raises MalformedMessage, or Refused for what the hello itself cannot have.
    """
    version = int.from_bytes(hello.version, "big")
    if version >> 8 != _MAJOR or version > DTLS_1_2:
        raise Refused(Reason.UNSUPPORTED_VERSION, f"client version {version:#06x}")
    if NULL_COMPRESSION not in hello.compression_methods:
        raise Refused(Reason.ILLEGAL_PARAMETER, "null compression not offered")
    offer = parse_offer(hello.extensions, hello.cipher_suites)
    offered = frozenset(hello.cipher_suites)
    suite = next((suite for code, suite in SUITES.items() if code in offered), None)
    if suite is None:
        raise Refused(Reason.NO_SHARED_CIPHER)
    if suite.key_exchange is KeyExchange.PSK:
        return Parameters(suite, offer)
    ecdhe = _choose_ecdhe(offer, certificate)
    if ecdhe is None:
        raise Refused(Reason.NO_SHARED_CIPHER)
    return Parameters(suite, offer, *ecdhe)


def _choose_ecdhe(
    offer: Offer, certificate: ServerCertificate | None
) -> tuple[Group, Scheme] | None:
    """The group and signature scheme, or None if this client cannot use our certificate."""
    if certificate is None:
        return None
    groups = (P_256.code,) if offer.groups is None else offer.groups
    if CURVES[certificate.key.curve.name].code not in groups:
        return None
    if offer.point_formats is not None and UNCOMPRESSED not in offer.point_formats:
        return None
    group = next((group for group in GROUPS.values() if group.code in groups), None)
    scheme = signatures.choose(certificate.key, offer.signature_algorithms)
    return None if group is None or scheme is None else (group, scheme)
