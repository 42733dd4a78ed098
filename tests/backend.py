"""A backend of one publication, by a client that shares no code with the gateway."""

from __future__ import annotations

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.peers import Mosquitto


async def publish(
    broker: Mosquitto,
    topic: str,
    payload: bytes,
    *,
    retain: bool = True,
    content_type: str | None = None,
) -> None:
    """Publish at QoS 1: the broker has it when this returns."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if content_type is not None:
        properties.ContentType = content_type
    version = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client(broker.host, broker.port, protocol=version) as client:
        await client.publish(topic, payload, qos=1, retain=retain, properties=properties)
