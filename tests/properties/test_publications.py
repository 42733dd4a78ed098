"""Whatever the broker does and when: every publication ends once, and is never sent after that."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mqtt5 import PublishPacket, read

from coapgate.model import Outcome
from coapgate.mqtt.publications import Blame, Publications

pytestmark = pytest.mark.expects_warnings("publication dropped as poison")

HOLD_TIME = 10.0
RECEIVE_MAXIMUM = 3
POISON_TOPIC = "poison"


class BrokerAndPublications(RuleBasedStateMachine):
    """A broker that acknowledges, dies, comes back and hates one topic."""

    def __init__(self) -> None:
        super().__init__()
        self.publications = Publications(
            hold_time=HOLD_TIME, hold_messages=5, hold_size=2000, max_in_flight=4
        )
        self.now = 0.0
        self.connected = False
        self.paused = False
        self.unacknowledged: dict[int, int] = {}
        self.topics: list[str] = []
        self.accepted_at: list[float] = []
        self.outcomes: dict[int, int] = {}
        self.struck: dict[int, int] = {}

    @rule(poison=st.integers(0, 5).map(lambda die: die == 0), size=st.sampled_from([0, 500]))
    def publish(self, poison: bool, size: int) -> None:
        ticket = len(self.topics)
        self.topics.append(POISON_TOPIC if poison else "good")
        self.accepted_at.append(self.now)
        self.publications.publish(
            self.topics[ticket],
            b"%d:%b" % (ticket, b"x" * size),
            1,
            False,
            None,
            [],
            ticket,
            self.now,
        )

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.publications.expire(self.now)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.paused = False
        self.publications.connected(
            receive_maximum=RECEIVE_MAXIMUM,
            maximum_packet_size=None,
            retain_available=True,
            announcement=None,
            now=self.now,
        )

    @precondition(lambda self: self.unacknowledged)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        packet_id = data.draw(st.sampled_from(sorted(self.unacknowledged)))
        ticket = self.unacknowledged[packet_id]
        if self.topics[ticket] == POISON_TOPIC:
            self.lose(Blame.PROTOCOL_ERROR)
        else:
            del self.unacknowledged[packet_id]
            self.publications.acknowledge(packet_id, 0, self.now)

    @precondition(lambda self: self.connected)
    @rule(blame=st.sampled_from([Blame.NONE, Blame.NONE, Blame.CUT]))
    def die(self, blame: Blame) -> None:
        self.lose(blame)

    @precondition(lambda self: self.connected)
    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        self.publications.set_writable(not self.paused, self.now)

    def lose(self, blame: Blame) -> None:
        for ticket in self.unacknowledged.values():
            self.struck[ticket] = self.struck.get(ticket, 0) + blame
        self.unacknowledged.clear()
        self.connected = False
        self.publications.lost(blame, self.now)

    @invariant()
    def the_books_are_right(self) -> None:
        self.check_what_ended_and_what_left()
        self.check_what_waits()

    def check_what_ended_and_what_left(self) -> None:
        already_ended = set(self.outcomes)
        for ticket, outcome in self.publications.ended:
            assert ticket not in self.outcomes, "it ended twice"
            self.outcomes[ticket] = outcome
            if outcome == Outcome.POISON:
                assert self.struck[ticket] >= 4, "an innocent one was dropped"
        self.publications.ended.clear()
        sent = []
        for octets in self.publications.outgoing:
            packet, _ = read(memoryview(octets))
            assert isinstance(packet, PublishPacket)
            assert packet.packet_id is not None
            ticket = int(packet.payload.split(b":")[0])
            assert ticket not in already_ended, "it was sent after it had ended"
            assert self.struck.get(ticket, 0) < 4, "poison was sent once more"
            assert packet.packet_id not in self.unacknowledged, "the identifier is in use"
            self.unacknowledged[packet.packet_id] = ticket
            sent.append(ticket)
        self.publications.outgoing.clear()
        assert sent == sorted(sent), "order of acceptance"
        assert not sent or (self.connected and not self.paused)
        assert len(self.unacknowledged) <= RECEIVE_MAXIMUM
        suspects = [
            ticket for ticket in self.unacknowledged.values() if self.struck.get(ticket, 0) >= 2
        ]
        assert not suspects or len(self.unacknowledged) == 1, "a suspect is alone in flight"

    def check_what_waits(self) -> None:
        waiting = set(range(len(self.topics))) - set(self.outcomes)
        in_flight = set(self.unacknowledged.values())
        assert in_flight <= waiting
        assert self.publications.in_flight == len(in_flight)
        assert self.publications.held == len(waiting - in_flight)
        for ticket in waiting - in_flight:
            assert self.accepted_at[ticket] + HOLD_TIME > self.now


TestBrokerAndPublications = BrokerAndPublications.TestCase
TestBrokerAndPublications.settings = settings(max_examples=200, stateful_step_count=60)
