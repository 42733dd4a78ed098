"""The two ends of the DTLS fuzzers: a server, and devices that hold what it takes to get in."""

from __future__ import annotations

import random

from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls.association import Association
from coapgate.dtls.client import (
    Client,
    ClientCertificate,
    ClientSettings,
    Credential,
    PskKey,
    State,
)
from coapgate.dtls.events import Candidate
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.negotiation import ServerCertificate
from coapgate.dtls.records import ContentType
from coapgate.dtls.server import Server, ServerSettings
from coapgate.dtls.signatures import PublicKey
from coapgate.errors import Reason, Refused
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Path

PATH: Path = (0, ("192.0.2.7", 40000))
STRANGER: Path = (0, ("192.0.2.8", 40000))

IDENTITY = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "psk-1")
PSK = PskKey(b"sensor-1", bytes(range(16)))
KEY = Candidate(PSK.secret, IDENTITY)

_SERVER_KEY = ec.derive_private_key(7, ec.SECP256R1())
_DEVICE_KEY = ec.derive_private_key(11, ec.SECP256R1())
_SERVER_LEAF, _DEVICE_LEAF = b"server's certificate" * 20, b"device's certificate" * 20


def _trust(chain: tuple[bytes, ...]) -> PublicKey:
    if chain == (_SERVER_LEAF,):
        return _SERVER_KEY.public_key()
    raise Refused(Reason.UNTRUSTED)


CERTIFICATE = ClientCertificate((_DEVICE_LEAF, b"intermediate" * 30), _DEVICE_KEY, _trust)
CREDENTIALS: tuple[Credential, ...] = (
    PSK,
    CERTIFICATE,
    PskKey(PSK.identity, b"x" * 16),
    PskKey(b"", PSK.secret),
    ClientCertificate((), _DEVICE_KEY, _trust),
    ClientCertificate((b"no certificate",), _DEVICE_KEY, _trust),
    ClientCertificate(CERTIFICATE.chain, _SERVER_KEY, _trust),
)
"""Only the first two prove anything."""

PSK_SUITES = (0xC0A8, 0xC0A4, 0x00A8, 0x00A9)
ECDHE_SUITES = (0xC0AE, 0xC0AC, 0xC02B, 0xC02C)
FRAGMENT_LENGTHS = (None, 512, 1024, 4096)
MAX_DATAGRAMS = (1232, 300)


def _public_key(leaf: bytes) -> PublicKey:
    if leaf == _DEVICE_LEAF:
        return _DEVICE_KEY.public_key()
    raise Refused(Reason.MALFORMED)


MAX_ASSOCIATIONS = 4
MOVING = 0x40
"""The choice of a device that offers a Connection ID."""


class Serving:
    """A server and what it delivered; `random` is the same for every input."""

    def __init__(self, max_datagram: int = 1232) -> None:
        self.delivered: list[tuple[Association, bytes]] = []
        handshake = HandshakeSettings(
            ServerCertificate((_SERVER_LEAF,), _SERVER_KEY), _public_key, max_datagram=max_datagram
        )
        settings = ServerSettings(
            handshake,
            max_handshakes=4,
            handshakes_per_address=2,
            max_associations=MAX_ASSOCIATIONS,
        )
        self.server = Server(settings, self._deliver, random.Random(1).randbytes)

    def _deliver(self, association: Association, plaintext: bytes, now: float) -> None:
        self.delivered.append((association, plaintext))


def client(credential: Credential, choice: int) -> Client:
    """A device; `choice` says with which suite and sizes."""
    suites = PSK_SUITES if isinstance(credential, PskKey) else ECDHE_SUITES
    settings = ClientSettings(
        max_datagram=MAX_DATAGRAMS[choice & 1],
        max_fragment_length=FRAGMENT_LENGTHS[choice >> 1 & 3],
        cipher_suites=(suites[choice >> 3 & 3],),
        extended_master_secret=not choice & 0x20,
        connection_id=b"\xbe\xef" if choice & MOVING else None,
    )
    return Client(credential, settings, random.Random(2).randbytes)


def said(content_type: int, plaintext: bytes) -> bytes | None:
    """What a record is heard to say if it is application data, padded or not; None if it is not.

    With a Connection ID a content type of 0 is padding, behind whatever stands at its end.
    """
    if content_type == ContentType.APPLICATION_DATA:
        return plaintext
    inner = plaintext.rstrip(b"\0")
    if content_type == 0 and inner[-1:] == bytes((ContentType.APPLICATION_DATA,)):
        return inner[:-1]
    return None


def seal(device: Client, content_type: int, plaintext: bytes) -> bytes | None:
    """The device's next record, with a content that it would never choose; None without keys."""
    if device.state is State.ESTABLISHED:
        assert device._protection is not None
        device._sequence += 1
        return device._protection.seal(content_type, device._sequence - 1, plaintext)
    if device.state is State.AWAIT_FINISHED:
        assert device._handshake is not None
        device._handshake.sequence += 1
        return device._handshake.protection.seal(
            content_type, device._handshake.sequence - 1, plaintext
        )
    return None
