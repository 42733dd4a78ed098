"""Peers that say what they are told to, in any order.

peer = RawPeer(server)
peer.greet()                           # hello, cookie, hello; `peer.flight` is the answer
peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
peer.finish()                          # ChangeCipherSpec and Finished
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls import extensions, flight4, keys
from coapgate.dtls import messages as m
from coapgate.dtls.client import Client
from coapgate.dtls.extensions import ExtensionType
from coapgate.dtls.finished import Agreement, HandshakeKeys
from coapgate.dtls.groups import GROUPS, encode_public
from coapgate.dtls.keys import Transcript
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.negotiation import Parameters
from coapgate.dtls.records import ContentType, Record, encode, split
from coapgate.dtls.server import Server
from coapgate.dtls.signatures import SCHEMES, PrivateKey, choose
from coapgate.dtls.suites import SUITES, KeyExchange
from coapgate.model import Path
from tests.dtls.factory import server_certificate
from tests.fakes.link import IDENTITY, KEY

PSK_CCM_8 = 0xC0A8
ECDHE_CCM_8 = 0xC0AE
PATH: Path = (0, ("192.0.2.1", 49152))
RANDOM = bytes(range(32))


@dataclass(slots=True)
class RawPeer:
    """One path to a server; `replies` are the records it sent here, oldest first."""

    server: Server
    path: Path = PATH
    suite: int = PSK_CCM_8
    random: bytes = RANDOM
    now: float = 0.0
    extensions: Mapping[int, bytes] | None = None
    connection_id: bytes | None = None
    """What it offers; None: to do without."""
    message_seq: int = 0
    record_sequence: int = 0
    sealed_sequence: int = 0
    replies: list[Record] = field(default_factory=list)
    flight: dict[int, bytes] = field(default_factory=dict)
    """Body of each message of the server's answer to the hello, by type."""
    transcript: Transcript = field(default_factory=lambda: Transcript("sha256"))
    keys: HandshakeKeys | None = None
    ephemeral: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    # --- datagrams

    def put(self, *records: bytes) -> list[Record]:
        """Send records as one datagram; the records that come back here at once."""
        self.server.receive_datagram(b"".join(records), self.path, self.now)
        return self.take()

    def take(self) -> list[Record]:
        """What the server has sent to this path meanwhile; the rest stays."""
        mine = [datagram for datagram, path in self.server.outgoing if path == self.path]
        others = [(d, path) for d, path in self.server.outgoing if path != self.path]
        self.server.outgoing[:] = others
        length = len(self.connection_id or b"")
        records = [record for datagram in mine for record in split(datagram, length)]
        self.replies += records
        return records

    def clear(self, content_type: int, fragment: bytes) -> bytes:
        """The next record of epoch 0."""
        self.record_sequence += 1
        return encode(content_type, self.record_sequence - 1, fragment)

    def sealed(self, content_type: int, plaintext: bytes) -> bytes:
        """The next record of epoch 1."""
        assert self.keys is not None
        self.sealed_sequence += 1
        return self.keys.protection.seal(content_type, self.sealed_sequence - 1, plaintext)

    # --- hello

    def hello(self, cookie: bytes = b"", **changes: Any) -> m.ClientHello:
        suite = SUITES[self.suite]
        offered = self.extensions
        if offered is None:
            groups = (23,) if suite.key_exchange is KeyExchange.ECDHE_ECDSA else ()
            offered = extensions.encode_offer(
                groups, tuple(SCHEMES), connection_id=self.connection_id
            )
        fields: dict[str, Any] = {"cipher_suites": (self.suite,), "extensions": offered}
        return m.ClientHello(self.random, cookie=cookie, **(fields | changes))

    def ask(self, **changes: Any) -> bytes:
        """Send a hello without cookie; the cookie that comes back."""
        replies = self.say(T.CLIENT_HELLO, self.hello(**changes).encode())
        (reply,) = replies
        (fragment,) = m.parse_fragments(reply.fragment)
        assert fragment.type == T.HELLO_VERIFY_REQUEST
        return m.parse_hello_verify_request(fragment.body)

    def greet(self, **changes: Any) -> list[Record]:
        """Both hellos; the server's answer to the second."""
        cookie = self.ask(**changes)
        self.transcript = Transcript(SUITES[self.suite].hash_name)
        replies = self.say(T.CLIENT_HELLO, self.hello(cookie, **changes).encode())
        self.flight = {}
        for message in read_messages(replies):
            self.transcript.add(message)
            self.flight[message[0]] = message[m.HEADER_LENGTH :]
        return replies

    # --- messages

    def say(self, kind: int, body: bytes) -> list[Record]:
        """Send one message, whole, as the next of the transcript."""
        return self.put(self.message(kind, body))

    def message(self, kind: int, body: bytes) -> bytes:
        """The record of the next message, which enters the transcript."""
        message = m.encode_message(kind, self.message_seq, body)
        self.message_seq += 1
        self.transcript.add(message)
        return self.clear(ContentType.HANDSHAKE, message)

    def key_exchange(self, identity: bytes = IDENTITY) -> bytes:
        """The body of ClientKeyExchange."""
        if SUITES[self.suite].key_exchange is KeyExchange.PSK:
            return m.encode_psk_identity(identity)
        return m.encode_point(encode_public(self.ephemeral))

    def certificate_verify(self, key: PrivateKey, scheme: int | None = None) -> bytes:
        """The body of CertificateVerify over what was said so far."""
        chosen = choose(key, tuple(SCHEMES)) if scheme is None else SCHEMES[scheme]
        assert chosen is not None
        assert self.transcript.octets is not None
        signature = chosen.sign(key, self.transcript.octets)
        return m.CertificateVerify(chosen.code, signature).encode()

    def derive(self, secret: bytes = KEY) -> None:
        """Make keys; call it when ClientKeyExchange is the last message of the transcript."""
        hello = m.ServerHello.parse(self.flight[T.SERVER_HELLO])
        suite = SUITES[self.suite]
        extended = ExtensionType.EXTENDED_MASTER_SECRET in hello.extensions
        session_hash = self.transcript.digest() if extended else None
        if suite.key_exchange is KeyExchange.PSK:
            premaster = keys.psk_premaster(secret)
        else:
            exchange = m.ServerKeyExchange.parse(self.flight[T.SERVER_KEY_EXCHANGE])
            premaster = GROUPS[exchange.group].exchange(self.ephemeral, exchange.point)
        agreement = Agreement(
            suite,
            self.random,
            hello.random,
            session_hash,
            self.connection_id or b"",
            self.server_connection_id,
        )
        self.keys = agreement.derive(premaster, is_client=True)

    @property
    def server_connection_id(self) -> bytes:
        """What the ServerHello said; empty if it said nothing."""
        hello = m.ServerHello.parse(self.flight[T.SERVER_HELLO])
        body = hello.extensions.get(extensions.ExtensionType.CONNECTION_ID)
        return b"" if body is None else extensions.parse_connection_id(body)

    def finished(self) -> bytes:
        """The body of Finished."""
        assert self.keys is not None
        return self.keys.verify_data(self.transcript, of_client=True)

    def sealed_finished(self) -> bytes:
        """A record with Finished; not entered into the transcript, so it can be made again."""
        message = m.encode_message(T.FINISHED, self.message_seq, self.finished())
        return self.sealed(ContentType.HANDSHAKE, message)

    def finish(self) -> list[Record]:
        """ChangeCipherSpec and Finished in one datagram."""
        return self.put(self.clear(ContentType.CHANGE_CIPHER_SPEC, b"\1"), self.sealed_finished())


def read_messages(records: list[Record]) -> list[bytes]:
    """The handshake messages of clear records, put together, in unfragmented form."""
    bodies: dict[int, tuple[int, bytearray]] = {}
    for record in records:
        if record.epoch or record.content_type != ContentType.HANDSHAKE:
            continue
        for fragment in m.parse_fragments(record.fragment):
            kind, body = bodies.setdefault(
                fragment.message_seq, (fragment.type, bytearray(fragment.length))
            )
            assert kind == fragment.type
            body[fragment.offset : fragment.offset + len(fragment.body)] = fragment.body
    return [m.encode_message(kind, seq, bytes(body)) for seq, (kind, body) in bodies.items()]


class RawServer:
    """A server that says what it is told to, for the client's tests; it asks for no cookie.

    server = RawServer(client)
    server.hear()                          # the hello
    server.say(*server.flight())           # what answers it, or something else
    server.hear()                          # the client's flight
    server.finish()
    """

    def __init__(
        self,
        client: Client,
        suite: int = PSK_CCM_8,
        *,
        extensions: Mapping[int, bytes] | None = None,
        now: float = 0.0,
    ) -> None:
        self.client = client
        self.suite = SUITES[suite]
        self.extensions = dict(extensions or {})
        self.now = now
        self.random = bytes(range(32, 64))
        self.heard: list[bytes] = []
        """Messages of the client, in unfragmented form."""
        self.transcript = Transcript(self.suite.hash_name)
        self.ephemeral: flight4.EphemeralKey | None = None
        self.keys: HandshakeKeys | None = None
        self._message_seq = 0
        self._record_sequence = 0
        self._sealed_sequence = 0

    def hear(self) -> list[bytes]:
        """What the client sent since the last time."""
        messages = read_messages(self.take())
        for message in messages:
            self.transcript.add(message)
            if message[0] == T.CLIENT_KEY_EXCHANGE:
                self._session_hash = self.transcript.digest()
        self.heard += messages
        return messages

    def take(self) -> list[Record]:
        """The records that the client sent since the last time."""
        _, server_cid = self.cids
        datagrams = self.client.outgoing
        records = [record for each in datagrams for record in split(each, len(server_cid))]
        datagrams.clear()
        return records

    @property
    def cids(self) -> tuple[bytes, bytes]:
        """What records to the client carry, and those to us."""
        answer = self.extensions.get(ExtensionType.CONNECTION_ID)
        if answer is None or not self.heard:
            return b"", b""
        hello = m.ClientHello.parse(self.heard[0][m.HEADER_LENGTH :])
        offer = hello.extensions[ExtensionType.CONNECTION_ID]
        return extensions.parse_connection_id(offer), extensions.parse_connection_id(answer)

    def flight(self, **changes: Any) -> tuple[tuple[int, bytes], ...]:
        """What a good server answers to the hello; `changes` are of its ServerHello."""
        hello = m.ClientHello.parse(self.heard[0][m.HEADER_LENGTH :])
        offer = extensions.parse_offer(hello.extensions, hello.cipher_suites)
        with_ecdhe = self.suite.key_exchange is KeyExchange.ECDHE_ECDSA
        certificate = server_certificate() if with_ecdhe else None
        group, scheme = (GROUPS[23], SCHEMES[0x0403]) if with_ecdhe else (None, None)
        chosen = Parameters(self.suite, offer, group, scheme)
        answer = flight4.compose(chosen, certificate, hello.random, self.random)
        self.ephemeral = answer.ephemeral
        fields: dict[str, Any] = {
            "random": self.random,
            "cipher_suite": self.suite.code,
            "extensions": self.extensions,
        }
        server_hello = m.ServerHello(**(fields | changes))
        return ((T.SERVER_HELLO, server_hello.encode()), *answer.messages[1:])

    def say(self, *messages: tuple[int, bytes]) -> None:
        """Send messages, each in a datagram of its own."""
        for kind, body in messages:
            message = m.encode_message(kind, self._message_seq, body)
            self._message_seq += 1
            self.transcript.add(message)
            self.put(self.clear(ContentType.HANDSHAKE, message))

    def put(self, *records: bytes) -> list[bytes]:
        """Send a datagram; the plaintexts that the client takes from it."""
        return self.client.receive_datagram(b"".join(records), self.now)

    def clear(self, content_type: int, fragment: bytes) -> bytes:
        self._record_sequence += 1
        return encode(content_type, self._record_sequence - 1, fragment)

    def sealed(self, content_type: int, plaintext: bytes) -> bytes:
        """The next record of epoch 1."""
        assert self.keys is not None
        self._sealed_sequence += 1
        return self.keys.protection.seal(content_type, self._sealed_sequence - 1, plaintext)

    def derive(self, secret: bytes = KEY) -> None:
        """Make keys, once the client's flight was heard."""
        (exchange,) = (
            message[m.HEADER_LENGTH :]
            for message in self.heard
            if message[0] == T.CLIENT_KEY_EXCHANGE
        )
        if self.ephemeral is None:
            premaster = keys.psk_premaster(secret)
        else:
            premaster = GROUPS[23].exchange(self.ephemeral, m.parse_point(exchange))
        hello = m.ClientHello.parse(self.heard[0][m.HEADER_LENGTH :])
        extended = ExtensionType.EXTENDED_MASTER_SECRET in self.extensions
        session_hash = self._session_hash if extended else None
        agreement = Agreement(self.suite, hello.random, self.random, session_hash, *self.cids)
        self.keys = agreement.derive(premaster, is_client=False)

    def sealed_finished(self) -> bytes:
        """A record with Finished."""
        assert self.keys is not None
        client_seq = int.from_bytes(self.heard[-1][4:6], "big") + 1
        of_client = self.keys.verify_data(self.transcript, of_client=True)
        self.transcript.add(m.encode_message(T.FINISHED, client_seq, of_client))
        of_server = self.keys.verify_data(self.transcript, of_client=False)
        message = m.encode_message(T.FINISHED, self._message_seq, of_server)
        return self.sealed(ContentType.HANDSHAKE, message)

    def finish(self) -> None:
        """ChangeCipherSpec and Finished."""
        self.put(self.clear(ContentType.CHANGE_CIPHER_SPEC, b"\1"), self.sealed_finished())
