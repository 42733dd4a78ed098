"""Observation of the state of a path: RFC 7641."""

from __future__ import annotations

import itertools

import pytest
from aiocoap import Message

from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import Settings
from coapgate.coap.observe import CONFIRM_AT_LEAST, DEREGISTER, ORDERS, REGISTER
from coapgate.coap.options import encode_uint
from coapgate.errors import RequestRefused
from coapgate.model import Code, Content, DeviceId, KeptObservation, Tenant
from tests.coap.gate import ACK, CON, NON, RST, FakeAssociation, Gate, empty, message

OBSERVE, ACCEPT, ETAG, BLOCK2 = 6, 17, 4, 23
START = 100.0


def text(number: int) -> Content:
    return Content.of(b"%d" % number, 0)


class Watch:
    """A gate, and a device that observes."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.gate = Gate(settings)
        self.gate.contents.states["led"] = text(0)
        self.endpoint = self.open()
        self.message_ids = itertools.count(1)

    def open(self, device: str = "sensor-1") -> Endpoint[FakeAssociation]:
        endpoint = self.gate.open(device)
        endpoint.association.max_plaintext = 1180
        return endpoint

    def ask(
        self,
        observe: int = REGISTER,
        token: bytes = b"\x0a",
        path: str = "led",
        *options: tuple[int, bytes],
        endpoint: Endpoint[FakeAssociation] | None = None,
        now: float = START,
    ) -> Message:
        octets = message(
            CON,
            Code.GET,
            next(self.message_ids),
            path,
            token=token,
            options=((OBSERVE, encode_uint(observe)), *options),
        )
        self.gate.receive(endpoint or self.endpoint, octets, now)
        return self.gate.take_one()

    def notify(
        self,
        content: Content | None,
        path: str = "led",
        now: float = START,
        device: str = "sensor-1",
    ) -> list[Message]:
        self.gate.layer.notify(Tenant("default"), DeviceId(device), path, content, now)
        return [Message.decode(octets) for octets in self.gate.take()]

    def hear(self, kind: int, message_id: int, now: float = START) -> list[Message]:
        self.gate.receive(self.endpoint, empty(kind, message_id), now)
        return [Message.decode(octets) for octets in self.gate.take()]

    @property
    def count(self) -> int:
        return len(self.gate.layer.observations)


def is_later(first: int, second: int) -> bool:
    """RFC 7641 section 3.4, within 128 seconds."""
    return 0 < (second - first) % ORDERS < ORDERS // 2


def test_a_registration_is_answered_with_the_state_and_an_order_number() -> None:
    watch = Watch()

    answer = watch.ask()

    assert (answer.code, answer.payload, answer.opt.etag) == (Code.CONTENT, b"0", text(0).etag)
    assert answer.opt.observe is not None
    assert watch.gate.contents.observed_paths == ["led"]


def test_a_notification_has_the_token_the_content_and_a_later_order_number() -> None:
    watch = Watch()
    before = watch.ask().opt.observe

    (first,) = watch.notify(text(1))
    assert watch.hear(ACK, first.mid) == []
    (second,) = watch.notify(text(2))

    assert [(n.mtype, n.code, n.token) for n in (first, second)] == [(CON, 69, b"\x0a")] * 2
    assert (first.payload, second.payload) == (b"1", b"2")
    assert (first.opt.etag, first.opt.content_format) == (text(1).etag, 0)
    assert is_later(before, first.opt.observe)
    assert is_later(first.opt.observe, second.opt.observe)


@pytest.mark.parametrize("epoch", [0.0, 1_700_000_000.0, ORDERS / 1000 - START - 0.001])
def test_order_numbers_grow_through_a_restart_and_over_their_end(epoch: float) -> None:
    orders = []
    for start in (START, START + 5.0):  # another process with other clocks, five seconds later
        watch = Watch(Settings(epoch=epoch + (start - START) * 0.5))
        orders.append(watch.ask(now=START + (start - START) * 0.5).opt.observe)
        for number in range(20):
            (notification,) = watch.notify(text(number), now=start)
            orders.append(notification.opt.observe)
            watch.hear(ACK, notification.mid)

    assert all(is_later(first, second) for first, second in itertools.pairwise(orders))


def test_the_newest_wins_while_one_is_under_way() -> None:
    watch = Watch()
    watch.ask()
    (first,) = watch.notify(text(1))
    for number in range(2, 100):
        assert watch.notify(text(number)) == []

    (newest,) = watch.hear(ACK, first.mid)

    assert newest.payload == b"99"
    assert watch.hear(ACK, newest.mid) == []
    assert watch.gate.layer.observations.superseded == 97


def test_a_repetition_of_an_old_notification_becomes_the_newest_one() -> None:
    watch = Watch()
    watch.ask()
    (first,) = watch.notify(text(1))
    watch.notify(text(2))

    watch.gate.run_timers(START + 4)
    (second,) = (Message.decode(octets) for octets in watch.gate.take())

    assert (second.payload, second.token) == (b"2", first.token)
    assert second.mid != first.mid
    assert is_later(first.opt.observe, second.opt.observe)
    assert watch.hear(ACK, first.mid) == []  # too late, and of no use
    watch.gate.run_timers(START + 200)
    repeats = {Message.decode(octets).mid for octets in watch.gate.take()}
    assert repeats == {second.mid}
    assert watch.count == 0


def test_every_nth_is_confirmable_and_one_a_day_in_any_case() -> None:
    watch = Watch(Settings(confirm_every=4))
    watch.ask()
    kinds = []
    for number in range(8):
        (notification,) = watch.notify(text(number))
        kinds.append(notification.mtype)
        if notification.mtype == CON:
            watch.hear(ACK, notification.mid)

    assert kinds == [NON, NON, NON, CON] * 2
    (daily,) = watch.notify(text(9), now=START + CONFIRM_AT_LEAST)
    assert daily.mtype == CON


def test_a_rst_to_a_notification_ends_the_observation() -> None:
    for settings in (Settings(), Settings(confirm_every=100)):
        watch = Watch(settings)
        watch.ask()
        (notification,) = watch.notify(text(1))

        watch.hear(RST, notification.mid)

        assert watch.count == 0
        assert watch.gate.contents.observed_paths == []
        assert watch.notify(text(2)) == []
        assert watch.gate.layer.observations.resets == 1


def test_deregistration_ends_it_and_is_answered_like_any_get() -> None:
    watch = Watch()
    watch.ask()

    answer = watch.ask(DEREGISTER)

    assert (answer.code, answer.payload, answer.opt.observe) == (Code.CONTENT, b"0", None)
    assert (watch.count, watch.gate.contents.observed_paths) == (0, [])
    assert watch.notify(text(1)) == []


def test_deregistration_with_another_token_ends_nothing() -> None:
    watch = Watch()
    watch.ask()

    watch.ask(DEREGISTER, b"\x0b")

    assert watch.count == 1


def test_a_notification_that_nobody_acknowledges_ends_it() -> None:
    watch = Watch()
    watch.ask()
    watch.notify(text(1))

    watch.gate.run_timers(START + 100)

    assert len(watch.gate.take()) == 4
    assert (watch.count, watch.gate.layer.observations.timeouts) == (0, 1)
    assert watch.gate.contents.observed_paths == []
    assert watch.gate.layer.next_timer() is not None  # the registration's exchange


def test_registering_again_replaces_and_goes_on_counting() -> None:
    watch = Watch()
    before = watch.ask().opt.observe
    (under_way,) = watch.notify(text(1))

    again = watch.ask()

    assert is_later(before, again.opt.observe)
    assert (watch.count, watch.gate.contents.observed_paths) == (1, ["led"])
    watch.gate.run_timers(START + 100)
    assert watch.gate.take() == []  # the one that was under way is not repeated
    (after,) = watch.notify(text(2), now=START + 101)
    assert is_later(under_way.opt.observe, after.opt.observe)


def test_a_token_that_is_used_for_another_path_observes_that_one_only() -> None:
    watch = Watch()
    watch.gate.contents.states["fan"] = text(7)
    watch.ask()

    assert watch.ask(path="fan").payload == b"7"

    assert watch.gate.contents.observed_paths == ["fan"]
    assert watch.notify(text(1)) == []
    assert len(watch.notify(text(1), "fan")) == 1


def test_two_tokens_are_two_observations_of_one_path() -> None:
    watch = Watch()
    watch.ask()
    watch.ask(token=b"\x0b")

    assert {n.token for n in watch.notify(text(1))} == {b"\x0a", b"\x0b"}
    assert watch.gate.contents.observed_paths == ["led"]
    watch.ask(DEREGISTER)
    assert watch.gate.contents.observed_paths == ["led"]
    watch.ask(DEREGISTER, b"\x0b")
    assert watch.gate.contents.observed_paths == []


def test_a_path_without_state_is_4_04_and_not_observed() -> None:
    watch = Watch()
    watch.gate.contents.states.clear()

    assert watch.ask().code == Code.NOT_FOUND
    assert (watch.count, watch.gate.contents.observed_paths) == (0, [])


@pytest.mark.parametrize("whole", [True, False])
def test_what_may_not_be_observed_is_refused_and_not_observed(whole: bool) -> None:
    watch = Watch()
    refusal = RequestRefused(Code.FORBIDDEN, "not allowed")
    if whole:
        watch.gate.contents.refusal = refusal
    else:
        watch.gate.contents.observe_refusal = refusal

    assert watch.ask().code == Code.FORBIDDEN
    assert (watch.count, watch.gate.contents.observed_paths) == (0, [])


def test_what_cannot_be_subscribed_to_is_refused_and_not_observed() -> None:
    watch = Watch()
    watch.gate.contents.subscribe_refusal = RequestRefused(Code.SERVICE_UNAVAILABLE, max_age=3)

    assert watch.ask().code == Code.SERVICE_UNAVAILABLE
    assert (watch.count, watch.gate.contents.observed_paths) == (0, [])
    assert len(watch.gate.layer.states) == 0


@pytest.mark.parametrize("observe", [DEREGISTER, REGISTER])
def test_an_observation_that_ends_before_its_answer_is_known_does_not_come_back(
    observe: int,
) -> None:
    watch = Watch()
    watch.gate.contents.is_slow = True
    for message_id, value in ((1, REGISTER), (2, observe)):
        options = ((OBSERVE, encode_uint(value)),)
        octets = message(CON, Code.GET, message_id, "led", options=options)
        watch.gate.receive(watch.endpoint, octets, START)

    for ticket, _ in watch.gate.contents.asked:
        watch.gate.layer.respond_content(ticket, text(1), START)

    first, second = (Message.decode(octets) for octets in watch.gate.take())
    assert first.opt.observe is None
    assert (second.opt.observe is not None) == (observe == REGISTER)
    assert watch.count == len(watch.gate.journal.kept) == (observe == REGISTER)
    assert len(watch.notify(text(2))) == (observe == REGISTER)


def test_when_the_state_is_gone_observers_are_told_and_forgotten() -> None:
    watch = Watch(Settings(confirm_every=100))
    watch.ask()

    (farewell,) = watch.notify(None)

    assert (farewell.mtype, farewell.code, farewell.token) == (CON, Code.NOT_FOUND, b"\x0a")
    assert farewell.opt.observe is None
    assert (watch.count, watch.gate.contents.observed_paths) == (0, [])
    watch.gate.run_timers(START + 4)
    assert [Message.decode(octets).mid for octets in watch.gate.take()] == [farewell.mid]
    watch.hear(ACK, farewell.mid)
    watch.gate.run_timers(START + 200)
    assert watch.gate.take() == []


def test_a_state_that_goes_while_a_notification_is_under_way_ends_it_too() -> None:
    watch = Watch()
    watch.ask()
    watch.notify(text(1))
    watch.notify(None)

    watch.gate.run_timers(START + 4)
    (farewell,) = (Message.decode(octets) for octets in watch.gate.take())

    assert (farewell.code, watch.count) == (Code.NOT_FOUND, 0)
    watch.gate.run_timers(START + 200)
    assert {Message.decode(octets).mid for octets in watch.gate.take()} == {farewell.mid}


def test_content_in_a_format_that_was_not_asked_for_ends_it_with_4_06() -> None:
    watch = Watch()
    assert watch.ask(REGISTER, b"\x0a", "led", (ACCEPT, b"")).code == Code.CONTENT

    (farewell,) = watch.notify(Content.of(b"{}", 50))

    assert (farewell.code, watch.count) == (Code.NOT_ACCEPTABLE, 0)


def test_a_valid_state_is_2_03_and_observed() -> None:
    watch = Watch()

    answer = watch.ask(REGISTER, b"\x0a", "led", (ETAG, text(0).etag))

    assert answer.code == Code.VALID
    assert answer.opt.observe is not None
    assert watch.count == 1


def test_a_device_observes_a_bounded_number_of_paths() -> None:
    watch = Watch(Settings(observations_per_device=3))
    answers = [watch.ask(token=bytes((token,))) for token in range(5)]

    assert [answer.code for answer in answers] == [Code.CONTENT] * 5
    assert [answer.opt.observe is not None for answer in answers] == [True] * 3 + [False] * 2
    assert (watch.count, watch.gate.layer.counts.unobserved) == (3, 2)
    assert watch.ask(token=b"\x00").opt.observe is not None  # its own again
    assert watch.ask(endpoint=watch.open("sensor-2")).opt.observe is not None


def test_a_device_that_was_switched_off_observes_anew_in_place_of_what_it_did() -> None:
    watch = Watch(Settings(observations_per_device=3))
    for token in range(3):
        watch.ask(path=f"p{token}", token=bytes((token,))) if token else watch.ask()
    again = watch.open()

    answers = [watch.ask(token=bytes((number,)), endpoint=again) for number in range(4)]

    assert [answer.opt.observe is not None for answer in answers] == [True, True, True, False]
    assert watch.count == 3
    assert watch.gate.contents.observed_paths == ["led"]
    assert {n.token for n in watch.notify(text(1))} == {b"\0", b"\1", b"\2"}


def test_the_end_of_an_association_ends_what_it_observes_and_nothing_else() -> None:
    watch = Watch()
    other = watch.open()
    watch.ask()
    watch.ask(token=b"\x0b", endpoint=other)
    watch.notify(text(1))

    watch.gate.layer.close(watch.endpoint, START)

    assert watch.count == 1
    assert watch.gate.contents.observed_paths == ["led"]
    watch.gate.layer.close(other, START)
    assert (watch.count, watch.gate.contents.observed_paths) == (0, [])
    watch.gate.run_timers(START + 1000)
    assert watch.gate.take() == []


def test_only_the_device_whose_path_it_is_hears_of_it() -> None:
    watch = Watch()
    watch.ask()
    watch.ask(endpoint=watch.open("sensor-2"))

    assert len(watch.notify(text(1), device="sensor-2")) == 1
    assert watch.notify(text(1), device="sensor-3") == []
    assert watch.gate.layer.notify(Tenant("other"), DeviceId("sensor-1"), "led", text(1), 1.0) == 0


def test_a_large_notification_is_its_first_block_and_the_rest_is_fetched() -> None:
    watch = Watch()
    watch.ask()
    large = Content.of(bytes(range(250)) * 10, 42)

    (first,) = watch.notify(large)
    watch.gate.contents.states["led"] = text(3)  # what came after is another body
    get = message(
        CON, Code.GET, 99, "led", token=b"z", options=((BLOCK2, Block(1, False, 6).encode()),)
    )
    watch.gate.receive(watch.endpoint, get, START)
    second = watch.gate.take_one()

    assert (first.opt.block2.block_number, first.opt.block2.more) == (0, True)
    assert (first.opt.size2, first.opt.etag) == (2500, second.opt.etag)
    assert second.opt.observe is None
    assert (first.payload + second.payload) == large.payload[:2048]


def test_a_large_notification_goes_although_there_is_no_room_to_keep_the_rest() -> None:
    watch = Watch(Settings(download_memory=1000))
    watch.ask()

    (first,) = watch.notify(Content.of(bytes(2500), 42))

    assert (first.opt.block2.more, len(first.payload), watch.count) == (True, 1024, 1)


def test_a_rst_to_another_unconfirmed_notification_ends_that_one() -> None:
    watch = Watch(Settings(confirm_every=100))
    watch.ask()
    watch.ask(token=b"\x0b")
    first, second = watch.notify(text(1))

    watch.hear(RST, second.mid)

    assert [n.token for n in watch.notify(text(2))] == [first.token]


def test_notifications_have_the_block_size_of_the_registration() -> None:
    watch = Watch()
    watch.ask(REGISTER, b"\x0a", "led", (BLOCK2, Block(0, False, 2).encode()))

    (first,) = watch.notify(Content.of(bytes(100), 42))

    assert (len(first.payload), first.opt.block2.size) == (64, 64)


def test_what_comes_before_the_registration_is_answered_is_its_answer() -> None:
    watch = Watch()
    watch.gate.contents.is_slow = True
    octets = message(CON, Code.GET, 1, "led", options=((OBSERVE, b""),))
    watch.gate.receive(watch.endpoint, octets, START)
    assert watch.notify(text(5)) == []

    watch.gate.layer.respond_content(watch.gate.contents.asked[0][0], text(4), START)

    assert watch.gate.take_one().payload == b"5"
    assert len(watch.notify(text(6))) == 1


def test_observations_follow_a_device_to_its_new_address_and_prove_it() -> None:
    watch = Watch(Settings(confirm_every=100))
    watch.ask()
    watch.endpoint.association.move()

    (notification,) = watch.notify(text(1))

    assert notification.mtype == CON  # it proves the path, and is repeated
    watch.hear(ACK, notification.mid)
    assert watch.endpoint.association.unproven is None
    (after,) = watch.notify(text(2))
    assert after.mtype == NON


def test_a_notification_that_an_unproven_path_has_no_credit_for_comes_later() -> None:
    watch = Watch(Settings(confirm_every=100))
    watch.ask()
    watch.endpoint.association.move(received=0)
    assert watch.notify(text(1)) == []

    watch.gate.receive(watch.endpoint, empty(CON, 77), START + 1)
    watch.gate.take()
    watch.gate.run_timers(START + 4)

    assert [Message.decode(octets).payload for octets in watch.gate.take()] == [b"1"]


def test_a_thousand_unreachable_observers_cost_a_reachable_one_nothing() -> None:
    watch = Watch()
    for number in range(1000):
        watch.ask(endpoint=watch.open(f"away-{number}"))
    for round_ in range(10):
        for number in range(1000):
            watch.gate.layer.notify(
                Tenant("default"), DeviceId(f"away-{number}"), "led", text(round_), START
            )
    sent = watch.gate.take()
    assert len(sent) == 1000  # each has one under way, nine are superseded by the next
    watch.ask()

    (notification,) = watch.notify(text(1), now=START + 1)  # not one message before it
    assert watch.hear(ACK, notification.mid, START + 1) == []

    watch.gate.run_timers(START + 400)
    assert len(watch.gate.take()) == 4000  # four repetitions each, then nothing ever
    assert (watch.count, watch.gate.layer.observations.timeouts) == (1, 1000)


def test_an_observation_that_is_renewed_under_way_leaves_one_message_under_way() -> None:
    watch = Watch()
    watch.ask()
    for number in range(1, 6):
        watch.notify(text(number))
        watch.gate.run_timers(START + 2 ** (number + 2))

    assert watch.endpoint.outgoing is None or len(watch.endpoint.outgoing) == 1
    watch.gate.run_timers(START + 1000)
    assert watch.endpoint.outgoing is None


# Beyond the process


def restarted(watch: Watch, settings: Settings | None = None) -> Watch:
    """Another process, with what the earlier one left."""
    later = Watch(settings)
    later.gate.layer.restore_observations(
        later.endpoint, tuple(watch.gate.journal.kept.values()), START
    )
    return later


def test_observations_go_on_after_a_restart_with_token_size_and_format() -> None:
    watch = Watch()
    watch.ask(REGISTER, b"\x0a", "led", (ACCEPT, b""), (BLOCK2, Block(0, False, 2).encode()))
    watch.ask(token=b"\x0b")

    later = restarted(watch)

    assert (later.count, later.gate.contents.observed_paths) == (2, ["led"])
    first, second = later.notify(Content.of(bytes(100), 0))
    assert {first.token, second.token} == {b"\x0a", b"\x0b"}
    assert [len(n.payload) for n in (first, second) if n.token == b"\x0a"] == [64]
    assert later.hear(RST, first.mid) == []
    assert later.count == 1


def kept(watch: Watch) -> KeptObservation:
    """What an orderly end leaves of the one observation."""
    ((_, observation),) = watch.gate.layer.observations.kept()
    return observation


def journal(watch: Watch) -> KeptObservation:
    """What a kill leaves of it."""
    (observation,) = watch.gate.journal.kept.values()
    return observation


def after(observation: KeptObservation) -> Watch:
    """The next process."""
    later = Watch()
    later.gate.layer.restore_observations(later.endpoint, [observation], START)
    return later


def test_what_a_device_was_told_last_is_not_told_again_after_a_restart() -> None:
    watch = Watch()
    watch.ask()
    (notification,) = watch.notify(text(1))
    watch.hear(ACK, notification.mid)
    later = after(kept(watch))

    assert later.notify(text(1)) == []  # retained, and so heard again
    assert len(later.notify(text(1))) == 1  # published again


def test_what_was_not_acknowledged_before_a_restart_is_told_again() -> None:
    watch = Watch()
    watch.ask()
    watch.notify(text(1))
    assert kept(watch).etag == b""
    assert len(after(kept(watch)).notify(text(1))) == 1
    watch.notify(text(0))  # waits, in place of nothing; what the device knows is open
    assert len(after(kept(watch)).notify(text(0))) == 1


def test_after_a_kill_whatever_followed_the_registration_is_told_again() -> None:
    watch = Watch()
    watch.ask()
    assert after(journal(watch)).notify(text(0)) == []  # the registration was answered with it
    (notification,) = watch.notify(text(1))
    watch.hear(ACK, notification.mid)
    # On the bus it becomes 0 again while nobody is there to hear it.
    assert len(after(journal(watch)).notify(text(0))) == 1
    kept(watch)  # the journal is written anew, with what is told now
    watch.notify(text(2))
    assert journal(watch).etag == b""


def test_what_was_sent_without_confirmation_is_told_again_after_a_restart() -> None:
    watch = Watch(Settings(confirm_every=100))
    watch.ask()
    watch.notify(text(1))

    assert len(after(kept(watch)).notify(text(1))) == 1


def test_a_newer_notification_in_place_of_a_repetition_is_what_the_device_was_told() -> None:
    watch = Watch()
    watch.ask()
    watch.notify(text(1))
    watch.notify(text(2))
    watch.gate.run_timers(START + 4)
    (renewed,) = (Message.decode(octets) for octets in watch.gate.take())
    watch.hear(ACK, renewed.mid)

    assert kept(watch).etag == text(2).etag


def test_what_has_ended_is_not_kept() -> None:
    watch = Watch()
    watch.ask()
    watch.ask(path="gone", token=b"\x0b")
    watch.ask()
    assert list(watch.gate.journal.kept) == [(b"\1\2\3\4\5\6\7\x08", b"\x0a")]

    watch.ask(DEREGISTER)

    assert watch.gate.journal.kept == {}
    assert list(watch.gate.layer.observations.kept()) == []


def test_a_registration_that_waits_for_its_state_is_not_kept() -> None:
    watch = Watch()
    watch.gate.contents.is_slow = True
    octets = message(CON, Code.GET, 1, "led", options=((OBSERVE, b""),))
    watch.gate.receive(watch.endpoint, octets, START)

    assert watch.gate.journal.kept == {}
    assert list(watch.gate.layer.observations.kept()) == []


def test_what_may_not_be_observed_any_more_does_not_go_on() -> None:
    watch = Watch()
    watch.ask()
    later = Watch()
    later.gate.contents.observe_refusal = RequestRefused(Code.FORBIDDEN)

    later.gate.layer.restore_observations(
        later.endpoint, tuple(watch.gate.journal.kept.values()), START
    )

    assert (later.count, later.gate.contents.observed_paths) == (0, [])


def test_what_cannot_be_subscribed_to_any_more_does_not_go_on() -> None:
    watch = Watch()
    watch.ask()
    later = Watch()
    later.gate.contents.subscribe_refusal = RequestRefused(Code.SERVICE_UNAVAILABLE)

    later.gate.layer.restore_observations(
        later.endpoint, tuple(watch.gate.journal.kept.values()), START
    )

    assert (later.count, later.gate.contents.observed_paths) == (0, [])


def test_no_more_go_on_than_a_device_may_observe() -> None:
    watch = Watch()
    for token in range(5):
        watch.ask(token=bytes((token,)))

    assert restarted(watch, Settings(observations_per_device=2)).count == 2
