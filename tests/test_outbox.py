"""What the gateway has to say stays in order until the broker has it."""

from __future__ import annotations

from coapgate.model import Outcome
from coapgate.outbox import MAX_ABOUT, RETRY_INTERVAL, WINDOW, Notice, Outbox


class Broker:
    """Takes publications, and answers when the test says so."""

    def __init__(self, limit: int = 1000) -> None:
        self.taken: list[tuple[int, str, bytes]] = []
        self.settled: list[int] = []
        self.outbox = Outbox(self, limit, self.settled.append)
        self._answered = 0

    connected = True

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None:
        assert qos == 1
        assert ticket is not None
        assert ticket < 0
        self.taken.append((ticket, topic, payload))

    def say(self, topic: str, *, settles: int | None = None, retain: bool = False) -> None:
        self.outbox.put(Notice(topic, b"", settles=settles, retain=retain), 0.0)

    def answer(self, outcome: int = 0x00, count: int = 1, now: float = 0.0) -> None:
        for _ in range(count):
            ticket, _, _ = self.taken[self._answered]
            self._answered += 1
            self.outbox.ended(ticket, outcome, now)

    def topics(self) -> list[str]:
        return [topic for _, topic, _ in self.taken]


def test_a_few_are_under_way_and_the_rest_waits_in_order() -> None:
    broker = Broker()
    names = [f"t/{number}" for number in range(100)]
    for name in names:
        broker.say(name)
    assert broker.topics() == names[:WINDOW]

    broker.answer(count=100)

    assert broker.topics() == names
    assert (len(broker.outbox), broker.outbox.published) == (0, 100)


def test_what_the_broker_could_not_take_is_said_again_before_what_came_later() -> None:
    broker = Broker()
    for name in "abc":
        broker.say(name)
    broker.answer(Outcome.UNAVAILABLE, count=3, now=10.0)
    broker.say("d")
    assert broker.topics() == ["a", "b", "c"]
    assert broker.outbox.next_timer() == 10.0 + RETRY_INTERVAL

    broker.outbox.handle_timer(10.0 + RETRY_INTERVAL)

    assert broker.topics() == ["a", "b", "c", "a", "b", "c", "d"]
    broker.answer(count=4)
    assert len(broker.outbox) == 0
    assert broker.outbox.next_timer() is None


def test_of_a_retained_topic_only_the_newest_is_said_again() -> None:
    broker = Broker()
    broker.say("status", retain=True, settles=1)
    broker.say("event")
    broker.say("status", retain=True, settles=2)
    broker.answer(Outcome.UNAVAILABLE, count=3)
    broker.outbox.handle_timer(RETRY_INTERVAL)

    assert broker.topics()[3:] == ["event", "status"]
    broker.answer(count=2)
    assert broker.settled == [1, 2]


def test_what_the_broker_refuses_is_said_otherwise_or_lost() -> None:
    broker = Broker()
    instead = Notice("event/request", b"", settles=7)
    broker.outbox.put(Notice("reply", b"", settles=7, instead=instead), 0.0)
    broker.answer(0x87)
    assert broker.topics() == ["reply", "event/request"]
    assert broker.settled == []

    broker.answer(0x87)

    assert broker.settled == [7]
    assert (broker.outbox.lost, broker.outbox.published) == (1, 0)


def test_too_large_an_answer_is_said_otherwise() -> None:
    broker = Broker()
    instead = Notice("event/request", b"")
    broker.outbox.put(Notice("reply", b"x" * 100, instead=instead), 0.0)
    broker.answer(Outcome.TOO_LARGE)
    broker.answer()

    assert broker.topics() == ["reply", "event/request"]
    assert broker.outbox.published == 1


def test_each_notice_settles_once() -> None:
    broker = Broker()
    for number in range(5):
        broker.say("t", settles=number)
    broker.answer(count=5)

    assert broker.settled == [0, 1, 2, 3, 4]


def test_one_device_that_comes_and_goes_for_ever_takes_no_room_from_others() -> None:
    broker = Broker(limit=1000)
    broker.connected = False
    for _ in range(5000):
        broker.outbox.put(Notice("flapping/event", b"", about="acme/flapping"), 0.0)
        broker.say("flapping/status", retain=True)
    broker.outbox.put(Notice("calm/event", b"", about="acme/calm"), 0.0)
    broker.say("calm/status", retain=True)

    assert len(broker.outbox) == MAX_ABOUT + 3
    broker.connected = True
    broker.outbox.resume()
    broker.answer(count=MAX_ABOUT + 3)
    assert broker.topics()[-3:] == ["flapping/status", "calm/event", "calm/status"]
    broker.outbox.put(Notice("flapping/event", b"", about="acme/flapping"), 0.0)
    assert broker.topics()[-1] == "flapping/event", "there is room again"


def test_events_leave_room_for_outcomes_and_statuses() -> None:
    broker = Broker(limit=100)
    broker.connected = False
    for number in range(200):
        broker.say(f"event/{number}")
    assert len(broker.outbox) == 75
    for number in range(10):
        broker.say("reply", settles=number)
        broker.say(f"status/{number}", retain=True)

    assert len(broker.outbox) == 95
    assert broker.settled == []


def test_beyond_its_limit_a_notice_is_lost_and_counted() -> None:
    broker = Broker(limit=40)
    for number in range(50):
        broker.say("t", settles=number)

    assert broker.outbox.lost == 10
    assert broker.settled == list(range(40, 50))
    assert len(broker.outbox) == 40


def test_a_restless_broker_is_not_asked_in_a_loop() -> None:
    broker = Broker()
    broker.say("t")
    broker.answer(Outcome.UNAVAILABLE, now=5.0)
    for now in (5.0, 5.5, 5.9):
        broker.outbox.handle_timer(now)

    assert len(broker.taken) == 1


def test_while_the_broker_is_away_nothing_is_handed_over() -> None:
    broker = Broker()
    broker.connected = False
    for name in "abc":
        broker.say(name)
    assert (broker.taken, len(broker.outbox)) == ([], 3)

    broker.connected = True
    broker.outbox.resume()

    assert broker.topics() == ["a", "b", "c"]
