"""What a worker hears from the bus: subscriptions, and what the broker delivers for them.

Two kinds of topic filter. A *state* is one exact topic, heard at QoS 0: its retained publication
comes at once, however many others the broker holds back for our acknowledgements, so it is known to
be absent when the PINGRESP after the SUBACK has come (MQTT has no other mark of the end of what is
retained). Of a state only the newest publication counts, so a flood of them costs one place. Any
other filter is a *feed*, heard at QoS 1: the broker waits for our acknowledgements.

A broker that keeps our session delivers again what we had not acknowledged when the connection was
lost; what we have taken already is acknowledged once more, and not heard twice.

One SUBSCRIBE and one UNSUBSCRIBE are on their way at a time; what is wanted meanwhile goes with the
next. A new connection subscribes to everything again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from mqtt5 import (
    PingReqPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    RetainHandling,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubscribePacket,
)

SUBSCRIBE_ID = 65533
UNSUBSCRIBE_ID = 65534
"""Packet identifiers of the one SUBSCRIBE and the one UNSUBSCRIBE; no publication has them."""
MAX_BATCH = 100
"""Topic filters of one packet."""
MAX_BATCH_SIZE = 16384
"""Octets of the topic filters of one packet."""
MAX_UNACKNOWLEDGED = 64
"""Publications to us that the broker may have under way, announced as Receive Maximum."""
MAX_FEED = 16384
"""Publications of feeds that wait to be looked at; of those at QoS 0 the next is dropped."""
MAX_RETAINED_FEED = 1 << 20
"""The same for what was retained, of which there is one for each topic."""
MAX_FEED_SIZE = 64 << 20
"""Octets of feeds that wait to be looked at, as far as they are at QoS 0."""
MAX_PROPERTIES_SIZE = 8192
"""Octets of a publication's properties, beyond which it is cut."""
ITEM_SIZE = 512
"""Octets that a publication takes besides its payload and properties."""
MAX_WAITING_SIZE = 64 << 20
"""Octets of payload that wait to be looked at; then states are asked for again instead."""

_PING = PingReqPacket().write()
_REFUSED = 0x80


class Heard(NamedTuple):
    """A publication that the broker delivered; `acknowledge` it once it is taken care of.

    `expires_in` in seconds, None: never. `receipt` is for `acknowledge`, None at QoS 0. `is_cut`:
    it is larger than anybody would take, and came without payload and properties.
    """

    topic: str
    payload: bytes
    retain: bool
    content_type: str | None
    response_topic: str | None
    correlation_data: bytes | None
    expires_in: int | None
    properties: list[tuple[str, str]]
    receipt: tuple[int, int] | None
    is_cut: bool = False


class Complete(NamedTuple):
    """All that is retained for a topic filter has come; of a state: whether there was any."""

    topic_filter: str
    found: bool


class Refusal(NamedTuple):
    """The broker does not let us hear a topic filter; `code` is SUBACK's."""

    topic_filter: str
    code: int


class Subscriptions:
    """What this worker wants to hear, and what it has heard.

    Whoever calls a method then calls `flush` and writes `outgoing`, and takes what waits by
    `next_heard`. Of feeds no payload above `max_feed_payload` octets is kept. `now` is monotonic
    seconds.
    """

    def __init__(self, outgoing: list[bytes], max_feed_payload: int = 1 << 20) -> None:
        self.max_feed_payload = max_feed_payload
        self.dropped = 0
        """Publications that nobody could look at: too many at QoS 0."""
        self.has_news = False
        """Something may wait to be looked at; whoever looks resets it."""
        self._outgoing = outgoing
        self._wanted: dict[str, bool] = {}  # topic filter -> is a state
        self._options: dict[str, tuple[QoS, RetainHandling]] = {}
        self._to_subscribe: dict[str, None] = {}
        self._to_unsubscribe: dict[str, None] = {}
        self._connected = False
        self._connection = 0
        self._batch: list[str] | None = None
        self._is_granted = False
        self._batch_ping = 0
        self._sent_at = 0.0
        self._is_unsubscribing = False
        self._pings = 0
        self._pongs = 0
        self._found: dict[str, bool] = {}
        self._feed: deque[Heard | Complete | Refusal] = deque()
        self._states: dict[tuple[str, bool], Heard] = {}
        self._size = 0
        self._feed_size = 0
        self._is_feeds_turn = False
        self._taken: dict[int, int] = {}  # packet identifier -> a hash of what it stood for

    def __len__(self) -> int:
        """Topic filters that are wanted."""
        return len(self._wanted)

    @property
    def oldest_sent_at(self) -> float | None:
        """When the SUBSCRIBE was sent that is not granted yet."""
        return None if self._batch is None else self._sent_at

    def subscribe(
        self,
        topic_filter: str,
        *,
        is_state: bool = False,
        only_news: bool = False,
        at_most_once: bool = False,
    ) -> None:
        """Want to hear a topic filter; `Complete` or `Refusal` follows, once per connection.

        A state that is heard already is looked up anew. `only_news`: not what is retained.
        `at_most_once`: at QoS 0, for a feed of which more is retained than brokers queue at QoS 1.
        """
        self._wanted[topic_filter] = is_state
        self._options[topic_filter] = (
            QoS.AT_MOST_ONCE if is_state or at_most_once else QoS.AT_LEAST_ONCE,
            RetainHandling.SEND_NEVER if only_news else RetainHandling.SEND_ALWAYS,
        )
        self._to_unsubscribe.pop(topic_filter, None)
        self._to_subscribe[topic_filter] = None

    def unsubscribe(self, topic_filter: str) -> None:
        """Want to hear it no longer."""
        if self._wanted.pop(topic_filter, None) is None:
            return
        del self._options[topic_filter]
        self._to_subscribe.pop(topic_filter, None)
        self._found.pop(topic_filter, None)
        for retain in (True, False):
            self._drop_state((topic_filter, retain))
        if self._connected:
            self._to_unsubscribe[topic_filter] = None

    def connected(self, *, is_resumed: bool = False) -> None:
        """A new connection; `is_resumed`: the broker remembers the session of the last one."""
        self._connected = True
        self._connection += 1
        if not is_resumed:
            self._taken.clear()
        self._to_unsubscribe.clear()
        self._to_subscribe = dict.fromkeys(self._wanted)

    def lost(self) -> None:
        """The connection is gone."""
        self._connected = False
        self._batch = None
        self._is_unsubscribing = False
        self._pings = self._pongs = 0
        self._found.clear()
        self._to_unsubscribe.clear()

    def unsubscribe_stale(self, topic: str) -> None:
        """The broker remembers a subscription that we do not: of an earlier process."""
        if self._connected and topic not in self._wanted:
            self._to_unsubscribe[topic] = None

    def ping(self) -> None:
        """Send a PINGREQ: their answers are counted."""
        self._pings += 1
        self._outgoing.append(_PING)

    def flush(self, now: float) -> None:
        """Send what may be sent."""
        if not self._connected:
            return
        if self._to_unsubscribe and not self._is_unsubscribing:
            patterns = _take_batch(self._to_unsubscribe)
            self._outgoing.append(UnsubscribePacket(UNSUBSCRIBE_ID, patterns).write())
            self._is_unsubscribing = True
        if self._to_subscribe and self._batch is None:
            self._batch = _take_batch(self._to_subscribe)
            self._is_granted = False
            filters = []
            for topic_filter in self._batch:
                if self._wanted[topic_filter]:
                    self._found[topic_filter] = False
                qos, retain_handling = self._options[topic_filter]
                filters.append(
                    TopicFilter(
                        topic_filter,
                        max_qos=qos,
                        retain_as_published=True,
                        retain_handling=retain_handling,
                    )
                )
            self._outgoing.append(SubscribePacket(SUBSCRIBE_ID, filters).write())
            self.ping()
            self._batch_ping = self._pings
            self._sent_at = now

    def receive_publication(self, packet: PublishPacket) -> None:
        """The broker delivers something."""
        self.has_news = True
        topic = packet.topic
        packet_id = packet.packet_id
        receipt = None if packet_id is None else (self._connection, packet_id)
        if packet_id is not None:
            content = hash((topic, packet.payload, packet.correlation_data))
            if packet.duplicate and self._taken.get(packet_id) == content:
                self.acknowledge(receipt)
                return
            self._taken[packet_id] = content
        correlation = packet.correlation_data or b""
        extra = len(topic) + len(correlation)
        extra += sum(len(name) + len(value) for name, value in packet.user_properties)
        is_state = self._wanted.get(topic, False)
        is_odd = extra > MAX_PROPERTIES_SIZE
        is_cut = not is_state and (is_odd or len(packet.payload) > self.max_feed_payload)
        heard = Heard(
            topic,
            b"" if is_cut else packet.payload,
            packet.retain,
            packet.content_type,
            packet.response_topic,
            None if is_odd else packet.correlation_data,
            packet.message_expiry_interval,
            [] if is_odd else packet.user_properties,
            receipt,
            is_cut,
        )
        if is_state:
            self._receive_state(heard)
        else:
            self._receive_feed(heard)

    def _receive_feed(self, heard: Heard) -> None:
        if heard.receipt is None:
            most = MAX_RETAINED_FEED if heard.retain else MAX_FEED
            if len(self._feed) >= most or self._feed_size >= MAX_FEED_SIZE:
                self.dropped += 1
                return
        self._feed.append(heard)
        self._feed_size += len(heard.payload) + ITEM_SIZE

    def receive_suback(self, packet: SubAckPacket) -> None:
        """The broker says which filters of the batch it grants."""
        if self._batch is None or packet.packet_id != SUBSCRIBE_ID or self._is_granted:
            return
        self._is_granted = self.has_news = True
        granted = []
        for topic_filter, code in zip(self._batch, packet.reason_codes, strict=False):
            if code.value < _REFUSED:
                granted.append(topic_filter)
            elif topic_filter in self._wanted:
                self._found.pop(topic_filter, None)
                self._feed.append(Refusal(topic_filter, code.value))
        self._batch = granted

    def receive_unsuback(self, packet: UnsubAckPacket) -> None:
        """The broker has forgotten what we want no longer."""
        if packet.packet_id == UNSUBSCRIBE_ID:
            self._is_unsubscribing = False

    def receive_pingresp(self) -> None:
        """What the broker sent before this answers all that we sent before our PINGREQ."""
        self._pongs += 1
        if self._batch is None or not self._is_granted or self._pongs < self._batch_ping:
            return
        batch, self._batch = self._batch, None
        self.has_news = True
        for topic_filter in batch:
            # Wanted no longer, or once more: then its answer is still to come.
            if topic_filter in self._wanted and topic_filter not in self._to_subscribe:
                found = self._found.pop(topic_filter, False)
                self._feed.append(Complete(topic_filter, found))

    def next_heard(self) -> Heard | Complete | Refusal | None:
        """What is to be looked at next: feeds and states in turn, so that neither starves.

        A state comes before the end of what is retained for it.
        """
        self._is_feeds_turn = not self._is_feeds_turn
        if self._feed and (self._is_feeds_turn or not self._states):
            first = self._feed[0]
            if isinstance(first, Complete) and (first.topic_filter, True) in self._states:
                return self._take_state((first.topic_filter, True))
            self._feed.popleft()
            if isinstance(first, Heard):
                self._feed_size -= len(first.payload) + ITEM_SIZE
            return first
        return self._take_state(next(iter(self._states))) if self._states else None

    def acknowledge(self, receipt: tuple[int, int] | None) -> None:
        """Let the broker forget a publication; not on another connection than it came on."""
        if receipt is not None and self._connected and receipt[0] == self._connection:
            self._outgoing.append(PubAckPacket(receipt[1]).write())
            if len(self._taken) > MAX_UNACKNOWLEDGED:
                # The oldest: the broker has had our acknowledgement for long.
                del self._taken[next(iter(self._taken))]

    def _receive_state(self, heard: Heard) -> None:
        if heard.retain and heard.topic in self._found:
            self._found[heard.topic] = True
        key = (heard.topic, heard.retain)
        self._drop_state(key)
        if self._size + len(heard.payload) > MAX_WAITING_SIZE:
            # Not lost: the broker has it, and is asked once there is room.
            self.dropped += 1
            if heard.retain:
                self._to_subscribe[heard.topic] = None
        else:
            self._states[key] = heard
            self._size += len(heard.payload)
        self.acknowledge(heard.receipt)

    def _take_state(self, key: tuple[str, bool]) -> Heard:
        heard = self._states[key]
        self._drop_state(key)
        return heard

    def _drop_state(self, key: tuple[str, bool]) -> None:
        heard = self._states.pop(key, None)
        if heard is not None:
            self._size -= len(heard.payload)


def _take_batch(wanted: dict[str, None]) -> list[str]:
    """As many of the oldest as one packet takes; they are taken out."""
    batch: list[str] = []
    size = 0
    for topic_filter in wanted:
        size += len(topic_filter.encode())
        if batch and (len(batch) == MAX_BATCH or size > MAX_BATCH_SIZE):
            break
        batch.append(topic_filter)
    for topic_filter in batch:
        del wanted[topic_filter]
    return batch
