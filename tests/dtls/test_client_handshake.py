"""The client's handshake: what it takes from a server, and what not."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from coapgate.dtls import messages as m
from coapgate.dtls.client import Client, ClientCertificate, ClientSettings, PskKey, State
from coapgate.dtls.client_handshake import MAX_HELD_RECORDS
from coapgate.dtls.extensions import ExtensionType
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.records import ContentType, encode
from coapgate.errors import Alert, Reason, Refused
from tests.dtls.factory import device_certificate, psk_client, trust, x509_client
from tests.dtls.raw import ECDHE_CCM_8, PSK_CCM_8, RawServer
from tests.fakes.link import IDENTITY, KEY


def begin(client: Client | None = None, suite: int = PSK_CCM_8, **fields: Any) -> RawServer:
    """A server that has heard the hello."""
    client = client or psk_client()
    client.connect(0.0)
    server = RawServer(client, suite, **fields)
    server.hear()
    return server


def complete(server: RawServer, *messages: tuple[int, bytes]) -> None:
    """The rest of a handshake, with these messages or the good ones."""
    server.say(*(messages or server.flight()))
    server.hear()
    server.derive()
    server.finish()


def psk_server(**fields: Any) -> RawServer:
    return begin(**fields)


def ecdhe_server(client: Client | None = None, **fields: Any) -> RawServer:
    return begin(client or x509_client(), ECDHE_CCM_8, **fields)


# --- what a server may do


def test_a_server_without_cookie_and_without_extensions_is_taken() -> None:
    server = psk_server()

    complete(server)

    assert server.client.is_established
    assert server.client.failure == ""


def test_a_server_with_extended_master_secret_is_taken() -> None:
    server = psk_server(extensions={ExtensionType.EXTENDED_MASTER_SECRET: b""})

    complete(server)

    assert server.client.is_established


def test_a_psk_server_may_send_a_hint() -> None:
    server = psk_server()
    hello, done = server.flight()

    complete(server, hello, (T.SERVER_KEY_EXCHANGE, m.encode_psk_identity(b"a hint")), done)

    assert server.client.is_established


def test_a_hint_comes_once_and_must_parse() -> None:
    server = psk_server()
    hello, done = server.flight()
    server.say(hello)
    bad = m.encode_message(T.SERVER_KEY_EXCHANGE, 1, b"\0\5abc")
    server.put(server.clear(ContentType.HANDSHAKE, bad))
    assert server.client.failure == "message cut short"
    server.say((T.SERVER_KEY_EXCHANGE, b"\0\0"))
    twice = m.encode_message(T.SERVER_KEY_EXCHANGE, 2, b"\0\0")
    server.put(server.clear(ContentType.HANDSHAKE, twice))
    assert server.client.state is State.AWAIT_SERVER_HELLO_DONE

    complete(server, done)

    assert server.client.is_established


def test_a_server_that_asks_for_no_certificate_gets_none() -> None:
    server = ecdhe_server()
    flight = [message for message in server.flight() if message[0] != T.CERTIFICATE_REQUEST]

    complete(server, *flight)

    assert [message[0] for message in server.heard[1:]] == [T.CLIENT_KEY_EXCHANGE]
    assert server.client.is_established


def test_a_client_without_certificate_says_so_and_signs_nothing() -> None:
    empty = Client(ClientCertificate((), device_certificate().key, trust))
    server = ecdhe_server(empty)

    complete(server)

    assert [message[0] for message in server.heard[1:]] == [T.CERTIFICATE, T.CLIENT_KEY_EXCHANGE]
    assert server.client.is_established


def test_a_client_with_certificate_sends_chain_exchange_and_signature() -> None:
    server = ecdhe_server()

    complete(server)

    assert [message[0] for message in server.heard[1:]] == [
        T.CERTIFICATE,
        T.CLIENT_KEY_EXCHANGE,
        T.CERTIFICATE_VERIFY,
    ]
    assert server.client.is_established


def test_messages_in_any_order_and_any_fragments_are_put_together() -> None:
    server = ecdhe_server()
    records = []
    for seq, (kind, body) in enumerate(server.flight()):
        message = m.encode_message(kind, seq, body)
        server.transcript.add(message)
        if not body:
            records.append(message)
        for offset in range(0, len(body), 100):
            piece = body[offset : offset + 100]
            records.append(m.encode_fragment(kind, len(body), seq, offset, piece))
    server._message_seq = 5
    # Message by message, from the back; more than 3 ahead is out of bounds.
    for message in (*reversed(records), *reversed(records)):
        server.put(server.clear(ContentType.HANDSHAKE, message))

    server.hear()
    server.derive()
    server.finish()

    assert server.client.is_established


# --- hello

ANSWERS: list[tuple[dict[str, Any], dict[int, bytes]]] = [
    ({"version": b"\xfe\xff"}, {}),
    ({"cipher_suite": 0xC0A4}, {}),
    ({"cipher_suite": 0xC02F}, {}),
    ({"compression_method": 1}, {}),
    ({}, {0x1234: b""}),
    ({}, {ExtensionType.CONNECTION_ID: b"\0"}),
    ({}, {ExtensionType.MAX_FRAGMENT_LENGTH: b"\1"}),
    ({}, {ExtensionType.RENEGOTIATION_INFO: b"\1x"}),
    ({}, {ExtensionType.EXTENDED_MASTER_SECRET: b"x"}),
]


@pytest.mark.parametrize(("changes", "extensions"), ANSWERS)
def test_nothing_may_be_chosen_that_was_not_offered(
    changes: dict[str, Any], extensions: dict[int, bytes]
) -> None:
    client = psk_client(cipher_suites=(PSK_CCM_8, 0xC02F))
    client = (
        client if changes.get("cipher_suite") == 0xC02F else psk_client(cipher_suites=(PSK_CCM_8,))
    )
    server = begin(client, extensions=extensions)

    server.say(*server.flight(**changes))

    before = client.state, client.failure
    client.handle_timer(1e6)
    assert before[0] is State.AWAIT_SERVER_HELLO
    assert before[1].startswith("server ")
    assert (client.state, client.failure) == (State.CLOSED, before[1])


def test_extended_master_secret_is_not_taken_if_it_was_not_offered() -> None:
    client = psk_client(extended_master_secret=False)
    server = begin(client, extensions={ExtensionType.EXTENDED_MASTER_SECRET: b""})

    server.say(*server.flight())

    assert client.state is State.AWAIT_SERVER_HELLO


def test_an_answer_to_the_maximum_fragment_length_must_be_the_same() -> None:
    kind = ExtensionType.MAX_FRAGMENT_LENGTH
    good = begin(psk_client(max_fragment_length=512), extensions={kind: b"\1"})
    complete(good)
    assert good.client.is_established

    bad = begin(psk_client(max_fragment_length=512), extensions={kind: b"\2"})
    bad.say(*bad.flight())
    assert bad.client.failure == "server answered extension 1 with something else"


def test_the_hello_is_sent_again_with_the_cookie() -> None:
    client = psk_client()
    server = begin(client)
    server.say((T.HELLO_VERIFY_REQUEST, b"\xfe\xff\5a key"))

    (second,) = server.hear()

    first = m.ClientHello.parse(server.heard[0][12:])
    again = m.ClientHello.parse(second[12:])
    assert (first.cookie, again.cookie) == (b"", b"a key")
    assert again.random == first.random
    assert int.from_bytes(second[4:6], "big") == 1


# --- X.509


def test_a_server_that_is_not_trusted_is_told_so() -> None:
    def distrust(chain: tuple[bytes, ...]) -> ec.EllipticCurvePublicKey:
        raise Refused(Reason.UNTRUSTED, "who is that?")

    certificate = device_certificate()
    client = Client(ClientCertificate(certificate.chain, certificate.key, distrust))
    server = ecdhe_server(client)

    server.say(*server.flight())

    assert client.outgoing[-1].endswith(bytes((2, Alert.UNKNOWN_CA)))
    assert (client.state, client.failure) == (State.CLOSED, "untrusted: who is that?")
    assert client.next_timer() is None


def test_a_server_must_show_a_certificate() -> None:
    server = ecdhe_server()
    hello, *_ = server.flight()

    server.say(hello, (T.CERTIFICATE, m.encode_certificate(())))

    assert server.client.failure == "server shows no certificate"
    assert server.client.state is State.AWAIT_CERTIFICATE


def test_a_refusal_without_an_alert_of_its_own_is_a_handshake_failure() -> None:
    def distrust(chain: tuple[bytes, ...]) -> ec.EllipticCurvePublicKey:
        raise Refused(Reason.BAD_KEY)

    certificate = device_certificate()
    client = Client(ClientCertificate(certificate.chain, certificate.key, distrust))
    server = ecdhe_server(client)

    server.say(*server.flight())

    assert client.outgoing[-1].endswith(bytes((2, Alert.HANDSHAKE_FAILURE)))


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"signature": b"no signature"}, "server key exchange is not signed by the server"),
        ({"scheme": 0x0203}, "server key exchange is not signed by the server"),
        ({"scheme": 0x0807}, "server key exchange is not signed by the server"),
        ({"group": 25}, "server chose a group that was not offered"),
        ({"group": 24}, "server key exchange is not signed by the server"),
    ],
)
def test_a_server_key_exchange_must_be_signed_and_of_an_offered_group(
    changes: dict[str, Any], failure: str
) -> None:
    server = ecdhe_server()
    hello, certificate, (kind, body), *rest = server.flight()
    exchange = m.ServerKeyExchange.parse(body)
    fields = {name: getattr(exchange, name) for name in ("group", "point", "scheme", "signature")}
    forged = m.ServerKeyExchange(**(fields | changes)).encode()
    server.say(hello, certificate)
    lie = m.encode_message(kind, 2, forged)
    server.put(server.clear(ContentType.HANDSHAKE, lie))
    assert server.client.failure == failure
    assert server.client.state is State.AWAIT_SERVER_KEY_EXCHANGE

    complete(server, (kind, body), *rest)

    assert server.client.is_established


def test_a_server_that_takes_no_signature_of_our_key_is_no_server_for_us() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    client = x509_client(key=key)
    server = ecdhe_server(client)
    request = m.CertificateRequest(b"\x40", (0x0403,)).encode()
    flight = [
        (kind, request if kind == T.CERTIFICATE_REQUEST else body) for kind, body in server.flight()
    ]

    server.say(*flight)

    assert client.state is State.AWAIT_SERVER_HELLO_DONE
    assert client.failure == "server takes no signature of this key"


def test_server_hello_done_is_empty() -> None:
    server = psk_server()
    hello, _ = server.flight()

    server.say(hello, (T.SERVER_HELLO_DONE, b"?"))

    assert server.client.failure == "octets in ServerHelloDone"


# --- Finished


def test_a_server_without_the_key_never_finishes() -> None:
    server = psk_server()
    server.say(*server.flight())
    server.hear()
    server.derive(b"another key 0123")
    server.finish()

    assert server.client.state is State.AWAIT_FINISHED


def test_what_comes_before_finished_is_held_and_taken_after_it() -> None:
    server = psk_server()
    server.say(*server.flight())
    server.hear()
    server.derive()
    early = server.sealed(ContentType.APPLICATION_DATA, b"early")
    finished = server.sealed_finished()

    assert server.put(early) == []
    assert server.put(finished) == [b"early"]

    assert server.client.is_established


def test_finished_that_comes_before_our_own_is_sent_is_tried_then() -> None:
    server = psk_server()
    hello, done = server.flight()
    server.say(hello)
    junk = b"\x16\xfe\xfd\0\1" + bytes(6) + b"\0\x20" + bytes(32)
    server.put(junk)
    server.say(done)
    assert server.client.state is State.AWAIT_FINISHED

    server.hear()
    server.derive()
    server.finish()

    assert server.client.is_established


def test_few_records_are_held() -> None:
    server = psk_server()
    server.say(*server.flight())
    server.hear()
    server.derive()
    early = [
        server.sealed(ContentType.APPLICATION_DATA, bytes([n])) for n in range(MAX_HELD_RECORDS + 2)
    ]
    for record in early:
        server.put(record)

    assert server.put(server.sealed_finished()) == [bytes([n]) for n in range(MAX_HELD_RECORDS)]


# --- alerts


@pytest.mark.parametrize(("number", "alert"), [(40, Alert.HANDSHAKE_FAILURE), (199, None)])
def test_a_fatal_alert_ends_the_handshake(number: int, alert: Alert | None) -> None:
    server = psk_server()
    hello = m.encode_message(T.SERVER_HELLO, 0, server.flight()[0][1])

    server.put(
        server.clear(ContentType.ALERT, bytes((2, number))),
        server.clear(ContentType.HANDSHAKE, hello),
    )

    client = server.client
    assert (client.state, client.alert) == (State.CLOSED, alert)
    assert client.failure == f"server sent alert {number}"


@pytest.mark.parametrize("fragment", [bytes((1, 90)), b"\2", b"", bytes(3)])
def test_other_alerts_and_change_cipher_spec_change_nothing(fragment: bytes) -> None:
    server = psk_server()

    server.put(server.clear(ContentType.ALERT, fragment))
    server.put(server.clear(ContentType.CHANGE_CIPHER_SPEC, b"\1"))

    assert server.client.state is State.AWAIT_SERVER_HELLO


# --- timers


def test_a_flight_is_repeated_doubling_and_given_up() -> None:
    client = Client(
        PskKey(IDENTITY, KEY), ClientSettings(retransmission_time=2.0, handshake_timeout=40.0)
    )
    client.connect(100.0)
    first = list(client.outgoing)
    sent_at = []
    while (due := client.next_timer()) is not None:
        client.outgoing.clear()
        client.handle_timer(due - 0.01)
        assert client.outgoing == []
        client.handle_timer(due)
        if client.outgoing:
            assert client.outgoing[0][13:] == first[0][13:]
            sent_at.append(due - 100.0)

    assert sent_at == [2.0, 6.0, 14.0, 30.0]
    assert (client.state, client.failure) == (State.CLOSED, "no answer")


def test_a_server_that_repeats_its_flight_gets_ours_again_under_new_numbers() -> None:
    server = psk_server()
    flight = server.flight()
    server.say(*flight)
    first = list(server.client.outgoing)
    server.hear()
    again = encode(ContentType.HANDSHAKE, 9, m.encode_message(flight[0][0], 0, flight[0][1]))

    server.put(again)
    server.put(again)

    (second,) = server.client.outgoing
    assert second[13:] != first[0][13:]
    assert len(second) == len(first[0])
    server.client.outgoing.clear()
    server.now = 1.0
    server.put(again)
    assert len(server.client.outgoing) == 1


def test_finished_takes_a_datagram_of_its_own_if_it_must() -> None:
    sizes = set()
    for max_datagram in range(80, 260):
        client = psk_client(max_datagram=max_datagram)
        server = begin(client)
        server.say(*server.flight())
        assert max(len(datagram) for datagram in client.outgoing) <= max_datagram
        sizes.add(len(client.outgoing))
        server.hear()
        server.derive()
        server.finish()
        assert client.is_established

    assert sizes == {1, 2}
