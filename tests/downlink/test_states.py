"""What devices read and observe: what is retained on their topics."""

from __future__ import annotations

import pytest

from coapgate.downlink.states import MAX_ASKING, States
from coapgate.errors import RequestRefused
from coapgate.model import Code, Content, DeviceId, Identity, Method, Tenant
from coapgate.rights import Rights, RightsTable, Rule
from tests.downlink.values import FORMATS, SENSOR, heard

TOPIC = "gate/acme/sensor-1/down/config"
OTHER = Identity(Tenant("acme"), DeviceId("sensor-2"), Method.PSK, "psk-2")


class Gate:
    """States between a bus and devices that write down what they are told."""

    def __init__(self, rights: Rights | None = None, **options: float) -> None:
        self.connected = True
        self.connects = 1
        self.subscribed: list[str] = []
        self.asked = 0
        self.answers: list[tuple[int, bytes | None]] = []
        self.refused: list[tuple[int, int]] = []
        self.notified: list[tuple[str, bytes | None]] = []
        table = RightsTable({"acme": rights or Rights()})
        self.states = States(
            self,
            "gate",
            table,
            FORMATS,
            jitter=lambda low, high: low,
            **options,  # type: ignore[arg-type]
        )
        self.states.connect(self)

    # the bus

    def subscribe(self, topic_filter: str, *, is_state: bool = False) -> None:
        assert is_state
        self.asked += 1
        if topic_filter not in self.subscribed:
            self.subscribed.append(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        self.subscribed.remove(topic_filter)

    # the devices

    def respond_content(self, ticket: int, content: Content | None, now: float) -> None:
        self.answers.append((ticket, None if content is None else content.payload))

    def refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None:
        self.refused.append((ticket, refusal.code))

    def notify(
        self, tenant: Tenant, device: DeviceId, path: str, content: Content | None, now: float
    ) -> int:
        payload = None if content is None else content.payload
        self.notified.append((f"{device}/{path}", payload))
        return 1

    # the test

    def find(self, path: str = "config", ticket: int = 1, now: float = 0.0) -> None:
        self.states.find(SENSOR, path, ticket, now)

    def hear(self, payload: bytes, path: str = "config", *, retain: bool = True) -> None:
        self.states.hear(heard(f"acme/sensor-1/down/{path}", payload, retain=retain), 0.0)

    def complete(self, path: str = "config", *, found: bool = False) -> None:
        self.states.complete(f"gate/acme/sensor-1/down/{path}", 0.0, found=found)


def test_what_is_retained_is_served() -> None:
    gate = Gate()
    gate.find()
    assert gate.subscribed == [TOPIC]
    assert gate.answers == []

    gate.hear(b"21.5")

    assert gate.answers == [(1, b"21.5")]
    gate.find(ticket=2)
    assert gate.answers == [(1, b"21.5"), (2, b"21.5")]
    assert gate.asked == 1, "it is known now"


def test_what_is_not_retained_is_not_found_when_that_is_known() -> None:
    gate = Gate()
    gate.find()
    gate.complete()

    assert gate.answers == [(1, None)]
    gate.hear(b"new")
    gate.find(ticket=2)
    assert gate.answers[-1] == (2, b"new")


def test_an_empty_retained_publication_takes_the_state_away() -> None:
    gate = Gate()
    gate.states.observed(SENSOR, "config")
    gate.find()
    gate.hear(b"1")
    gate.hear(b"")
    gate.find(ticket=2)

    assert gate.answers == [(1, b"1"), (2, None)]
    assert gate.notified == [("sensor-1/config", None)]


def test_observers_are_notified_of_what_is_published_and_not_of_what_they_asked_for() -> None:
    gate = Gate()
    gate.states.observed(SENSOR, "config")
    gate.find()
    gate.hear(b"1")
    gate.complete(found=True)
    assert gate.notified == []

    gate.hear(b"2")
    gate.hear(b"2")

    assert gate.notified == [("sensor-1/config", b"2")] * 2


def test_what_is_published_without_retain_reaches_observers_and_is_no_state() -> None:
    gate = Gate()
    gate.states.observed(SENSOR, "config")
    gate.find()
    gate.hear(b"state")
    gate.hear(b"news", retain=False)
    gate.find(ticket=2)

    assert gate.notified == [("sensor-1/config", b"news")]
    assert gate.answers[-1] == (2, b"state")


def test_the_content_format_is_that_of_the_publication() -> None:
    contents: list[Content | None] = []
    gate = Gate()
    gate.respond_content = lambda ticket, content, now: contents.append(content)  # type: ignore[method-assign]
    gate.find()
    topic = "acme/sensor-1/down/config"
    gate.states.hear(heard(topic, b"{}", retain=True, content_type="application/json"), 0.0)
    bad = heard(topic, b"{}", retain=True, properties=(("content-format", "many"),))
    gate.find(ticket=2)
    gate.states.hear(bad, 0.0)
    gate.find(ticket=3)

    assert contents == [Content.of(b"{}", 50), Content.of(b"{}", 50), Content.of(b"{}", None)]
    assert contents[0] is not None
    assert contents[2] is not None
    assert contents[0].etag != contents[2].etag


def test_a_state_is_subscribed_to_while_it_is_observed_and_a_while_after_it_was_read() -> None:
    gate = Gate(linger_time=60.0)
    gate.states.observed(SENSOR, "config")
    gate.find()
    gate.hear(b"1")
    gate.find("firmware", 2)
    gate.hear(b"2", "firmware")
    gate.states.handle_timer(59.0)
    assert len(gate.subscribed) == 2

    assert gate.states.next_timer() == 60.0
    gate.states.handle_timer(60.0)
    assert gate.subscribed == [TOPIC]
    gate.states.unobserved(SENSOR, "config")

    assert gate.subscribed == []
    assert (len(gate.states), gate.states.size) == (0, 0)
    gate.hear(b"late")


def test_devices_have_states_of_their_own() -> None:
    gate = Gate()
    gate.find()
    gate.states.find(OTHER, "config", 2, 0.0)
    gate.hear(b"for sensor-1")

    assert gate.answers == [(1, b"for sensor-1")]


def test_while_the_broker_is_away_nothing_is_known() -> None:
    gate = Gate()
    gate.find()
    gate.hear(b"1")
    gate.connected = False

    with pytest.raises(RequestRefused) as caught:
        gate.find(ticket=2)
    assert caught.value.code == Code.SERVICE_UNAVAILABLE
    assert caught.value.max_age == 2


def test_after_the_broker_came_back_observers_hear_what_has_changed_and_nothing_else() -> None:
    gate = Gate()
    for path in ("same", "changed", "gone"):
        gate.states.observed(SENSOR, path)
        gate.find(path)
        gate.hear(b"1", path)
    gate.connects = 2
    gate.find("same", 7)
    assert len(gate.answers) == 3, "not what was known on the old connection"

    gate.hear(b"1", "same")
    gate.hear(b"2", "changed")
    gate.complete("gone")

    assert gate.notified == [("sensor-1/changed", b"2"), ("sensor-1/gone", None)]
    assert gate.answers[-1] == (7, b"1")


def test_a_broker_that_is_too_slow_is_not_waited_for() -> None:
    gate = Gate(look_up_time=5.0)
    gate.find(now=10.0)
    gate.find(ticket=2, now=11.0)
    assert gate.states.next_timer() == 15.0
    gate.states.handle_timer(15.0)

    assert gate.refused == [(1, Code.SERVICE_UNAVAILABLE), (2, Code.SERVICE_UNAVAILABLE)]
    assert gate.subscribed == []
    assert gate.states.next_timer() is None


def test_what_the_broker_refuses_is_not_waited_for() -> None:
    gate = Gate()
    gate.find()
    gate.states.refused(TOPIC, 0.0)

    assert gate.refused == [(1, Code.SERVICE_UNAVAILABLE)]
    assert len(gate.states) == 0


def test_no_more_reads_wait_for_the_broker_than_are_allowed() -> None:
    gate = Gate()
    for ticket in range(MAX_ASKING):
        gate.find(f"p/{ticket}", ticket)

    with pytest.raises(RequestRefused) as caught:
        gate.find("one-more", MAX_ASKING)
    assert caught.value.code == Code.SERVICE_UNAVAILABLE
    for ticket in range(MAX_ASKING):
        gate.complete(f"p/{ticket}")
    gate.find("one-more", MAX_ASKING)


def test_of_too_many_states_the_one_that_was_read_longest_ago_is_forgotten() -> None:
    gate = Gate(limit=3)
    gate.states.observed(SENSOR, "observed")
    for number, path in enumerate(("a", "b")):
        gate.find(path, number)
        gate.hear(b"x", path)
    gate.find("a", 7)
    gate.find("c", 8)

    kept = [topic.rpartition("/")[2] for topic in gate.subscribed]
    assert kept == ["observed", "a", "c"]


def test_beyond_their_size_states_are_looked_up_again() -> None:
    gate = Gate(size=1000)
    gate.find("read")
    gate.hear(b"x" * 600, "read")
    gate.states.observed(SENSOR, "config")
    gate.find(ticket=2)
    gate.hear(b"y" * 600)
    assert gate.subscribed == [TOPIC]
    gate.states.observed(SENSOR, "large")
    gate.find("large", 3)
    gate.hear(b"z" * 600, "large")
    assert gate.states.size == 600
    assert gate.answers[-1] == (3, b"z" * 600)

    asked = gate.asked
    gate.find("large", 4)
    assert gate.asked == asked + 1
    gate.hear(b"z" * 600, "large")
    assert gate.answers[-1] == (4, b"z" * 600)
    assert gate.notified == [], "it is no news"
    gate.hear(b"new", "large")
    assert gate.notified == [("sensor-1/large", b"new")]


def test_a_path_the_device_has_no_right_to_is_forbidden_and_counted() -> None:
    gate = Gate(Rights(read=Rule(["config", "a"]), observe=Rule(["config"])))
    gate.find()
    gate.states.check_observable(SENSOR, "config")
    with pytest.raises(RequestRefused) as caught:
        gate.find("secret", 2)
    assert caught.value.code == Code.FORBIDDEN
    with pytest.raises(RequestRefused) as caught:
        gate.states.check_observable(SENSOR, "a")
    assert caught.value.code == Code.FORBIDDEN

    assert gate.states.forbidden == {"read": 1, "observe": 1}
    assert gate.subscribed == [TOPIC]


def test_what_is_observed_before_it_was_ever_read_is_news() -> None:
    # An earlier process answered the registration, and nobody knows with what.
    gate = Gate()
    for path in ("there", "gone"):
        gate.states.observed(SENSOR, path)
    gate.hear(b"1", "there")
    gate.complete("there", found=True)
    gate.complete("gone")

    assert gate.notified == [("sensor-1/there", b"1"), ("sensor-1/gone", None)]


def test_whoever_may_not_read_a_path_may_not_observe_it() -> None:
    gate = Gate(Rights(read=Rule(["config"]), observe=None))

    with pytest.raises(RequestRefused) as caught:
        gate.states.check_observable(SENSOR, "secret")
    assert caught.value.code == Code.FORBIDDEN


class Leaving(Gate):
    """Devices that end their observation with whatever they are told."""

    def respond_content(self, ticket: int, content: Content | None, now: float) -> None:
        super().respond_content(ticket, content, now)
        self.states.unobserved(SENSOR, "config")

    def refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None:
        super().refuse(ticket, refusal, now)
        self.states.unobserved(SENSOR, "config")

    def notify(
        self, tenant: Tenant, device: DeviceId, path: str, content: Content | None, now: float
    ) -> int:
        self.states.unobserved(SENSOR, path)
        return super().notify(tenant, device, path, content, now)


@pytest.mark.parametrize("end", ["refused", "too late", "absent", "there", "changed"])
def test_an_observation_may_end_with_what_is_told_of_it(end: str) -> None:
    gate = Leaving(look_up_time=5.0)
    gate.states.observed(SENSOR, "config")
    gate.find(ticket=1)
    gate.find(ticket=2)
    match end:
        case "refused":
            gate.states.refused(TOPIC, 0.0)
        case "too late":
            gate.states.handle_timer(5.0)
        case "absent":
            gate.complete()
        case "there":
            gate.hear(b"1")
        case "changed":
            gate.hear(b"1")
            gate.states.observed(SENSOR, "config")
            gate.find(ticket=3)
            gate.hear(b"2")
            gate.hear(b"3")

    told = {ticket for ticket, _ in [*gate.answers, *gate.refused]}
    assert told >= {1, 2}
    if end == "there":
        assert gate.answers == [(1, b"1"), (2, b"1")]
    gate.states.handle_timer(1000.0)
    assert (len(gate.states), gate.states.size, gate.states.next_timer()) == (0, 0, None)
