"""Events about devices on the bus: JSON on a topic of their own."""

from __future__ import annotations

from coapgate.model import DeviceId, Tenant
from coapgate.mqtt import topics
from coapgate.mqtt.connection import Connection


class Events:
    """Publishes events, as long as they leave room for what devices send.

    When an anchor with 100,000 devices is removed, each has an event: they must not take the places
    of uplinks, which would be answered 5.03. `hold_messages` is how many publications may wait.
    """

    def __init__(self, connection: Connection, root: str, hold_messages: int) -> None:
        self._connection = connection
        self._root = root
        self._room = hold_messages // 2
        self.dropped = 0
        """Events that were not published for want of room."""

    def publish(self, tenant: Tenant, device: DeviceId, name: str, payload: bytes) -> None:
        """Publish one at QoS 1; nobody is told what became of it."""
        if self._connection.publications.held > self._room:
            self.dropped += 1
            return
        self._connection.publish(
            topics.event_topic(self._root, tenant, device, name),
            payload,
            qos=1,
            content_type="application/json",
            user_properties=[],
            ticket=None,
        )
