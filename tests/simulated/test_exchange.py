"""A device's exchanges, by a scripted clock."""

from __future__ import annotations

from random import Random

from coapgate.coap.transmissions import Reliability
from coapgate.model import Code
from coapgate.simulated.exchange import Answered, Exchanges, GivenUp, Rejected
from coapgate.simulated.message import Kind, Message, Response

STEADY = Reliability(ack_timeout=2.0, ack_random_factor=1.0, max_retransmit=4)


def asking(*, confirmable: bool = True) -> tuple[Exchanges, bytes, Message]:
    """A device that has asked at 0.0, the token, and its request as it went out."""
    exchanges = Exchanges(STEADY, Random(7))
    token = exchanges.request(Code.POST, (), b"21.5", 0.0, confirmable=confirmable)
    (octets,) = exchanges.outgoing
    exchanges.outgoing.clear()
    return exchanges, token, Message.parse(octets)


def sent(exchanges: Exchanges) -> list[Message]:
    """What the device sent since the last call."""
    messages = [Message.parse(octets) for octets in exchanges.outgoing]
    exchanges.outgoing.clear()
    return messages


def test_a_piggybacked_response_ends_the_exchange() -> None:
    exchanges, token, request = asking()

    answer = Message(Kind.ACK, Code.CHANGED, request.message_id, token)
    exchanges.receive(answer.encode())

    assert exchanges.events == [Answered(token, Response(Code.CHANGED))]
    assert exchanges.next_timer() is None
    exchanges.receive(answer.encode())
    assert len(exchanges.events) == 1


def test_a_request_is_repeated_four_times_with_doubled_delays_then_given_up() -> None:
    exchanges, token, request = asking()

    times = []
    while (due := exchanges.next_timer()) is not None:
        times.append(due)
        exchanges.handle_timer(due)

    assert times == [2.0, 6.0, 14.0, 30.0, 62.0]
    assert sent(exchanges) == [request] * 4
    assert exchanges.repeats == 4
    assert exchanges.events == [GivenUp(token)]


def test_an_empty_ack_ends_the_repetition_and_the_separate_response_is_acknowledged() -> None:
    exchanges, token, request = asking()

    exchanges.receive(Message(Kind.ACK, Code.EMPTY, request.message_id).encode())
    assert exchanges.next_timer() is None
    assert exchanges.events == []
    exchanges.receive(Message(Kind.CON, Code.CHANGED, 77, token).encode())

    assert sent(exchanges) == [Message(Kind.ACK, Code.EMPTY, 77)]
    assert exchanges.events == [Answered(token, Response(Code.CHANGED, is_separate=True))]


def test_a_repeated_separate_response_is_acknowledged_again_and_told_once() -> None:
    exchanges, token, _ = asking()
    response = Message(Kind.CON, Code.CHANGED, 77, token).encode()

    exchanges.receive(response)
    exchanges.receive(response)

    assert sent(exchanges) == [Message(Kind.ACK, Code.EMPTY, 77)] * 2
    assert len(exchanges.events) == 1


def test_a_response_nobody_waits_for_is_rejected() -> None:
    exchanges, token, _ = asking()
    exchanges.forget(token)

    exchanges.receive(Message(Kind.CON, Code.CHANGED, 77, token).encode())
    exchanges.receive(Message(Kind.NON, Code.CHANGED, 78, token).encode())

    assert sent(exchanges) == [Message(Kind.RST, Code.EMPTY, 77)]
    assert exchanges.events == []


def test_a_non_confirmable_request_is_never_repeated() -> None:
    exchanges, token, request = asking(confirmable=False)

    assert request.kind == Kind.NON
    assert exchanges.next_timer() is None
    exchanges.receive(Message(Kind.NON, Code.CHANGED, 77, token).encode())
    assert exchanges.events == [Answered(token, Response(Code.CHANGED, is_separate=True))]
    assert sent(exchanges) == []


def test_a_reset_ends_the_exchange() -> None:
    exchanges, token, request = asking()

    exchanges.receive(Message(Kind.RST, Code.EMPTY, request.message_id).encode())

    assert exchanges.events == [Rejected(token)]


def test_a_reply_to_another_message_changes_nothing() -> None:
    exchanges, token, request = asking()
    other = request.message_id + 1 & 0xFFFF

    exchanges.receive(Message(Kind.ACK, Code.CHANGED, other, token).encode())
    exchanges.receive(Message(Kind.ACK, Code.CHANGED, request.message_id, b"none").encode())
    exchanges.receive(b"\x00")

    assert exchanges.events == []
    assert exchanges.next_timer() == 2.0


def test_a_request_of_the_gateway_is_rejected() -> None:
    exchanges, _, _ = asking()

    exchanges.receive(Message(Kind.CON, Code.GET, 9, b"t").encode())
    exchanges.receive(Message(Kind.CON, Code.EMPTY, 10).encode())
    exchanges.receive(Message(Kind.NON, Code.GET, 11, b"t").encode())

    rejected = [Message(Kind.RST, Code.EMPTY, number) for number in (9, 10)]
    assert sent(exchanges) == rejected
