"""Every message in every state, of both roles: only the table's moves the handshake on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from coapgate.dtls import client_handshake
from coapgate.dtls import messages as m
from coapgate.dtls.client import State as ClientState
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.handshake import _ORDER, _TRANSITIONS, State
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.records import ContentType, encode, split
from coapgate.dtls.server import Server, ServerSettings
from coapgate.dtls.signatures import SCHEMES
from coapgate.errors import Reason
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method
from tests.dtls.factory import device_certificate, psk_client, x509_client, x509_settings
from tests.dtls.raw import ECDHE_CCM_8, PATH, PSK_CCM_8, RawPeer, read_messages
from tests.fakes.link import KEY

DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "psk-1")
SUITES = {"psk": PSK_CCM_8, "ecdhe": ECDHE_CCM_8}


def no_delivery(association: object, plaintext: bytes, now: float) -> None:
    raise AssertionError("nothing was sent")


def new_server(settings: ServerSettings | None = None) -> Server:
    return Server(settings or x509_settings(), no_delivery)


def bodies(peer: RawPeer) -> dict[int, bytes]:
    """A body that parses for each type of message."""
    certificate = device_certificate()
    return {
        T.HELLO_REQUEST: b"",
        T.CLIENT_HELLO: peer.hello(bytes(32)).encode(),
        T.SERVER_HELLO: m.ServerHello(bytes(32), peer.suite).encode(),
        T.HELLO_VERIFY_REQUEST: b"\xfe\xff\0",
        T.CERTIFICATE: m.encode_certificate(certificate.chain),
        T.SERVER_KEY_EXCHANGE: m.ServerKeyExchange(23, bytes(65), 0x0403, b"").encode(),
        T.CERTIFICATE_REQUEST: m.CertificateRequest(b"\x40", tuple(SCHEMES)).encode(),
        T.SERVER_HELLO_DONE: b"",
        T.CERTIFICATE_VERIFY: m.CertificateVerify(0x0403, b"").encode(),
        T.CLIENT_KEY_EXCHANGE: peer.key_exchange(),
        T.FINISHED: bytes(12),
        99: b"unknown",
    }


# --- the server


class Walk:
    """A good handshake, one step at a time; `state` is the server's before the next step."""

    def __init__(self, kind: str) -> None:
        self.server = new_server()
        self.peer = RawPeer(self.server, suite=SUITES[kind])
        self.steps: Iterator[None] = getattr(self, f"_{kind}")()

    @property
    def state(self) -> State | None:
        handshake = self.server._pending.at(PATH)
        return None if handshake is None else handshake.state

    def until(self, state: State) -> None:
        while self.state is not state:
            next(self.steps)

    def finish(self) -> None:
        for _ in self.steps:
            pass

    def _greet(self) -> Iterator[None]:
        peer = self.peer
        hello = peer.hello(peer.ask()).encode()
        message = m.encode_message(T.CLIENT_HELLO, peer.message_seq, hello)
        half = 70  # behind the cookie
        first, rest = (
            m.encode_fragment(T.CLIENT_HELLO, len(hello), peer.message_seq, offset, body)
            for offset, body in ((0, hello[:half]), (half, hello[half:]))
        )
        peer.put(peer.clear(ContentType.HANDSHAKE, first))
        yield
        replies = peer.put(peer.clear(ContentType.HANDSHAKE, rest))
        peer.message_seq += 1
        peer.transcript = type(peer.transcript)("sha256")
        peer.transcript.add(message)
        for answer in read_messages(replies):
            peer.transcript.add(answer)
            peer.flight[answer[0]] = answer[m.HEADER_LENGTH :]
        yield

    def _psk(self) -> Iterator[None]:
        yield from self._greet()
        self.peer.say(T.CLIENT_KEY_EXCHANGE, self.peer.key_exchange())
        self.peer.derive()
        yield
        event = self.server.events.popleft()
        assert isinstance(event, KeysRequested)
        self.server.offer_keys(event.handshake, (Candidate(KEY, None),), 0.0)
        yield
        yield from self._prove()

    def _ecdhe(self) -> Iterator[None]:
        yield from self._greet()
        certificate = device_certificate()
        self.peer.say(T.CERTIFICATE, m.encode_certificate(certificate.chain))
        yield
        self.peer.say(T.CLIENT_KEY_EXCHANGE, self.peer.key_exchange())
        self.peer.derive()
        yield
        verify = self.peer.certificate_verify(certificate.key)
        self.peer.say(T.CERTIFICATE_VERIFY, verify)
        yield
        yield from self._prove()

    def _prove(self) -> Iterator[None]:
        self.peer.finish()
        yield
        event = self.server.events.popleft()
        assert isinstance(event, KeyProven | ChainProven)
        assert self.server.accept(event.handshake, DEVICE, 0.0) is not None


COMMON = (State.AWAIT_CLIENT_HELLO, State.AWAIT_CLIENT_KEY_EXCHANGE, State.AWAIT_FINISHED)
STATES = [
    *(("psk", state) for state in (*COMMON, State.AWAIT_KEYS, State.AWAIT_DECISION)),
    *(
        ("ecdhe", state)
        for state in (
            *COMMON,
            State.AWAIT_CERTIFICATE,
            State.AWAIT_CERTIFICATE_VERIFY,
            State.AWAIT_DECISION,
        )
    ),
]


def test_every_state_is_walked_through() -> None:
    assert {state for _, state in STATES} == set(State) - {State.REFUSED}


@pytest.mark.parametrize(("kind", "state"), STATES, ids=lambda value: getattr(value, "name", value))
def test_no_other_message_in_the_clear_is_taken_in_any_state(kind: str, state: State) -> None:
    probe = Walk(kind)
    for message_type, body in bodies(probe.peer).items():
        for ahead in range(5):
            if (state, message_type) in _TRANSITIONS and ahead == 0:
                continue
            if _ORDER.get(state, ())[ahead : ahead + 1] == (message_type,):
                # It may come early, and is then the one that is taken: it would be a forgery.
                continue
            walk = Walk(kind)
            walk.until(state)
            seq = walk.peer.message_seq + ahead
            message = m.encode_message(message_type, seq, body)

            walk.peer.put(encode(ContentType.HANDSHAKE, 1000, message))

            assert walk.state is state
            walk.finish()
            assert walk.server.association_count == 1, (message_type, ahead)


@pytest.mark.parametrize(("kind", "state"), STATES, ids=lambda value: getattr(value, "name", value))
def test_no_sealed_message_but_finished_is_taken_in_any_state(kind: str, state: State) -> None:
    for message_type, body in bodies(Walk(kind).peer).items():
        walk = Walk(kind)
        walk.until(state)
        message = m.encode_message(message_type, walk.peer.message_seq, body)
        if walk.peer.keys is None:
            record = b"\x16\xfe\xfd\0\1" + bytes(6) + len(message).to_bytes(2, "big") + message
        else:
            record = walk.peer.sealed(ContentType.HANDSHAKE, message)

        walk.peer.put(record)

        assert walk.state is state
        walk.finish()
        assert walk.server.association_count == 1, message_type


@pytest.mark.parametrize(("kind", "state"), STATES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_no_other_content_type_is_taken_in_any_state(kind: str, state: State, epoch: int) -> None:
    walk = Walk(kind)
    walk.until(state)
    for content_type in (20, 21, 23, 24, 25, 0, 255):
        for body in (b"", b"\1", b"\2\x28", b"\1\0", bytes(40)):
            header = bytes((content_type,)) + b"\xfe\xfd" + epoch.to_bytes(2, "big") + bytes(6)
            walk.peer.put(header + len(body).to_bytes(2, "big") + body)

    assert walk.state is state
    walk.finish()
    assert walk.server.association_count == 1


def test_an_ecdhe_peer_proves_itself_in_one_order_of_messages_and_no_other() -> None:
    flight = (T.CERTIFICATE, T.CLIENT_KEY_EXCHANGE, T.CERTIFICATE_VERIFY, T.FINISHED)
    orders = [
        order
        for length in range(1, len(flight) + 1)
        for order in itertools.permutations(flight, length)
    ]
    assert len(orders) == 64
    for order in orders:
        server = new_server()
        certificate = device_certificate()
        peer = RawPeer(server, suite=ECDHE_CCM_8)
        peer.greet()
        for message in order:
            match message:
                case T.CERTIFICATE:
                    peer.say(message, m.encode_certificate(certificate.chain))
                case T.CLIENT_KEY_EXCHANGE:
                    peer.say(message, peer.key_exchange())
                    peer.derive()
                case T.CERTIFICATE_VERIFY:
                    peer.say(message, peer.certificate_verify(certificate.key))
                case _ if peer.keys is not None:
                    peer.finish()

        assert (len(server.events) == 1) is (order == flight), order
        assert server.association_count == 0


def test_a_psk_peer_cannot_go_the_way_of_certificates() -> None:
    server = new_server()
    certificate = device_certificate()
    peer = RawPeer(server)
    peer.greet()

    peer.say(T.CERTIFICATE, m.encode_certificate(certificate.chain))

    handshake = server._pending.at(PATH)
    assert handshake is not None
    assert handshake.state is State.AWAIT_CLIENT_KEY_EXCHANGE


def test_a_refused_peer_is_heard_no_more() -> None:
    walk = Walk("ecdhe")
    walk.until(State.AWAIT_DECISION)
    event = walk.server.events.popleft()
    assert isinstance(event, ChainProven)
    walk.server.refuse(event.handshake, Reason.DISABLED, 0.0)
    for message_type, body in bodies(walk.peer).items():
        for seq in range(8):
            message = m.encode_message(message_type, seq, body)
            walk.peer.put(walk.peer.clear(ContentType.HANDSHAKE, message))
            walk.peer.put(walk.peer.sealed(ContentType.HANDSHAKE, message))

    assert walk.state is State.REFUSED
    assert walk.server.accept(event.handshake, DEVICE, 0.0) is None
    assert walk.server.association_count == 0


# --- the client


class ClientWalk:
    """A client that gets the server's messages one by one."""

    def __init__(self, kind: str) -> None:
        self.server = new_server()
        self.client = psk_client() if kind == "psk" else x509_client()
        self.client.connect(0.0)
        self._to_server()
        self._to_client()
        self._to_server()
        answers = [datagram for datagram, _ in self.server.outgoing]
        self.server.outgoing.clear()
        self.messages = read_messages([record for d in answers for record in split(d)])
        self.number = 0

    @property
    def state(self) -> ClientState:
        return self.client.state

    @property
    def expected(self) -> int:
        """The message_seq of the next message."""
        first = int.from_bytes(self.messages[0][4:6], "big")
        return first + self.number

    def step(self) -> None:
        self.put(self.messages[self.number])
        self.number += 1

    def put(self, message: bytes) -> None:
        self.client.receive_datagram(encode(ContentType.HANDSHAKE, 50, message), 0.0)

    def until(self, state: ClientState) -> None:
        while self.state is not state:
            self.step()

    def finish(self) -> None:
        while self.number < len(self.messages):
            self.step()
        self._to_server()
        while self.server.events:
            match self.server.events.popleft():
                case KeysRequested(handshake):
                    self.server.offer_keys(handshake, (Candidate(KEY, None),), 0.0)
                case KeyProven(handshake) | ChainProven(handshake):
                    self.server.accept(handshake, DEVICE, 0.0)
        self._to_client()

    def _to_server(self) -> None:
        for datagram in self.client.outgoing:
            self.server.receive_datagram(datagram, PATH, 0.0)
        self.client.outgoing.clear()

    def _to_client(self) -> None:
        for datagram, _ in self.server.outgoing:
            self.client.receive_datagram(datagram, 0.0)
        self.server.outgoing.clear()


CLIENT_STATES = [
    *(
        ("psk", state)
        for state in (
            ClientState.AWAIT_SERVER_HELLO,
            ClientState.AWAIT_KEY_HINT,
            ClientState.AWAIT_FINISHED,
        )
    ),
    *(
        ("ecdhe", state)
        for state in (
            ClientState.AWAIT_SERVER_HELLO,
            ClientState.AWAIT_CERTIFICATE,
            ClientState.AWAIT_SERVER_KEY_EXCHANGE,
            ClientState.AWAIT_CERTIFICATE_REQUEST,
            ClientState.AWAIT_SERVER_HELLO_DONE,
            ClientState.AWAIT_FINISHED,
        )
    ),
]


@pytest.mark.parametrize(
    ("kind", "state"), CLIENT_STATES, ids=lambda value: getattr(value, "name", value)
)
def test_a_client_takes_no_other_message_in_any_state(kind: str, state: ClientState) -> None:
    for message_type, body in bodies(RawPeer(new_server(), suite=SUITES[kind])).items():
        if (state, message_type) in client_handshake._TRANSITIONS:
            continue
        walk = ClientWalk(kind)
        walk.until(state)

        walk.put(m.encode_message(message_type, walk.expected, body))

        assert walk.state is state
        walk.finish()
        assert walk.client.is_established, (message_type, walk.client.failure)


@pytest.mark.parametrize(
    ("kind", "state"), CLIENT_STATES, ids=lambda value: getattr(value, "name", value)
)
def test_a_client_takes_nothing_sealed_but_finished(kind: str, state: ClientState) -> None:
    walk = ClientWalk(kind)
    walk.until(state)
    for content_type in (20, 21, 22, 23, 25, 0):
        for epoch in (1, 2):
            header = bytes((content_type,)) + b"\xfe\xfd" + epoch.to_bytes(2, "big") + bytes(6)
            walk.client.receive_datagram(header + b"\0\x28" + bytes(40), 0.0)

    assert walk.state is state
    walk.finish()
    assert walk.client.is_established
