"""The client's handshake: the mirror of `handshake` (RFC 6347 section 4.2, RFC 5246 section 7.3).

client                                server                     state of ours then
ClientHello               ------>                                AWAIT_SERVER_HELLO
                          <------     HelloVerifyRequest
ClientHello (cookie)      ------>
                          <------     ServerHello                AWAIT_KEY_HINT (PSK)
                                                                 AWAIT_CERTIFICATE*
                                      Certificate*               AWAIT_SERVER_KEY_EXCHANGE*
                                      ServerKeyExchange          AWAIT_CERTIFICATE_REQUEST*
                                      CertificateRequest*        AWAIT_SERVER_HELLO_DONE
                                      ServerHelloDone
Certificate*
ClientKeyExchange
CertificateVerify*
[ChangeCipherSpec]
Finished                  ------>                                AWAIT_FINISHED
                          <------     [ChangeCipherSpec]
                                      Finished                   ESTABLISHED
(* with ECDHE_ECDSA only; a PSK server may send a ServerKeyExchange with a hint)
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from coapgate.dtls import extensions, flights, keys, signatures
from coapgate.dtls import messages as m
from coapgate.dtls.extensions import ExtensionType
from coapgate.dtls.finished import Agreement
from coapgate.dtls.flights import Flight
from coapgate.dtls.fragments import Reassembly
from coapgate.dtls.groups import GROUPS, encode_public
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import HEADER_LENGTH, VERSION, ContentType, Record, encode
from coapgate.dtls.signatures import SCHEMES, PrivateKey, PublicKey
from coapgate.dtls.suites import SUITES, KeyExchange
from coapgate.errors import Alert, MalformedMessage, Refused

MAX_HELD_RECORDS = 4
"""Records of epoch 1 that are kept until our own Finished is sent and the server's verified."""
_FREELY_ANSWERED = frozenset((ExtensionType.EC_POINT_FORMATS, ExtensionType.CONNECTION_ID))
"""Extensions that a server answers with something of its own; it echoes all the others."""
_MAY_BE_FINISHED = frozenset((ContentType.HANDSHAKE, ContentType.TLS12_CID))
_MAX_MESSAGE = 8192
_FATAL = 2


@dataclass(frozen=True, slots=True)
class PskKey:
    """A pre-shared key and the identity that goes with it."""

    identity: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A device's chain, DER, leaf first; an empty one is sent too, and refused by any server.

    `trust` reads the server's chain and returns its leaf's key, or raises Refused.
    """

    chain: tuple[bytes, ...]
    key: PrivateKey = field(repr=False)
    trust: Callable[[tuple[bytes, ...]], PublicKey] = field(repr=False)


Credential = PskKey | ClientCertificate


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Times in seconds, lengths in octets; `cipher_suites` None offers all that fit.

    `connection_id` is what the server is to put into records for us, 0 to 255 octets (RFC 9146
    section 3). With an empty one its records are as ever, and ours carry what it asks for; None
    offers no Connection ID at all.
    """

    max_datagram: int = 1232
    retransmission_time: float = 1.0
    handshake_timeout: float = 60.0
    max_fragment_length: int | None = None
    cipher_suites: tuple[int, ...] | None = None
    groups: tuple[int, ...] = tuple(GROUPS)
    extended_master_secret: bool = True
    connection_id: bytes | None = None


class State(enum.Enum):
    """What is awaited."""

    IDLE = enum.auto()
    AWAIT_SERVER_HELLO = enum.auto()
    AWAIT_KEY_HINT = enum.auto()
    AWAIT_CERTIFICATE = enum.auto()
    AWAIT_SERVER_KEY_EXCHANGE = enum.auto()
    AWAIT_CERTIFICATE_REQUEST = enum.auto()
    AWAIT_SERVER_HELLO_DONE = enum.auto()
    AWAIT_FINISHED = enum.auto()
    ESTABLISHED = enum.auto()
    CLOSED = enum.auto()


class ClientHandshake:
    """One handshake, from its first hello until it is ESTABLISHED, or CLOSED with a `failure`.

    Datagrams to send pile up in `outgoing`; call `handle_timer` at `due_at`. Once ESTABLISHED,
    `protection`, `sequence` (of the next record sent) and `held` (records that came early) go on
    to the association.
    """

    def __init__(
        self,
        credential: Credential,
        settings: ClientSettings,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        self.state = State.AWAIT_SERVER_HELLO
        self.outgoing: list[bytes] = []
        self.failure = ""
        self.alert: Alert | None = None
        self.sequence = 0
        self.finished_sequence = -1
        self.held: list[Record] = []
        self._credential = credential
        self._settings = settings
        self._deadline = now + settings.handshake_timeout
        self._client_random = random(m.RANDOM_LENGTH)
        self._reassembly = Reassembly(0, _MAX_MESSAGE)
        self._message_seq = 0
        self._clear_sequence = 0
        self._schemes: tuple[int, ...] | None = None
        self._finished: bytes | None = None
        self._send_hello(b"", now)

    @property
    def protection(self) -> Protection:
        """The keys of epoch 1, from our Finished on."""
        return self._keys.protection

    @property
    def due_at(self) -> float:
        """When `handle_timer` has something to do."""
        return min(self._deadline, self._flight.due_at)

    def handle_timer(self, now: float) -> None:
        """Repeat our flight, or give up."""
        if now >= self._deadline:
            self._fail(self.failure or "no answer")
        elif self._flight.is_due(now):
            self._send_flight()

    # --- records

    def receive_clear(self, record: Record, now: float) -> None:
        """Take a record of epoch 0. Raises MalformedMessage, which changes nothing.

        A fatal alert ends the handshake: that is how a gateway refuses. A stranger's does no more
        harm to a device than the datagrams that it can make us lose.
        """
        if record.content_type == ContentType.ALERT and len(record.fragment) == 2:
            level, description = record.fragment
            if level == _FATAL:
                self.alert = known_alert(description)
                self._fail(f"server sent alert {description}")
        elif record.content_type == ContentType.HANDSHAKE:
            for fragment in m.parse_fragments(record.octets, record.start):
                if fragment.message_seq < self._reassembly.expected:
                    if self._flight.is_wanted(now):
                        self._send_flight()
                elif self._reassembly.add(fragment):
                    self._take_messages(now)
                if self.state is State.CLOSED:
                    return

    def receive_protected(self, record: Record) -> None:
        """Take a record of epoch 1: Finished, or what comes before it by accident."""
        if self.state is State.AWAIT_FINISHED:
            if not is_as_agreed(record, self.protection):
                return
            # With a Connection ID nothing tells Finished from the rest without opening it.
            if record.content_type in _MAY_BE_FINISHED and self._try_finished(record):
                return
        if len(self.held) < MAX_HELD_RECORDS:
            self.held.append(record)

    def _take_messages(self, now: float) -> None:
        while (message := self._reassembly.next()) is not None:
            kind, body = message
            take = _TRANSITIONS.get((self.state, kind))
            try:
                if take is None:
                    raise MalformedMessage(f"message {kind} in state {self.state.name}")
                state = take(self, body, now)
            except MalformedMessage as error:
                # Dropped: the server, or whoever it was, may send a better one.
                self.failure = str(error)
                self._reassembly.drop()
                return
            except Refused as refusal:
                self._refuse(refusal)
                return
            self._reassembly.advance()
            self.state = state
        if self.state is State.AWAIT_FINISHED:
            held, self.held = self.held, []
            for record in held:
                self.receive_protected(record)

    # --- messages of the server; the table below says when

    def _send_hello(self, cookie: bytes, now: float) -> None:
        settings = self._settings
        is_psk = isinstance(self._credential, PskKey)
        kind = KeyExchange.PSK if is_psk else KeyExchange.ECDHE_ECDSA
        self._offered_suites = settings.cipher_suites or tuple(
            suite.code for suite in SUITES.values() if suite.key_exchange is kind
        )
        self._offer = extensions.encode_offer(
            () if is_psk else settings.groups,
            tuple(SCHEMES),
            settings.max_fragment_length,
            connection_id=settings.connection_id,
        )
        if not settings.extended_master_secret:
            del self._offer[ExtensionType.EXTENDED_MASTER_SECRET]
        hello = m.ClientHello(
            self._client_random, self._offered_suites, cookie=cookie, extensions=self._offer
        )
        self._hello = m.encode_message(T.CLIENT_HELLO, self._message_seq, hello.encode())
        self._message_seq += 1
        self._start_flight((self._hello,), now)

    def _on_hello_verify_request(self, body: bytes, now: float) -> State:
        self._send_hello(m.parse_hello_verify_request(body), now)
        return State.AWAIT_SERVER_HELLO

    def _on_server_hello(self, body: bytes, now: float) -> State:
        hello = m.ServerHello.parse(body)
        self._check(hello)
        self._cids = self._agreed_cids(hello)
        self._suite = SUITES[hello.cipher_suite]
        self._server_random = hello.random
        self._extended = ExtensionType.EXTENDED_MASTER_SECRET in hello.extensions
        self._transcript = keys.Transcript(self._suite.hash_name)
        self._transcript.add(self._hello)
        self._record(T.SERVER_HELLO, body)
        if self._suite.key_exchange is KeyExchange.PSK:
            return State.AWAIT_KEY_HINT
        return State.AWAIT_CERTIFICATE

    def _check(self, hello: m.ServerHello) -> None:
        """Nothing may be chosen that was not offered (RFC 5246 7.4.1.3, 7.4.1.4; RFC 6066 4)."""
        if (
            hello.version != VERSION
            or hello.cipher_suite not in self._offered_suites
            or hello.cipher_suite not in SUITES
            or hello.compression_method != m.NULL_COMPRESSION
            or not hello.extensions.keys() <= self._offer.keys()
        ):
            raise MalformedMessage("server chose what was not offered")
        for kind, answer in hello.extensions.items():
            if kind not in _FREELY_ANSWERED and answer != self._offer[kind]:
                raise MalformedMessage(f"server answered extension {kind} with something else")

    def _agreed_cids(self, hello: m.ServerHello) -> tuple[bytes, bytes]:
        """What records to us will carry, and ours; nothing if the server does not answer."""
        answer = hello.extensions.get(ExtensionType.CONNECTION_ID)
        if answer is None:
            return b"", b""
        assert self._settings.connection_id is not None
        return self._settings.connection_id, extensions.parse_connection_id(answer)

    def _on_certificate(self, body: bytes, now: float) -> State:
        assert isinstance(self._credential, ClientCertificate)
        chain = m.parse_certificate(body)
        if not chain:
            raise MalformedMessage("server shows no certificate")
        self._server_key = self._credential.trust(chain)
        self._record(T.CERTIFICATE, body)
        return State.AWAIT_SERVER_KEY_EXCHANGE

    def _on_key_hint(self, body: bytes, now: float) -> State:
        """A hint has the shape of an identity (RFC 4279 section 2), and changes nothing."""
        m.parse_psk_identity(body)
        self._record(T.SERVER_KEY_EXCHANGE, body)
        return State.AWAIT_SERVER_HELLO_DONE

    def _on_server_key_exchange(self, body: bytes, now: float) -> State:
        message = m.ServerKeyExchange.parse(body)
        if message.group not in self._settings.groups:
            raise MalformedMessage("server chose a group that was not offered")
        signed = self._client_random + self._server_random
        signed += m.ServerKeyExchange.encode_parameters(message.group, message.point)
        scheme = SCHEMES.get(message.scheme)
        if scheme is None or not scheme.verify(self._server_key, message.signature, signed):
            raise MalformedMessage("server key exchange is not signed by the server")
        group = GROUPS[message.group]
        private = group.generate()
        self._premaster = group.exchange(private, message.point)
        self._point = encode_public(private)
        self._record(T.SERVER_KEY_EXCHANGE, body)
        return State.AWAIT_CERTIFICATE_REQUEST

    def _on_certificate_request(self, body: bytes, now: float) -> State:
        self._schemes = m.CertificateRequest.parse(body).schemes
        self._record(T.CERTIFICATE_REQUEST, body)
        return State.AWAIT_SERVER_HELLO_DONE

    def _on_server_hello_done(self, body: bytes, now: float) -> State:
        if body:
            raise MalformedMessage("octets in ServerHelloDone")
        scheme = self._choose_scheme()
        self._record(T.SERVER_HELLO_DONE, body)
        credential = self._credential
        flight: list[bytes] = []
        if isinstance(credential, PskKey):
            exchange = m.encode_psk_identity(credential.identity)
            premaster = keys.psk_premaster(credential.secret)
        else:
            if self._schemes is not None:
                chain = m.encode_certificate(credential.chain)
                flight.append(self._encode(T.CERTIFICATE, chain))
            exchange = m.encode_point(self._point)
            premaster = self._premaster
            del self._premaster
        flight.append(self._encode(T.CLIENT_KEY_EXCHANGE, exchange))
        session_hash = self._transcript.digest() if self._extended else None
        if scheme is not None:
            assert isinstance(credential, ClientCertificate)
            octets = self._transcript.octets
            assert octets is not None
            verify = m.CertificateVerify(scheme.code, scheme.sign(credential.key, octets))
            flight.append(self._encode(T.CERTIFICATE_VERIFY, verify.encode()))
        self._transcript.forget_octets()
        agreement = Agreement(
            self._suite, self._client_random, self._server_random, session_hash, *self._cids
        )
        self._keys = agreement.derive(premaster, is_client=True)
        finished = self._keys.verify_data(self._transcript, of_client=True)
        self._finished = self._encode(T.FINISHED, finished)
        self._start_flight(tuple(flight), now)
        return State.AWAIT_FINISHED

    def _choose_scheme(self) -> signatures.Scheme | None:
        """What our CertificateVerify is made with; None if none is to be sent."""
        credential = self._credential
        if self._schemes is None or isinstance(credential, PskKey) or not credential.chain:
            return None
        scheme = signatures.choose(credential.key, self._schemes)
        if scheme is None:
            raise MalformedMessage("server takes no signature of this key")
        return scheme

    def _try_finished(self, record: Record) -> bool:
        """Whether that was the server's Finished."""
        finished = self._keys.open_finished(
            record.octets, self._reassembly.expected, self._transcript, of_client=False
        )
        if finished is None:
            return False
        self.finished_sequence = record.sequence
        self.failure = ""
        self.state = State.ESTABLISHED
        return True

    # --- sending

    def _fail(self, why: str) -> None:
        self.state = State.CLOSED
        self.failure = why

    def _refuse(self, refusal: Refused) -> None:
        alert = refusal.alert or Alert.HANDSHAKE_FAILURE
        self.outgoing.append(self._encode_clear(ContentType.ALERT, bytes((_FATAL, alert))))
        self._fail(str(refusal))

    def _encode(self, kind: int, body: bytes) -> bytes:
        """The next message of ours, entered into the transcript."""
        message = m.encode_message(kind, self._message_seq, body)
        self._message_seq += 1
        self._transcript.add(message)
        return message

    def _record(self, kind: int, body: bytes) -> None:
        """Enter the expected message of the server into the transcript."""
        self._transcript.add(m.encode_message(kind, self._reassembly.expected, body))

    def _start_flight(self, messages: tuple[bytes, ...], now: float) -> None:
        self._flight = Flight(messages, self._settings.retransmission_time, now)
        self._send_flight()

    def _send_flight(self) -> None:
        limit = self._settings.max_datagram
        datagrams, self._clear_sequence = flights.encode_flight(
            self._flight.messages,
            self._clear_sequence,
            limit,
            self._settings.max_fragment_length or limit - HEADER_LENGTH,
        )
        if self._finished is not None:
            last = datagrams.pop() + self._encode_clear(ContentType.CHANGE_CIPHER_SPEC, b"\1")
            sealed = self.protection.seal(ContentType.HANDSHAKE, self.sequence, self._finished)
            self.sequence += 1
            fits = len(last) + len(sealed) <= limit
            datagrams += [last + sealed] if fits else [last, sealed]
        self.outgoing += datagrams

    def _encode_clear(self, content_type: int, fragment: bytes) -> bytes:
        self._clear_sequence += 1
        return encode(content_type, self._clear_sequence - 1, fragment)


def is_as_agreed(record: Record, protection: Protection) -> bool:
    """Whether a record of epoch 1 has the one form that was negotiated (RFC 9146 section 3)."""
    return (record.content_type == ContentType.TLS12_CID) == bool(protection.received_cid)


def known_alert(description: int) -> Alert | None:
    """None for one that we do not know."""
    try:
        return Alert(description)
    except ValueError:
        return None


_TRANSITIONS: dict[tuple[State, int], Callable[[ClientHandshake, bytes, float], State]] = {
    (State.AWAIT_SERVER_HELLO, T.HELLO_VERIFY_REQUEST): ClientHandshake._on_hello_verify_request,
    (State.AWAIT_SERVER_HELLO, T.SERVER_HELLO): ClientHandshake._on_server_hello,
    (State.AWAIT_KEY_HINT, T.SERVER_KEY_EXCHANGE): ClientHandshake._on_key_hint,
    (State.AWAIT_KEY_HINT, T.SERVER_HELLO_DONE): ClientHandshake._on_server_hello_done,
    (State.AWAIT_CERTIFICATE, T.CERTIFICATE): ClientHandshake._on_certificate,
    (
        State.AWAIT_SERVER_KEY_EXCHANGE,
        T.SERVER_KEY_EXCHANGE,
    ): ClientHandshake._on_server_key_exchange,
    (
        State.AWAIT_CERTIFICATE_REQUEST,
        T.CERTIFICATE_REQUEST,
    ): ClientHandshake._on_certificate_request,
    (State.AWAIT_CERTIFICATE_REQUEST, T.SERVER_HELLO_DONE): ClientHandshake._on_server_hello_done,
    (State.AWAIT_SERVER_HELLO_DONE, T.SERVER_HELLO_DONE): ClientHandshake._on_server_hello_done,
}
"""Which message is taken in which state, and by what; no other is. Finished comes sealed: it is
tried in AWAIT_FINISHED only."""
