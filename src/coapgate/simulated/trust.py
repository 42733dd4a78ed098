"""How a device with a certificate of its own judges the gateway's."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from coapgate.dtls.signatures import PublicKey
from coapgate.errors import Reason, Refused

_UNTRUSTWORTHY = (ValueError, x509.InvalidVersion, UnsupportedAlgorithm, VerificationError)


def trust_server(root: x509.Certificate, name: str) -> Callable[[tuple[bytes, ...]], PublicKey]:
    """What a `ClientCertificate` needs: believes chains below `root` for this name or address.

    The key it returns belongs to the leaf; it raises Refused for any other chain.
    """

    def trust(chain: tuple[bytes, ...]) -> PublicKey:
        try:
            leaf, *issuers = (x509.load_der_x509_certificate(octets) for octets in chain)
            verifier = PolicyBuilder().store(Store([root])).build_server_verifier(_subject(name))
            verifier.verify(leaf, issuers)
            key = leaf.public_key()
        except _UNTRUSTWORTHY as error:
            raise Refused(Reason.UNTRUSTED, "the gateway's certificate") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Refused(Reason.WEAK_KEY, "the gateway's certificate")
        return key

    return trust


def _subject(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
