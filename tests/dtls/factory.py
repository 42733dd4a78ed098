"""Certificates and settings that tests of DTLS begin with, made once."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls.client import Client, ClientCertificate, ClientSettings, PskKey
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.negotiation import ServerCertificate
from coapgate.dtls.server import ServerSettings
from coapgate.dtls.signatures import PrivateKey, PublicKey
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.factory import FactoryCa, IssuedCertificate
from tests.fakes.link import IDENTITY, KEY


@functools.cache
def authority() -> FactoryCa:
    return FactoryCa.create("Test Root")


@functools.cache
def device_certificate() -> IssuedCertificate:
    return authority().issue_device("sensor-1")


@functools.cache
def server_certificate(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ServerCertificate:
    key = ec.generate_private_key(curve())
    return ServerCertificate(authority().issue_server(key=key).chain, key)


def trust(chain: tuple[bytes, ...]) -> PublicKey:
    """Whatever the server shows: what our own client trusts is not what is tested here."""
    return leaf_public_key(chain[0])


def x509_settings(**changes: Any) -> ServerSettings:
    """A server that does PSK and ECDHE; `changes` are of its HandshakeSettings."""
    handshake = HandshakeSettings(server_certificate(), leaf_public_key)
    return ServerSettings(replace(handshake, **changes))


def psk_client(key: bytes = KEY, **settings: Any) -> Client:
    return Client(PskKey(IDENTITY, key), ClientSettings(**settings))


def x509_client(
    certificate: IssuedCertificate | None = None,
    key: PrivateKey | None = None,
    **settings: Any,
) -> Client:
    """A client with a certificate; with another `key` it does not hold the certificate's."""
    certificate = certificate or device_certificate()
    credential = ClientCertificate(certificate.chain, key or certificate.key, trust)
    return Client(credential, ClientSettings(**settings))
