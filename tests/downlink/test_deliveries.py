"""When a request is sent, when it waits, and what is told about it: one outcome each."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgate.downlink.deliveries import (
    SPARE_DEADLINES,
    UNDER_WAY_TIME,
    Deliveries,
    Key,
    Limits,
)
from coapgate.downlink.outcomes import Answer, RequestOutcome
from coapgate.downlink.requests import Origin, Request
from coapgate.model import Code, DeviceId, Identity, Method, Tenant
from tests.downlink.values import SENSOR, WALL

KEY: Key = (SENSOR.tenant, SENSOR.device)
ASSOCIATION = b"assoc-01"


@dataclass
class Told:
    """An outcome as it was told."""

    number: int | None
    outcome: str
    reason: str = ""
    answer: Answer | None = field(default=None, compare=False)


class Endpoint:
    """Where an association leads."""


class Backend:
    """Deliveries with devices that are attached when the test says so."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 0.0
        self.attached: set[Key] = set()
        self.awaited: set[Key] = set()
        self.sent: list[int] = []
        self.told: list[Told] = []
        self.refuse_with: str | None = None
        self.tickets: dict[int, int] = {}
        """Request -> the ticket that it went with last."""
        self.newest: dict[Key, Endpoint] = {}
        self.deliveries: Deliveries[Endpoint] = Deliveries(self, self.send, self.tell, limits)
        self._last = 0

    def find(self, key: Key, association_id: bytes | None = None) -> Endpoint | None:
        return self.newest[key] if key in self.attached else None

    def await_word(self, key: Key, *, awaited: bool) -> None:
        (self.awaited.add if awaited else self.awaited.discard)(key)

    def send(self, endpoint: Endpoint, request: Request, ticket: int, now: float) -> None:
        self.sent.append(request.number)
        self.tickets[request.number] = ticket
        if self.refuse_with is not None:
            self.deliveries.failed(ticket, self.refuse_with, now)

    def tell(
        self,
        origin: Origin,
        outcome: RequestOutcome,
        *,
        reason: str = "",
        answer: Answer | None = None,
        settles: int | None = None,
    ) -> None:
        self.told.append(Told(settles, outcome.value, reason, answer))

    def attach(self, identity: Identity = SENSOR) -> None:
        """One more association: from now on it is the newest."""
        self.attached.add((identity.tenant, identity.device))
        self.newest[identity.tenant, identity.device] = Endpoint()
        self.deliveries.opened(identity)

    def detach(self, identity: Identity = SENSOR) -> None:
        self.attached.discard((identity.tenant, identity.device))
        self.deliveries.gone(identity)

    def speak(self, identity: Identity = SENSOR) -> None:
        """The device's uplink is answered; the layer tells only if somebody waits for it."""
        if (identity.tenant, identity.device) in self.awaited:
            self.deliveries.spoke(identity, ASSOCIATION, self.now)

    def take(
        self,
        device: str = "sensor-1",
        *,
        code: int = Code.POST,
        path: str = "led",
        payload: bytes = b"",
        expires_in: float = 86400.0,
        tenant: str = "acme",
    ) -> int:
        self._last += 1
        origin = Origin(Tenant(tenant), DeviceId(device), "POST", path, None, None)
        request = Request(
            self._last, origin, DeviceId(device), code, "", None, payload, WALL + expires_in
        )
        self.deliveries.take(request, self.now + expires_in, self.now)
        return self._last

    def answer(self, number: int, code: int = Code.CHANGED, payload: bytes = b"") -> None:
        self.deliveries.answered(self.tickets.get(number, -1), code, None, payload, self.now)

    def fail(self, number: int, failure: str) -> None:
        self.deliveries.failed(self.tickets.get(number, -1), failure, self.now)

    def run_until(self, when: float) -> None:
        while (due := self.deliveries.next_timer()) is not None and due <= when:
            self.now = max(self.now, due)
            self.deliveries.handle_timer(self.now)
        self.now = when


def test_a_request_for_a_device_that_is_there_is_sent_at_once_and_answered() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take()
    assert backend.sent == [number]

    backend.answer(number, Code.CONTENT, b"21.5")

    assert backend.told == [Told(number, "answered")]
    answer = backend.told[0].answer
    assert answer is not None
    assert (answer.code, answer.payload) == (Code.CONTENT, b"21.5")
    assert len(backend.deliveries) == 0


def test_a_request_for_a_sleeping_device_is_sent_once_when_it_next_speaks() -> None:
    backend = Backend()
    number = backend.take()
    assert (backend.sent, backend.deliveries.held) == ([], 1)

    backend.attach()
    assert backend.sent == [], "not before the response to its uplink"
    backend.speak()
    backend.speak()

    assert backend.sent == [number]
    backend.answer(number)
    backend.speak()
    assert (backend.sent, backend.told) == ([number], [Told(number, "answered")])


def test_held_requests_go_one_at_a_time_in_their_order() -> None:
    backend = Backend()
    first, second, third = (backend.take() for _ in range(3))
    backend.attach()
    backend.speak()
    assert backend.sent == [first]
    backend.speak()
    assert backend.sent == [first], "one is under way"

    backend.answer(first)
    assert backend.sent == [first, second], "it listens: it has just answered"
    backend.answer(second)
    backend.answer(third)

    assert [each.number for each in backend.told] == [first, second, third]


def test_a_device_that_does_not_acknowledge_is_asleep_until_it_speaks() -> None:
    backend = Backend()
    backend.attach()
    first = backend.take()
    backend.fail(first, "timeout")
    second = backend.take()
    assert backend.sent == [first]

    backend.speak()
    assert backend.sent == [first, first], "what it did not acknowledge comes first"
    backend.answer(first)
    backend.answer(second)

    assert backend.told == [Told(first, "answered"), Told(second, "answered")]


def test_a_request_that_is_never_acknowledged_expires_after_its_attempts() -> None:
    backend = Backend(Limits(attempts=3))
    backend.attach()
    number = backend.take()
    for _ in range(3):
        backend.fail(number, "timeout")
        backend.speak()

    assert backend.sent == [number] * 3
    assert backend.told == [Told(number, "expired", "the device does not acknowledge it")]


def test_a_request_that_waits_too_long_expires() -> None:
    backend = Backend()
    short = backend.take(expires_in=60.0)
    long = backend.take(expires_in=3600.0)

    backend.run_until(60.0)
    assert backend.told == [Told(short, "expired")]
    backend.attach()
    backend.speak()

    assert backend.sent == [long]


def test_a_request_expires_when_its_time_is_over_while_it_was_tried() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take(expires_in=60.0)
    backend.run_until(93.0)
    assert backend.told == [], "it may still be answered"

    backend.fail(number, "timeout")

    assert backend.told == [Told(number, "expired")]


def test_a_newer_put_supersedes_one_that_waits_and_posts_never_do() -> None:
    backend = Backend()
    old = backend.take(code=Code.PUT, path="config")
    other = backend.take(code=Code.PUT, path="led")
    command = backend.take(code=Code.POST, path="config")
    new = backend.take(code=Code.PUT, path="config")

    assert backend.told == [Told(old, "superseded")]
    backend.attach()
    backend.speak()
    for number in (other, command, new):
        backend.answer(number)
    assert backend.sent == [other, command, new]


def test_a_put_under_way_is_not_superseded() -> None:
    backend = Backend()
    backend.attach()
    first = backend.take(code=Code.PUT)
    second = backend.take(code=Code.PUT)
    backend.answer(first)
    backend.answer(second)

    assert backend.told == [Told(first, "answered"), Told(second, "answered")]


@pytest.mark.parametrize(
    ("failure", "outcome", "reason"),
    [
        ("silent", "delivered", ""),
        ("reset", "rejected", "the device rejects it (RST)"),
        ("too_large", "rejected", "the request or its answer is too large"),
        ("unacceptable", "rejected", "the device's answer cannot be understood"),
    ],
)
def test_every_end_has_its_outcome_and_the_next_request_follows(
    failure: str, outcome: str, reason: str
) -> None:
    backend = Backend()
    backend.attach()
    first, second = backend.take(), backend.take()
    backend.fail(first, failure)

    assert backend.told == [Told(first, outcome, reason)]
    assert backend.sent == [first, second]


def test_a_request_whose_association_ended_waits_for_the_next_one() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take()
    backend.detach()
    backend.fail(number, "closed")
    assert backend.told == []

    backend.attach()
    backend.speak()
    backend.answer(number)

    assert backend.sent == [number, number]
    assert backend.told == [Told(number, "answered")]


def test_a_device_that_comes_back_is_asked_there_when_it_speaks() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take()
    lost = backend.tickets[number]
    backend.attach()
    assert backend.sent == [number]
    backend.speak()
    assert backend.sent == [number, number]

    backend.deliveries.failed(lost, "timeout", backend.now)
    backend.deliveries.answered(lost, Code.CHANGED, None, b"", backend.now)
    assert backend.told == [], "nobody waits there any more"
    backend.answer(number)

    assert backend.told == [Told(number, "answered")]


def test_a_device_that_speaks_where_it_is_asked_is_not_asked_twice() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take()
    backend.deliveries.spoke(SENSOR, ASSOCIATION, backend.now)

    assert backend.sent == [number]


def test_an_association_that_is_gone_at_once_costs_no_attempt() -> None:
    backend = Backend(Limits(attempts=1))
    backend.refuse_with = "closed"
    backend.attach()
    number = backend.take()
    for _ in range(5):
        backend.speak()
    backend.refuse_with = None
    backend.speak()
    backend.answer(number)

    assert backend.told == [Told(number, "answered")]


def test_no_more_waits_for_a_device_than_it_may_have() -> None:
    backend = Backend(Limits(per_device=3))
    numbers = [backend.take() for _ in range(5)]
    other = backend.take("sensor-2")

    assert backend.told == [
        Told(number, "rejected", "too many requests wait for the device") for number in numbers[3:]
    ]
    assert backend.deliveries.held == 4
    backend.run_until(86400.0)
    assert [told.number for told in backend.told[2:]] == [*numbers[:3], other]


def test_no_more_waits_in_all_than_is_configured() -> None:
    backend = Backend(Limits(messages=10, size=1000, share=1.0))
    for number in range(20):
        backend.take(f"sensor-{number}")
    assert [told.reason for told in backend.told] == ["too many requests wait"] * 10

    backend = Backend(Limits(size=1000, share=1.0))
    backend.take("sensor-1", payload=b"x" * 900)
    backend.take("sensor-2", payload=b"x" * 101)
    assert [told.reason for told in backend.told] == ["too many requests wait"]


def test_one_tenant_leaves_room_for_others() -> None:
    backend = Backend(Limits(messages=10, size=1000, share=0.5))
    for number in range(6):
        backend.take(f"sensor-{number}")
    assert [told.reason for told in backend.told] == ["too many requests of the tenant wait"]
    backend.take("sensor-1", tenant="umbrella", payload=b"x" * 501)
    assert backend.told[-1].reason == "too many requests of the tenant wait"
    for number in range(5):
        backend.take(f"sensor-{number}", tenant="umbrella")

    assert len(backend.told) == 2
    backend.run_until(86400.0)
    assert len(backend.told) == 12


def test_what_waits_for_devices_that_sleep_stops_nothing_for_one_that_is_awake() -> None:
    backend = Backend(Limits(messages=10, size=1000, share=1.0))
    for number in range(10):
        backend.take(f"deaf-{number}", payload=b"x" * 100)
    backend.attach()
    number = backend.take(payload=b"x" * 900)
    backend.answer(number)

    assert backend.told == [Told(number, "answered")]


def test_a_request_under_way_expires_too_after_a_while() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take(expires_in=10.0)
    backend.run_until(UNDER_WAY_TIME - 1)
    assert backend.told == []
    backend.run_until(UNDER_WAY_TIME)
    backend.answer(number)

    assert backend.told == [Told(number, "expired")]
    following = backend.take()
    assert backend.sent == [number, following]


def test_a_thousand_requests_that_fail_at_once_fail_one_after_another() -> None:
    backend = Backend(Limits(per_device=4096))
    for _ in range(1000):
        backend.take()
    backend.refuse_with = "too_large"
    backend.attach()
    backend.speak()

    assert len(backend.sent) == 1000
    assert {told.outcome for told in backend.told} == {"rejected"}
    assert len(backend.deliveries) == 0


@pytest.mark.parametrize("failure", ["closed", "busy"])
def test_where_nothing_is_held_a_session_that_ends_rejects(failure: str) -> None:
    backend = Backend(Limits(holds=False))
    backend.attach()
    number = backend.take()
    backend.fail(number, failure)

    assert [told.outcome for told in backend.told] == ["rejected"]
    assert len(backend.deliveries) == 0


def test_an_outcome_that_cannot_be_told_does_not_stop_the_next_request() -> None:
    backend = Backend()
    backend.attach()
    first, second = backend.take(), backend.take()
    tell = backend.deliveries._tell

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no MQTT string")

    backend.deliveries._tell = fail
    with pytest.raises(ValueError, match="no MQTT string"):
        backend.answer(first)
    backend.deliveries._tell = tell
    backend.answer(second)

    assert backend.sent == [first, second]
    assert backend.told == [Told(second, "answered")]


def test_where_nothing_is_held_a_device_must_listen_now() -> None:
    backend = Backend(Limits(holds=False))
    number = backend.take()
    assert backend.told[0].outcome == "rejected"

    backend.attach()
    number = backend.take()
    backend.fail(number, "timeout")

    assert backend.told[1] == Told(number, "expired", "the device does not acknowledge it")
    assert len(backend.deliveries) == 0


def test_what_an_earlier_process_held_is_sent_in_its_order() -> None:
    backend = Backend()
    origin = Origin(Tenant("acme"), DeviceId("sensor-1"), "POST", "led", None, None)
    requests = [
        Request(number, origin, DeviceId("sensor-1"), Code.POST, "", None, b"", WALL + 60.0)
        for number in (7, 9)
    ]
    backend.deliveries.restore([(request, 60.0) for request in requests], 0.0)
    backend.attach()
    backend.speak()
    backend.answer(7)

    assert backend.sent == [7, 9]


def test_an_answer_that_nobody_waits_for_is_ignored() -> None:
    backend = Backend()
    backend.attach()
    number = backend.take()
    backend.answer(number)
    backend.answer(number)
    backend.fail(number, "timeout")
    backend.answer(99)

    assert backend.told == [Told(number, "answered")]


def test_a_device_is_listened_to_only_while_something_waits_for_it() -> None:
    backend = Backend()
    backend.attach()
    assert not backend.awaited
    number = backend.take()
    assert not backend.awaited, "it is under way"
    backend.fail(number, "timeout")
    assert backend.awaited == {KEY}
    backend.speak()
    assert not backend.awaited
    backend.answer(number)

    assert not backend.awaited


def test_deadlines_of_answered_requests_do_not_pile_up() -> None:
    backend = Backend()
    backend.attach()
    for _ in range(1000):
        backend.answer(backend.take())

    assert len(backend.deliveries._deadlines) <= SPARE_DEADLINES + 2
    assert backend.deliveries.next_timer() is None


def test_a_thousand_devices_that_do_not_listen_cost_one_that_does_nothing() -> None:
    """Counted: what happens for the one is the same with and without the others."""

    def looks(others: int) -> int:
        backend = Backend(Limits(messages=100_000))
        for number in range(others):
            identity = Identity(SENSOR.tenant, DeviceId(f"deaf-{number}"), Method.PSK, "psk-1")
            backend.attach(identity)
            backend.fail(backend.take(identity.device), "timeout")
        backend.attach()
        counted = Counted(backend.attached)
        backend.attached = counted
        for _ in range(10):
            backend.answer(backend.take())
        return counted.looks

    assert looks(1000) == looks(0)


class Counted(set[Key]):
    """Attached devices, and how often somebody looked."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        self.looks += 1
        return super().__contains__(key)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from([Code.POST, Code.PUT, Code.GET])),
        st.tuples(
            st.just("fail"),
            st.sampled_from(
                ["timeout", "silent", "reset", "closed", "busy", "too_large", "unacceptable"]
            ),
        ),
        st.tuples(st.sampled_from(["answer", "attach", "detach", "speak", "wait"]), st.just("")),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_every_request_has_exactly_one_outcome(
    steps: list[tuple[str, object]],
) -> None:
    backend = Backend(Limits(per_device=4, attempts=2))
    taken: list[int] = []
    for step, what in steps:
        under_way = [n for n in taken if backend.deliveries.is_pending(n) and n in backend.sent]
        match step:
            case "take":
                assert isinstance(what, int)
                taken.append(backend.take(code=what, expires_in=100.0))
            case "fail" if under_way:
                backend.fail(under_way[0], str(what))
            case "answer" if under_way:
                backend.answer(under_way[0])
            case "attach":
                backend.attach()
            case "detach":
                backend.detach()
            case "speak":
                backend.speak()
            case "wait":
                backend.run_until(backend.now + 30.0)
            case _:
                pass
    # In the end nobody listens any more, and time is over.
    backend.detach()
    backend.run_until(backend.now + 200.0)
    for number in taken:
        backend.fail(number, "timeout")

    assert sorted(told.number or 0 for told in backend.told) == taken
    assert len(backend.deliveries) == 0
    assert backend.deliveries.held == 0
    assert not backend.deliveries._queues, "nothing is remembered of devices that want nothing"
    assert not backend.awaited
