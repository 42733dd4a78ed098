"""Events leave room for what devices send."""

from __future__ import annotations

from coapgate.events import Events
from coapgate.model import DEFAULT_TENANT, DeviceId
from coapgate.mqtt.connection import Connection
from coapgate.mqtt.settings import ConnectionSettings


async def test_events_take_no_more_than_half_of_what_may_wait_for_the_broker() -> None:
    # Not connected: everything waits.
    connection = Connection(ConnectionSettings("127.0.0.1", hold_messages=8), lambda *_: None)
    events = Events(connection, "coapgate", 8)

    for _ in range(10):
        events.publish(DEFAULT_TENANT, DeviceId("sensor-1"), "session-ended", b"{}")

    assert (connection.publications.held, events.dropped) == (5, 5)
