"""Flights into datagrams, and when they are sent again."""

from __future__ import annotations

import pytest

from coapgate.dtls.flights import (
    MAX_RETRANSMISSION_TIME,
    REPEAT_INTERVAL,
    Flight,
    Repeats,
    encode_flight,
)
from coapgate.dtls.messages import HandshakeType, encode_message, parse_fragments
from coapgate.dtls.records import ContentType, Record, split
from tests.dtls.raw import read_messages

HELLO = encode_message(HandshakeType.SERVER_HELLO, 1, bytes(70))
CERTIFICATE = encode_message(HandshakeType.CERTIFICATE, 2, bytes(range(256)) * 6)
DONE = encode_message(HandshakeType.SERVER_HELLO_DONE, 3, b"")
MESSAGES = (HELLO, CERTIFICATE, DONE)


def records(datagrams: list[bytes]) -> list[Record]:
    return [record for datagram in datagrams for record in split(datagram)]


# --- timers


def test_the_first_retransmission_comes_after_the_delay_and_doubles_to_a_minute() -> None:
    flight = Flight(MESSAGES, 9.0, 100.0)

    assert not flight.is_due(108.9)
    sent_at = []
    now = 100.0
    for _ in range(5):
        now = flight.due_at
        assert flight.is_due(now)
        assert not flight.is_due(now)
        sent_at.append(now)
    assert sent_at == [109.0, 127.0, 163.0, 223.0, 283.0]
    assert flight.due_at - now == MAX_RETRANSMISSION_TIME


def test_a_repeated_client_flight_is_answered_at_once_and_at_most_once_a_second() -> None:
    flight = Flight(MESSAGES, 9.0, 100.0)

    # The client's clock began before ours: its second is over before our second is.
    assert flight.is_wanted(100.99)
    assert not flight.is_wanted(101.5)
    assert not flight.is_wanted(100.99 + REPEAT_INTERVAL - 0.001)
    assert flight.is_wanted(100.99 + REPEAT_INTERVAL)


def test_an_answer_to_a_repeated_flight_puts_the_retransmission_off() -> None:
    flight = Flight(MESSAGES, 9.0, 100.0)

    assert flight.is_wanted(105.0)

    assert flight.due_at == 114.0
    assert not flight.is_wanted(105.1)
    assert flight.due_at == 114.0


def test_repeats_end_at_their_limit() -> None:
    repeats = Repeats(3)

    assert [repeats.allow(float(second)) for second in range(6)] == [True] * 3 + [False] * 3


# --- datagrams


def test_a_small_flight_is_one_datagram_with_a_record_for_each_message() -> None:
    datagrams, following = encode_flight((HELLO, DONE), 7, 1232, 16384)

    assert len(datagrams) == 1
    assert [record.sequence for record in records(datagrams)] == [7, 8]
    assert following == 9
    assert b"".join(record.fragment for record in records(datagrams)) == HELLO + DONE


def test_nothing_to_send_is_no_datagram() -> None:
    assert encode_flight((), 7, 1232, 16384) == ([], 7)


@pytest.mark.parametrize("max_datagram", [64, 100, 228, 229, 255, 300, 576, 1232])
@pytest.mark.parametrize("max_fragment", [128, 512, 1024, 16384])
def test_no_datagram_and_no_record_is_longer_than_allowed(
    max_datagram: int, max_fragment: int
) -> None:
    datagrams, following = encode_flight(MESSAGES, 0, max_datagram, max_fragment)

    sent = records(datagrams)
    assert all(len(datagram) <= max_datagram for datagram in datagrams)
    assert all(len(record.fragment) <= max_fragment for record in sent)
    assert [record.sequence for record in sent] == list(range(following))
    assert tuple(read_messages(sent)) == MESSAGES


def test_no_fragment_is_tiny_only_to_fill_a_datagram() -> None:
    for max_datagram in range(90, 400):
        datagrams, _ = encode_flight(MESSAGES, 0, max_datagram, 16384)
        for datagram in datagrams:
            last = list(split(datagram))[-1]
            (fragment,) = parse_fragments(last.fragment)
            ends = fragment.offset + len(fragment.body) == fragment.length
            assert ends or len(fragment.body) >= 32


def test_records_of_a_flight_are_handshake_records_of_epoch_0() -> None:
    datagrams, _ = encode_flight(MESSAGES, 0, 300, 16384)

    assert {(r.content_type, r.epoch) for r in records(datagrams)} == {(ContentType.HANDSHAKE, 0)}
