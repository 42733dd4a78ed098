"""One device's end of an association."""

from __future__ import annotations

from typing import Any

import pytest

from coapgate.dtls import messages as m
from coapgate.dtls.client import State
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.records import ContentType, Record, split
from coapgate.errors import Alert
from tests.dtls.factory import psk_client
from tests.dtls.raw import RawServer
from tests.fakes.link import Link


@pytest.fixture
def server() -> RawServer:
    """With a client that is connected to it."""
    return connected(RawServer(psk_client()))


def connected(server: RawServer) -> RawServer:
    server.client.connect(0.0)
    server.hear()
    server.say(*server.flight())
    server.hear()
    server.derive()
    server.finish()
    return server


def opened(server: RawServer) -> list[tuple[Record, bytes]]:
    """What the client has sent, with the plaintexts."""
    assert server.keys is not None
    records = [record for datagram in server.client.outgoing for record in split(datagram)]
    server.client.outgoing.clear()
    return [(record, server.keys.protection.open(record.octets)) for record in records]


def test_a_client_sends_and_receives_application_data(server: RawServer) -> None:
    server.client.send(b"up")

    ((record, plaintext),) = opened(server)
    received = server.put(server.sealed(ContentType.APPLICATION_DATA, b"down"))

    assert (record.content_type, record.epoch, plaintext) == (23, 1, b"up")
    assert received == [b"down"]
    assert server.client.handshakes == 1
    assert server.client.next_timer() is None


def test_no_send_number_is_used_twice(server: RawServer) -> None:
    for _ in range(5):
        server.client.send(b"same")

    # Finished had number 0.
    assert [record.sequence for record, _ in opened(server)] == [1, 2, 3, 4, 5]


def test_replayed_and_forged_records_are_dropped(server: RawServer) -> None:
    good = server.sealed(ContentType.APPLICATION_DATA, b"once")
    forged = bytearray(server.sealed(ContentType.APPLICATION_DATA, b"never"))
    forged[-1] ^= 1

    assert [server.put(record) for record in (good, good, bytes(forged))] == [[b"once"], [], []]
    assert server.client.is_established


def test_octets_that_are_no_record_are_remembered_and_change_nothing(server: RawServer) -> None:
    assert server.put(b"\xff" * 20) == []

    assert server.client.is_established
    assert server.client.failure == "record version 0xffff"


def test_the_clear_and_other_epochs_are_not_looked_at(server: RawServer) -> None:
    server.put(server.clear(ContentType.ALERT, b"\2\x28"))
    server.put(b"\x17\xfe\xfd\0\2" + bytes(6) + b"\0\x20" + bytes(32))

    assert server.client.is_established


def test_sealed_handshake_messages_are_not_looked_at(server: RawServer) -> None:
    request = m.encode_message(T.HELLO_REQUEST, 0, b"")

    assert server.put(server.sealed(ContentType.HANDSHAKE, request)) == []

    assert server.client.outgoing == []


def test_close_notify_of_the_server_is_answered(server: RawServer) -> None:
    server.put(server.sealed(ContentType.ALERT, b"\1\0"))

    assert [plaintext for _, plaintext in opened(server)] == [b"\1\0"]
    client = server.client
    assert (client.state, client.alert) == (State.CLOSED, Alert.CLOSE_NOTIFY)
    assert client.failure == "server sent alert 0"


def test_a_fatal_alert_ends_the_association(server: RawServer) -> None:
    server.put(server.sealed(ContentType.ALERT, bytes((2, 80))))

    assert server.client.outgoing == []
    assert (server.client.state, server.client.alert) == (State.CLOSED, Alert.INTERNAL_ERROR)
    assert server.put(server.sealed(ContentType.APPLICATION_DATA, b"late")) == []


@pytest.mark.parametrize("alert", [b"", b"\2", bytes((1, 100)), bytes((2, 80, 0))])
def test_other_alerts_change_nothing(server: RawServer, alert: bytes) -> None:
    server.put(server.sealed(ContentType.ALERT, alert))

    assert server.client.is_established


def test_close_says_close_notify_once(server: RawServer) -> None:
    server.client.close()
    server.client.close()

    assert [plaintext for _, plaintext in opened(server)] == [b"\1\0"]
    assert server.client.state is State.CLOSED


def test_a_client_that_was_never_connected_does_nothing() -> None:
    client = psk_client()
    client.handle_timer(5.0)

    assert client.receive_datagram(b"\x17\xfe\xfd\0\1" + bytes(6) + b"\0\0", 0.0) == []
    assert (client.state, client.next_timer(), client.outgoing) == (State.IDLE, None, [])
    client.close()
    assert client.outgoing == []


def test_a_record_of_another_epoch_during_the_handshake_is_nothing() -> None:
    client = psk_client()
    client.connect(0.0)

    client.receive_datagram(b"\x16\xfe\xfd\0\2" + bytes(6) + b"\0\0", 0.0)

    assert client.state is State.AWAIT_SERVER_HELLO


def test_a_client_that_gets_no_answer_gives_up() -> None:
    client = psk_client()
    client.connect(0.0)
    while (due := client.next_timer()) is not None:
        client.handle_timer(due)

    assert (client.state, client.failure) == (State.CLOSED, "no answer")
    assert len(client.outgoing) == 6


def test_a_client_connects_again_with_a_new_random() -> None:
    link = Link()
    device = link.connect(psk_client())
    first = link.association

    device.client.connect(link.now)
    link.run(1.0)

    assert device.client.is_established
    assert device.client.handshakes == 2
    assert link.association is not first


def test_max_plaintext_is_what_fits_a_datagram_and_the_maximum_fragment_length() -> None:
    settings: list[dict[str, Any]] = [{}, {"max_datagram": 300}, {"max_fragment_length": 512}]
    clients = [connected(RawServer(psk_client(**how))).client for how in settings]

    assert [client.max_plaintext for client in clients] == [1232 - 29, 300 - 29, 512]
