"""OpenSSL as a DTLS client over memory, by pyOpenSSL's public API, against a server of ours.

Its timers follow the real clock, the server's the test's. Records come out of the memory BIO one
after the other without the datagrams they were in: each is sent as a datagram of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from coapgate.dtls.association import Association
from coapgate.dtls.events import ChainProven, HandshakeFailed, KeyProven, KeysRequested
from coapgate.dtls.records import split
from coapgate.dtls.server import Server, ServerSettings
from coapgate.errors import Reason
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Path
from coapgate.pki.factory import IssuedCertificate
from tests.dtls.factory import authority

PATH: Path = (0, ("192.0.2.1", 49152))
DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.X509, "test")
MAX_RECORD = 16384

CIPHERS = {
    0xC0AE: "ECDHE-ECDSA-AES128-CCM8",
    0xC0AC: "ECDHE-ECDSA-AES128-CCM",
    0xC02B: "ECDHE-ECDSA-AES128-GCM-SHA256",
    0xC02C: "ECDHE-ECDSA-AES256-GCM-SHA384",
}

Copies = Callable[[str, int], int]
"""How often a datagram arrives: `to server` or `to client`, and its number in that direction."""


def once(direction: str, number: int) -> int:
    return 1


class OpenSslPair:
    """One client and one server; `failure` is what OpenSSL says, `plaintexts` what it received."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        suite: int | None = None,
        certificate: IssuedCertificate | None = None,
        group: ec.EllipticCurve | None = None,
        mtu: int = 1200,
        refuse: Reason | None = None,
        copies: Copies = once,
    ) -> None:
        self.now = 0.0
        self.server = Server(settings, self._deliver)
        self.delivered: list[bytes] = []
        self.plaintexts: list[bytes] = []
        self.association: Association | None = None
        self.failed: list[Reason] = []
        self.failure = ""
        self.is_connected = False
        self.lengths: dict[str, list[int]] = {"to server": [], "to client": []}
        self._refuse = refuse
        self._copies = copies
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        # OpenSSL counts CCM_8 as 64 bits, which its level 1 does not allow.
        names = [CIPHERS[suite]] if suite is not None else list(CIPHERS.values())
        context.set_cipher_list(":".join([*names, "@SECLEVEL=0"]).encode())
        context.set_options(SSL.OP_NO_QUERY_MTU)
        context.set_verify(SSL.VERIFY_PEER, lambda connection, cert, error, depth, ok: bool(ok))
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(authority().certificate))
        if group is not None:
            # For a client too this is the list of groups, with one entry.
            context.set_tmp_ecdh(group)
        if certificate is not None:
            chain = [x509.load_der_x509_certificate(der) for der in certificate.chain]
            context.use_certificate(chain[0])
            for intermediate in chain[1:]:
                context.add_extra_chain_cert(intermediate)
            context.use_privatekey(certificate.key)
        self.client = SSL.Connection(context, None)
        self.client.set_connect_state()
        self.client.set_ciphertext_mtu(mtu)

    # --- the handshake

    def connect(self) -> bool:
        """Run until nothing moves any more; False if it waits for a timer, or failed."""
        while self._step():
            pass
        return self.is_connected

    def wait_for_server(self) -> bool:
        """Let the server's next timer fire."""
        due = self.server.next_timer()
        assert due is not None
        self.now = due
        self.server.handle_timer(due)
        return self.connect()

    def next_timeout(self) -> float | None:
        """Seconds of real time until OpenSSL repeats its flight."""
        return self.client.DTLSv1_get_timeout()

    def wait_for_client(self) -> bool:
        """OpenSSL's timer fires, if it is time."""
        self.client.DTLSv1_handle_timeout()
        return self.connect()

    def send(self, plaintext: bytes) -> None:
        self.client.send(plaintext)
        self._step()

    def answer(self, plaintext: bytes) -> None:
        assert self.association is not None
        self.server.traffic.send(self.association, plaintext, self.now)
        self._step()

    def close(self) -> None:
        """OpenSSL says close_notify."""
        self.client.shutdown()
        self._step()

    def _step(self) -> bool:
        if not self.failure:
            self._advance()
        moved = self._to_server()
        self._answer_events()
        return self._to_client() or moved

    def _advance(self) -> None:
        try:
            if not self.is_connected:
                self.client.do_handshake()
                self.is_connected = True
            self.plaintexts.append(self.client.recv(MAX_RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.failure = "closed"
        except SSL.Error as error:
            self.failure = str(error)

    def _to_server(self) -> bool:
        records = self._drain()
        for record in records:
            for _ in range(self._arrivals("to server", record)):
                self.server.receive_datagram(record, PATH, self.now)
        return bool(records)

    def _drain(self) -> list[bytes]:
        octets = b""
        while True:
            try:
                octets += self.client.bio_read(65536)
            except SSL.WantReadError:
                return [record.octets for record in split(octets)]

    def _to_client(self) -> bool:
        datagrams = [datagram for datagram, _ in self.server.outgoing]
        self.server.outgoing.clear()
        for datagram in datagrams:
            for _ in range(self._arrivals("to client", datagram)):
                self.client.bio_write(datagram)
                # A memory BIO would join datagrams: OpenSSL takes each before the next.
                if not self.failure:
                    self._advance()
        return bool(datagrams)

    def _arrivals(self, direction: str, datagram: bytes) -> int:
        self.lengths[direction].append(len(datagram))
        return self._copies(direction, len(self.lengths[direction]) - 1)

    def _answer_events(self) -> None:
        while self.server.events:
            match self.server.events.popleft():
                case ChainProven(handshake) if self._refuse is None:
                    self.association = self.server.accept(handshake, DEVICE, self.now)
                case ChainProven(handshake):
                    assert self._refuse is not None
                    self.server.refuse(handshake, self._refuse, self.now)
                case HandshakeFailed(_, reason):
                    self.failed.append(reason)
                case KeysRequested() | KeyProven():
                    raise AssertionError("it has no key")

    def _deliver(self, association: Association, plaintext: bytes, now: float) -> None:
        self.delivered.append(plaintext)
