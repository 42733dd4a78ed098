"""The client's half of Connection IDs (RFC 9146): what it offers, takes and sends."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from coapgate.dtls import messages as m
from coapgate.dtls.client import State
from coapgate.dtls.client_handshake import MAX_HELD_RECORDS
from coapgate.dtls.extensions import ExtensionType
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.presentation import vector
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import ContentType, Record
from coapgate.errors import Alert
from tests.dtls.factory import psk_client, x509_client, x509_settings
from tests.dtls.raw import ECDHE_CCM_8, PSK_CCM_8, RawServer
from tests.dtls.vectors import SESSIONS, Session
from tests.fakes.link import Link, by_chance

OURS = b"\xbe\xef"
THEIRS = b"of eight"
APPLICATION_DATA = ContentType.APPLICATION_DATA
FORMS = list(product((b"", OURS, bytes(range(255))), (b"", b"8", THEIRS, bytes(range(255, 0, -1)))))


def greeted(
    ours: bytes | None = OURS, answer: bytes | None = vector(1, THEIRS), **settings: Any
) -> RawServer:
    """A server that has heard the hello, and its client; `answer` is the body of extension 54."""
    server = RawServer(
        psk_client(connection_id=ours, **settings),
        extensions={} if answer is None else {ExtensionType.CONNECTION_ID: answer},
    )
    server.client.connect(0.0)
    server.hear()
    return server


def keyed(*args: Any, **settings: Any) -> RawServer:
    """A server that waits for nothing but to send its Finished."""
    server = greeted(*args, **settings)
    server.say(*server.flight())
    server.hear()
    server.derive()
    return server


def connected(*args: Any, **settings: Any) -> RawServer:
    server = keyed(*args, **settings)
    server.finish()
    assert server.client.is_established
    return server


def opened(server: RawServer) -> list[tuple[Record, int, bytes]]:
    """What the client has sent: record, content type, plaintext."""
    assert server.keys is not None
    protection = server.keys.protection
    return [
        (record, *protection.open_cid(record.octets))
        if protection.received_cid
        else (record, record.content_type, protection.open(record.octets))
        for record in server.take()
    ]


def sealed_as(server: RawServer, cid: bytes, content_type: int, plaintext: bytes) -> bytes:
    """The server's next record under the right keys, but with this Connection ID, or none."""
    assert server.keys is not None
    agreed = server.keys.protection
    server.keys.protection = Protection(
        agreed.suite, agreed.key_block, is_client=False, sent_cid=cid
    )
    record = server.sealed(content_type, plaintext)
    server.keys.protection = agreed
    return record


# --- what is offered, what is answered


@pytest.mark.parametrize(("ours", "offer"), [(None, None), (b"", b"\0"), (OURS, b"\2\xbe\xef")])
def test_the_hello_offers_what_the_settings_say_with_and_without_a_cookie(
    ours: bytes | None, offer: bytes | None
) -> None:
    server = greeted(ours, None)
    server.say((T.HELLO_VERIFY_REQUEST, b"\xfe\xff\5a key"))
    server.hear()

    hellos = [m.ClientHello.parse(hello[m.HEADER_LENGTH :]) for hello in server.heard]
    assert [hello.extensions.get(ExtensionType.CONNECTION_ID) for hello in hellos] == [offer] * 2


@pytest.mark.parametrize(("ours", "theirs"), FORMS)
def test_each_direction_carries_what_its_receiver_asked_for(ours: bytes, theirs: bytes) -> None:
    server = connected(ours, vector(1, theirs))

    server.client.send(b"up")
    ((record, content_type, plaintext),) = opened(server)
    answer = server.sealed(APPLICATION_DATA, b"down")

    assert (content_type, plaintext) == (APPLICATION_DATA, b"up")
    assert record.content_type == (ContentType.TLS12_CID if theirs else APPLICATION_DATA)
    assert record.connection_id == theirs
    assert answer[0] == (ContentType.TLS12_CID if ours else APPLICATION_DATA)
    assert answer[11 : 11 + len(ours)] == ours
    assert server.put(answer) == [b"down"]
    assert server.client.sent_cid == theirs


@pytest.mark.parametrize("ours", [b"", OURS])
def test_without_an_answer_there_is_no_connection_id(ours: bytes) -> None:
    server = connected(ours, None)

    server.client.send(b"up")

    ((record, _, plaintext),) = opened(server)
    assert (record.content_type, plaintext) == (APPLICATION_DATA, b"up")
    assert server.client.sent_cid == b""
    assert server.put(server.sealed(APPLICATION_DATA, b"down")) == [b"down"]


@pytest.mark.parametrize("answer", [b"", b"\2a", b"\1ab"])
def test_an_answer_that_is_no_connection_id_is_dropped(answer: bytes) -> None:
    server = greeted(OURS, answer)

    server.say(server.flight()[0])

    assert server.client.state is State.AWAIT_SERVER_HELLO
    assert server.client.failure.startswith(("message cut short", "octets after the end"))


@pytest.mark.parametrize(("make", "suite"), [(psk_client, PSK_CCM_8), (x509_client, ECDHE_CCM_8)])
def test_it_is_the_same_with_a_key_and_with_a_certificate(make: Any, suite: int) -> None:
    extensions: dict[int, bytes] = {
        ExtensionType.CONNECTION_ID: vector(1, THEIRS),
        ExtensionType.EXTENDED_MASTER_SECRET: b"",
    }
    server = RawServer(make(connection_id=OURS), suite, extensions=extensions)
    server.client.connect(0.0)
    server.hear()
    server.say(*server.flight())
    server.hear()
    server.derive()
    server.finish()

    assert server.client.is_established
    assert server.client.sent_cid == THEIRS


def test_max_plaintext_leaves_room_for_the_connection_id() -> None:
    client = connected(OURS, max_datagram=300).client

    assert client.max_plaintext == 300 - 29 - len(THEIRS) - 1
    client.send(bytes(client.max_plaintext))
    assert len(client.outgoing[-1]) == 300


# --- the form of records


def test_a_record_of_the_other_form_is_dropped() -> None:
    with_cid, without = connected(OURS), connected(b"")

    assert with_cid.put(sealed_as(with_cid, b"", APPLICATION_DATA, b"plain")) == []
    assert without.put(sealed_as(without, b"x", APPLICATION_DATA, b"with")) == []

    for server in (with_cid, without):
        assert server.client.is_established
        assert server.put(server.sealed(APPLICATION_DATA, b"good")) == [b"good"]


def test_finished_in_the_other_form_is_none() -> None:
    with_cid, without = keyed(OURS), keyed(b"")
    for server, cid in ((with_cid, b""), (without, b"x")):
        assert server.keys is not None
        agreed = server.keys.protection
        server.keys.protection = Protection(
            agreed.suite, agreed.key_block, is_client=False, sent_cid=cid
        )
        server.finish()
        server.keys.protection = agreed

        assert server.client.state is State.AWAIT_FINISHED


def test_a_record_for_another_connection_id_is_dropped() -> None:
    server = connected(OURS)

    for cid in (b"\xbe\xee", b"\xbe", b"\xbe\xef\0"):
        assert server.put(sealed_as(server, cid, APPLICATION_DATA, b"for another")) == []

    assert server.client.is_established


def test_a_record_cut_anywhere_is_dropped() -> None:
    server = connected(OURS)
    record = server.sealed(APPLICATION_DATA, b"whole")

    for cut in range(len(record)):
        assert server.put(record[:cut]) == []
    assert server.put(record) == [b"whole"]


def test_replayed_and_forged_records_with_a_connection_id_are_dropped() -> None:
    server = connected(OURS)
    good = server.sealed(APPLICATION_DATA, b"once")
    forged = bytearray(server.sealed(APPLICATION_DATA, b"never"))
    forged[-1] ^= 1

    assert [server.put(each) for each in (good, good, bytes(forged))] == [[b"once"], [], []]
    assert server.client.is_established


# --- what is inside


def test_the_inner_content_type_counts() -> None:
    server = connected(OURS)
    request = m.encode_message(T.HELLO_REQUEST, 0, b"")

    assert server.put(server.sealed(ContentType.HANDSHAKE, request)) == []
    assert server.put(server.sealed(ContentType.CHANGE_CIPHER_SPEC, b"\1")) == []
    assert server.put(server.sealed(ContentType.TLS12_CID, b"again?")) == []
    assert server.client.outgoing == []

    server.put(server.sealed(ContentType.ALERT, bytes((2, 80))))
    assert (server.client.state, server.client.alert) == (State.CLOSED, Alert.INTERNAL_ERROR)


def test_close_notify_with_a_connection_id_is_answered_with_one() -> None:
    server = connected(OURS)

    server.put(server.sealed(ContentType.ALERT, b"\1\0"))

    ((record, content_type, plaintext),) = opened(server)
    assert record.connection_id == THEIRS
    assert (content_type, plaintext) == (ContentType.ALERT, b"\1\0")
    assert server.client.alert is Alert.CLOSE_NOTIFY


def test_padding_of_the_server_is_taken_off() -> None:
    server = connected(OURS)
    padded = bytes((APPLICATION_DATA,)) + bytes(30)

    assert server.put(server.sealed(0, b"down" + padded)) == [b"down"]
    assert server.put(server.sealed(0, b"ends in zero\0" + padded)) == [b"ends in zero\0"]


def test_a_record_of_nothing_but_padding_is_dropped() -> None:
    server = connected(OURS)

    assert server.put(server.sealed(0, bytes(20))) == []
    assert server.put(server.sealed(0, b"")) == []

    assert server.client.is_established


@pytest.mark.parametrize("padding", [0, 1, 2, 40])
def test_padding_hides_the_length_of_what_is_sent(padding: int) -> None:
    server = connected(OURS)

    server.client.send(b"up\0", padding=padding)
    server.client.send(b"up\0" + bytes(padding))

    (padded, content_type, plaintext), (longer, _, _) = opened(server)
    assert (content_type, plaintext) == (APPLICATION_DATA, b"up\0")
    assert len(padded.octets) == len(longer.octets)


def test_without_a_connection_id_nothing_is_padded() -> None:
    server = connected(b"", b"\0")

    server.client.send(b"up", padding=40)

    ((record, _, plaintext),) = opened(server)
    assert plaintext == b"up"
    assert len(record.octets) == 13 + 8 + 2 + 8


# --- what comes early


def test_what_comes_before_finished_is_held_with_a_connection_id_too() -> None:
    server = keyed(OURS)
    early = server.sealed(APPLICATION_DATA, b"early")
    finished = server.sealed_finished()

    assert server.put(early) == []
    assert server.put(finished) == [b"early"]
    assert server.put(finished, early) == []

    assert server.client.handshakes == 1


def test_finished_that_comes_before_our_own_is_sent_is_tried_then() -> None:
    server = greeted(OURS)
    hello, done = server.flight()
    server.say(hello)
    server.put(b"\x19\xfe\xfd\0\1" + bytes(6) + OURS + b"\0\x20" + bytes(32))
    server.put(b"\x16\xfe\xfd\0\1" + bytes(6) + b"\0\x20" + bytes(32))
    server.say(done)
    assert server.client.state is State.AWAIT_FINISHED

    server.hear()
    server.derive()
    server.finish()

    assert server.client.is_established


def test_few_records_with_a_connection_id_are_held() -> None:
    server = keyed(OURS)
    for number in range(MAX_HELD_RECORDS + 2):
        server.put(server.sealed(APPLICATION_DATA, bytes([number])))

    taken = server.put(server.sealed_finished())

    assert taken == [bytes([number]) for number in range(MAX_HELD_RECORDS)]


# --- memory


def test_a_cooled_client_goes_on() -> None:
    server = connected(OURS)

    server.client.cool()
    server.client.send(b"up")

    assert [plaintext for *_, plaintext in opened(server)] == [b"up"]
    server.client.cool()
    assert server.put(server.sealed(APPLICATION_DATA, b"down")) == [b"down"]


def test_a_client_that_was_never_connected_has_nothing_to_cool() -> None:
    client = psk_client(connection_id=OURS)

    client.cool()

    assert client.sent_cid == b""


# --- others


@pytest.mark.parametrize(
    "session", [each for each in SESSIONS if each.server_cid], ids=lambda session: session.name
)
def test_records_are_those_of_mbedtls_octet_for_octet(session: Session) -> None:
    """Mbed TLS pads to 16 octets, and its explicit nonce is the record's number too."""
    client = psk_client(connection_id=session.client_cid)
    client.state = State.ESTABLISHED
    client._protection = Protection(
        session.suite,
        session.server_protection().key_block,
        is_client=True,
        received_cid=session.client_cid,
        sent_cid=session.server_cid,
    )
    application_data = [each for each in session.records if each.content_type == APPLICATION_DATA]
    assert application_data
    for record in application_data:
        client._sequence = int.from_bytes(record.octets[5:11], "big")
        unpadded = client._protection.overhead + len(record.plaintext)

        client.send(record.plaintext, padding=len(record.octets) - unpadded)

    assert client.outgoing == [record.octets for record in application_data]


@pytest.mark.parametrize("make", [psk_client, x509_client])
@pytest.mark.parametrize("ours", [None, b"", OURS, bytes(255)])
def test_a_server_of_ours_and_a_client_agree(make: Any, ours: bytes | None) -> None:
    link = Link(x509_settings())

    device = link.connect(make(connection_id=ours))
    device.client.send(b"up")
    link.run(0.5)
    (association, _) = link.delivered[0]
    link.server.traffic.send(association, b"down", link.now)
    link.run(0.5)

    assert device.plaintexts == [b"down"]
    assert association.protection.sent_cid == (ours or b"")
    assert association.protection.received_cid == device.client.sent_cid
    assert len(device.client.sent_cid) == (0 if ours is None else 8)


@pytest.mark.parametrize("seed", range(10))
def test_handshakes_with_a_connection_id_survive_a_bad_wire(seed: int) -> None:
    link = Link(fate=by_chance(seed, loss=0.15, duplication=0.1, reordering=0.2))

    device = link.connect(psk_client(connection_id=OURS), seconds=60.0)

    assert device.client.is_established
    assert device.client.handshakes == 1
