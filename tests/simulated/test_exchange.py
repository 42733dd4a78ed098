"""A device's exchanges, by a scripted clock."""

from __future__ import annotations

from random import Random

import pytest

from coapgate.coap.options import ECHO
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
    exchanges.receive(answer.encode(), 1.0)

    assert exchanges.events == [Answered(token, Response(Code.CHANGED))]
    assert exchanges.next_timer() is None
    exchanges.receive(answer.encode(), 1.0)
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

    exchanges.receive(Message(Kind.ACK, Code.EMPTY, request.message_id).encode(), 1.0)
    assert exchanges.next_timer() is None
    assert exchanges.events == []
    exchanges.receive(Message(Kind.CON, Code.CHANGED, 77, token).encode(), 1.0)

    assert sent(exchanges) == [Message(Kind.ACK, Code.EMPTY, 77)]
    assert exchanges.events == [Answered(token, Response(Code.CHANGED, is_separate=True))]


def test_a_repeated_separate_response_is_acknowledged_again_and_told_once() -> None:
    exchanges, token, _ = asking()
    response = Message(Kind.CON, Code.CHANGED, 77, token).encode()

    exchanges.receive(response, 1.0)
    exchanges.receive(response, 1.0)

    assert sent(exchanges) == [Message(Kind.ACK, Code.EMPTY, 77)] * 2
    assert len(exchanges.events) == 1


def test_an_answer_under_a_message_id_that_was_heard_before_is_an_answer() -> None:
    exchanges, first, _ = asking()
    second = exchanges.request(Code.POST, (), b"22.0", 0.0)

    for token in (first, second):
        exchanges.receive(Message(Kind.CON, Code.CHANGED, 77, token).encode(), 1.0)

    answer = Response(Code.CHANGED, is_separate=True)
    assert exchanges.events == [Answered(first, answer), Answered(second, answer)]


def test_a_response_nobody_waits_for_is_rejected() -> None:
    exchanges, token, _ = asking()
    exchanges.forget(token)

    exchanges.receive(Message(Kind.CON, Code.CHANGED, 77, token).encode(), 1.0)
    exchanges.receive(Message(Kind.NON, Code.CHANGED, 78, token).encode(), 1.0)

    assert sent(exchanges) == [Message(Kind.RST, Code.EMPTY, 77)]
    assert exchanges.events == []


def test_a_non_confirmable_request_is_never_repeated() -> None:
    exchanges, token, request = asking(confirmable=False)

    assert request.kind == Kind.NON
    assert exchanges.next_timer() is None
    exchanges.receive(Message(Kind.NON, Code.CHANGED, 77, token).encode(), 1.0)
    assert exchanges.events == [Answered(token, Response(Code.CHANGED, is_separate=True))]
    assert sent(exchanges) == []


def test_a_reset_ends_the_exchange() -> None:
    exchanges, token, request = asking()

    exchanges.receive(Message(Kind.RST, Code.EMPTY, request.message_id).encode(), 1.0)

    assert exchanges.events == [Rejected(token)]


def test_a_reply_to_another_message_changes_nothing() -> None:
    exchanges, token, request = asking()
    other = request.message_id + 1 & 0xFFFF

    exchanges.receive(Message(Kind.ACK, Code.CHANGED, other, token).encode(), 1.0)
    exchanges.receive(Message(Kind.ACK, Code.CHANGED, request.message_id, b"none").encode(), 1.0)
    exchanges.receive(b"\x00", 1.0)

    assert exchanges.events == []
    assert exchanges.next_timer() == 2.0


def test_a_request_of_the_gateway_is_rejected() -> None:
    exchanges, _, _ = asking()

    exchanges.receive(Message(Kind.CON, Code.GET, 9, b"t").encode(), 1.0)
    exchanges.receive(Message(Kind.NON, Code.GET, 11, b"t").encode(), 1.0)

    assert sent(exchanges) == [Message(Kind.RST, Code.EMPTY, 9)]


def test_a_ping_of_the_gateway_is_answered_by_rst() -> None:
    exchanges, _, _ = asking()

    exchanges.receive(Message(Kind.CON, Code.EMPTY, 10).encode(), 1.0)

    assert sent(exchanges) == [Message(Kind.RST, Code.EMPTY, 10)]


# --- Echo (RFC 9175 section 2.3)


def unauthorized(request: Message, *options: tuple[int, bytes]) -> bytes:
    """A piggybacked 4.01 with these options."""
    return Message(Kind.ACK, Code.UNAUTHORIZED, request.message_id, request.token, options).encode()


def test_a_request_is_sent_once_more_with_the_echo_value_that_the_gateway_asks_for() -> None:
    exchanges = Exchanges(STEADY, Random(7))
    path = (11, b"room")
    token = exchanges.request(Code.PUT, (path,), b"21.5", 0.0)
    (request,) = sent(exchanges)

    exchanges.receive(unauthorized(request, (ECHO, b"it is me")), 3.0)

    (again,) = sent(exchanges)
    assert exchanges.events == []
    assert (again.kind, again.code, again.payload) == (Kind.CON, Code.PUT, b"21.5")
    assert again.options == (path, (ECHO, b"it is me"))
    assert again.message_id != request.message_id
    assert again.token != request.token
    assert exchanges.next_timer() == 5.0
    assert exchanges.echoes == 1

    exchanges.receive(Message(Kind.ACK, Code.CHANGED, again.message_id, again.token).encode(), 4.0)

    assert exchanges.events == [Answered(token, Response(Code.CHANGED))]
    assert exchanges.next_timer() is None


def test_a_gateway_that_asks_again_is_not_answered_again() -> None:
    exchanges, token, request = asking()
    exchanges.receive(unauthorized(request, (ECHO, b"1")), 1.0)
    (again,) = sent(exchanges)

    exchanges.receive(unauthorized(again, (ECHO, b"2")), 2.0)

    assert sent(exchanges) == []
    refused = Response(Code.UNAUTHORIZED, ((ECHO, b"2"),))
    assert exchanges.events == [Answered(token, refused)]


def test_who_gave_an_echo_value_himself_is_told_what_came_of_it() -> None:
    exchanges = Exchanges(STEADY, Random(7))
    token = exchanges.request(Code.GET, ((ECHO, b"old"),), b"", 0.0)
    (request,) = sent(exchanges)

    exchanges.receive(unauthorized(request, (ECHO, b"new")), 1.0)

    assert exchanges.events == [Answered(token, Response(Code.UNAUTHORIZED, ((ECHO, b"new"),)))]


@pytest.mark.parametrize("options", [(), ((ECHO, b""),), ((ECHO, bytes(41)),), ((14, b"x"),)])
def test_without_an_echo_value_unauthorized_is_the_answer(
    options: tuple[tuple[int, bytes], ...],
) -> None:
    exchanges, token, request = asking()

    exchanges.receive(unauthorized(request, *options), 1.0)

    assert sent(exchanges) == []
    assert exchanges.events == [Answered(token, Response(Code.UNAUTHORIZED, options))]


def test_an_echo_value_with_a_success_asks_for_nothing() -> None:
    exchanges, token, request = asking()
    response = Message(Kind.ACK, Code.CHANGED, request.message_id, token, ((ECHO, b"1"),))

    exchanges.receive(response.encode(), 1.0)

    assert sent(exchanges) == []
    assert exchanges.events == [Answered(token, Response(Code.CHANGED, ((ECHO, b"1"),)))]


def test_a_separate_unauthorized_is_acknowledged_each_time_and_echoed_once() -> None:
    exchanges, _, request = asking()
    separate = Message(Kind.CON, Code.UNAUTHORIZED, 77, request.token, ((ECHO, b"1"),)).encode()

    exchanges.receive(separate, 1.0)
    acknowledged, again = sent(exchanges)
    exchanges.receive(separate, 2.0)

    assert acknowledged == Message(Kind.ACK, Code.EMPTY, 77)
    assert again.options == ((ECHO, b"1"),)
    assert sent(exchanges) == [acknowledged]


def test_a_non_confirmable_request_is_echoed_as_one() -> None:
    exchanges, token, request = asking(confirmable=False)
    answer = Message(Kind.NON, Code.UNAUTHORIZED, 77, request.token, ((ECHO, b"1"),))

    exchanges.receive(answer.encode(), 1.0)

    (again,) = sent(exchanges)
    assert again.kind == Kind.NON
    assert exchanges.next_timer() is None
    exchanges.receive(Message(Kind.NON, Code.CHANGED, 78, again.token).encode(), 1.0)
    assert exchanges.events == [Answered(token, Response(Code.CHANGED, is_separate=True))]


def test_a_request_that_was_sent_once_more_ends_under_its_first_token() -> None:
    resets, given_up, forgotten = (asking() for _ in range(3))
    for exchanges, _, request in (resets, given_up, forgotten):
        exchanges.receive(unauthorized(request, (ECHO, b"1")), 1.0)

    exchanges, token, _ = resets
    (again,) = sent(exchanges)
    exchanges.receive(Message(Kind.RST, Code.EMPTY, again.message_id).encode(), 1.0)
    assert exchanges.events == [Rejected(token)]

    exchanges, token, _ = given_up
    while (due := exchanges.next_timer()) is not None:
        exchanges.handle_timer(due)
    assert exchanges.events == [GivenUp(token)]

    exchanges, token, _ = forgotten
    exchanges.forget(token)
    assert exchanges.next_timer() is None
