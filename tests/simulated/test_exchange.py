"""A device's exchanges, by a scripted clock."""

from __future__ import annotations

from random import Random

import pytest

from coapgate.coap.options import ECHO, OBSERVE, URI_PATH, encode_uint
from coapgate.coap.transmissions import Reliability
from coapgate.model import Code
from coapgate.simulated.exchange import (
    MAX_REMEMBERED,
    Answered,
    Exchanges,
    GivenUp,
    Notified,
    Rejected,
)
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

    assert sent(exchanges) == [Message(Kind.RST, Code.EMPTY, number) for number in (77, 78)]
    assert exchanges.events == []


def observing(order: int = 5) -> tuple[Exchanges, bytes, Message]:
    """A device that observes, the name of its registration, and the registration."""
    exchanges = Exchanges(STEADY, Random(7))
    name = exchanges.observe(((URI_PATH, b"led"),), 0.0)
    (request,) = sent(exchanges)
    assert request.options == ((OBSERVE, b""), (URI_PATH, b"led"))
    exchanges.receive(state(Kind.ACK, request.message_id, request.token, order), 1.0)
    assert len(exchanges.events) == 1
    exchanges.events.clear()
    return exchanges, name, request


def state(kind: Kind, message_id: int, token: bytes, order: int | None) -> bytes:
    options = () if order is None else ((OBSERVE, encode_uint(order)),)
    return Message(kind, Code.CONTENT, message_id, token, options, b"on").encode()


@pytest.mark.parametrize("kind", [Kind.CON, Kind.NON])
def test_notifications_are_told_once_each_and_acknowledged(kind: Kind) -> None:
    exchanges, name, request = observing()

    for message_id, order in ((70, 6), (70, 6), (71, 7)):
        exchanges.receive(state(kind, message_id, request.token, order), 2.0)

    assert [event.token for event in exchanges.events] == [name, name]
    assert isinstance(exchanges.events[0], Notified)
    acks = [Message(Kind.ACK, Code.EMPTY, message_id) for message_id in (70, 70, 71)]
    assert sent(exchanges) == (acks if kind == Kind.CON else [])


def test_a_notification_that_was_overtaken_is_left_out() -> None:
    exchanges, _, request = observing((1 << 24) - 1)

    for message_id, order in ((70, 2), (71, 1), (72, 3)):
        exchanges.receive(state(Kind.CON, message_id, request.token, order), 2.0)

    orders = [event.response.option(OBSERVE) for event in exchanges.events]  # type: ignore[union-attr]
    assert orders == [2, 3]


def test_a_notification_without_order_is_the_last() -> None:
    exchanges, _, request = observing()
    exchanges.receive(state(Kind.CON, 70, request.token, None), 2.0)
    exchanges.receive(state(Kind.CON, 71, request.token, 9), 2.0)

    assert len(exchanges.events) == 1
    assert [message.kind for message in sent(exchanges)] == [Kind.ACK, Kind.RST]


def test_whoever_observes_no_more_rejects_the_next_notification() -> None:
    exchanges, name, request = observing()

    exchanges.cancel(name)
    exchanges.receive(state(Kind.CON, 70, request.token, 6), 2.0)

    assert (exchanges.events, sent(exchanges)) == ([], [Message(Kind.RST, Code.EMPTY, 70)])


def test_a_registration_without_an_order_number_observes_nothing() -> None:
    exchanges = Exchanges(STEADY, Random(7))
    exchanges.observe((), 0.0)
    (request,) = sent(exchanges)
    exchanges.receive(state(Kind.ACK, request.message_id, request.token, None), 1.0)

    exchanges.receive(state(Kind.CON, 70, request.token, 6), 2.0)

    assert [message.kind for message in sent(exchanges)] == [Kind.RST]


def test_a_registration_that_had_to_show_an_echo_value_observes_by_its_new_token() -> None:
    exchanges = Exchanges(STEADY, Random(7))
    name = exchanges.observe((), 0.0)
    (first,) = sent(exchanges)
    options = ((ECHO, b"12345678"),)
    asking_for = Message(Kind.ACK, Code.UNAUTHORIZED, first.message_id, first.token, options)
    exchanges.receive(asking_for.encode(), 1.0)
    (second,) = sent(exchanges)
    exchanges.receive(state(Kind.ACK, second.message_id, second.token, 1), 1.0)

    exchanges.receive(state(Kind.CON, 70, second.token, 2), 2.0)

    assert [event.token for event in exchanges.events] == [name, name]


def test_a_request_of_the_gateway_is_served_once_and_answered_as_often_as_it_comes() -> None:
    served: list[Message] = []

    def serve(message: Message) -> Response:
        served.append(message)
        return Response(Code.CHANGED, (), b"done")

    exchanges = Exchanges(STEADY, Random(7), serve)
    for kind in (Kind.CON, Kind.CON, Kind.NON, Kind.NON):
        message_id = 50 + kind
        exchanges.receive(Message(kind, Code.PUT, message_id, b"tk", (), b"on").encode(), 0.0)

    first, second, third = sent(exchanges)
    assert first == second == Message(Kind.ACK, Code.CHANGED, 50, b"tk", (), b"done")
    assert (third.kind, third.token, third.payload) == (Kind.NON, b"tk", b"done")
    assert len(served) == 2


def test_what_was_served_is_remembered_in_a_bounded_number() -> None:
    exchanges = Exchanges(STEADY, Random(7), lambda message: Response(Code.CHANGED))
    for message_id in range(3 * MAX_REMEMBERED):
        exchanges.receive(Message(Kind.CON, Code.PUT, message_id, b"tk").encode(), 0.0)

    assert len(exchanges._served) == MAX_REMEMBERED


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
