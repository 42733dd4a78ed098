"""Flight 4: what the server answers to a hello that it agreed on (RFC 6347 figure 1)."""

from __future__ import annotations

from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, x25519

from coapgate.dtls import messages as m
from coapgate.dtls.extensions import encode_answer
from coapgate.dtls.groups import encode_public
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.negotiation import Parameters, ServerCertificate
from coapgate.dtls.signatures import SCHEMES
from coapgate.dtls.suites import KeyExchange

EphemeralKey = ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey

CERTIFICATE_TYPES = bytes((m.ECDSA_SIGN, m.RSA_SIGN))
"""ecdsa_sign stands for Ed25519 too (RFC 8422 section 5.5)."""

_REQUEST = m.CertificateRequest(CERTIFICATE_TYPES, tuple(SCHEMES)).encode()


class Flight4(NamedTuple):
    """Type and body of each message in its order; `ephemeral` is None with a PSK."""

    messages: tuple[tuple[T, bytes], ...]
    ephemeral: EphemeralKey | None


def compose(
    chosen: Parameters,
    certificate: ServerCertificate | None,
    client_random: bytes,
    server_random: bytes,
    connection_id: bytes = b"",
) -> Flight4:
    """ServerHello to ServerHelloDone; plain PSK sends no ServerKeyExchange (RFC 4279 section 2).

    `connection_id` is ours, for a client that offered to use one.
    """
    with_ecdhe = chosen.suite.key_exchange is KeyExchange.ECDHE_ECDSA
    hello = m.ServerHello(
        server_random,
        chosen.suite.code,
        extensions=encode_answer(chosen.offer, with_ecdhe=with_ecdhe, connection_id=connection_id),
    )
    done = (T.SERVER_HELLO_DONE, b"")
    if not with_ecdhe:
        return Flight4(((T.SERVER_HELLO, hello.encode()), done), None)
    assert certificate is not None
    exchange, ephemeral = _sign_exchange(chosen, certificate, client_random + server_random)
    return Flight4(
        (
            (T.SERVER_HELLO, hello.encode()),
            (T.CERTIFICATE, m.encode_certificate(certificate.chain)),
            (T.SERVER_KEY_EXCHANGE, exchange.encode()),
            (T.CERTIFICATE_REQUEST, _REQUEST),
            done,
        ),
        ephemeral,
    )


def _sign_exchange(
    chosen: Parameters, certificate: ServerCertificate, randoms: bytes
) -> tuple[m.ServerKeyExchange, EphemeralKey]:
    """A new ephemeral key and its signed point (RFC 8422 section 5.4)."""
    group, scheme = chosen.group, chosen.scheme
    assert group is not None
    assert scheme is not None
    ephemeral = group.generate()
    point = encode_public(ephemeral)
    signed = randoms + m.ServerKeyExchange.encode_parameters(group.code, point)
    signature = scheme.sign(certificate.key, signed)
    return m.ServerKeyExchange(group.code, point, scheme.code, signature), ephemeral
