"""Values that tests of downlinks share."""

from __future__ import annotations

from coapgate.coap.content import CONTENT_TYPES
from coapgate.downlink.formats import ContentFormats
from coapgate.model import DeviceId, Identity, Method, Tenant
from coapgate.mqtt.subscriptions import Heard

WALL = 1_767_225_600.25
FORMATS = ContentFormats(CONTENT_TYPES)
SENSOR = Identity(Tenant("acme"), DeviceId("sensor-1"), Method.PSK, "psk-1")


def heard(
    topic: str,
    payload: bytes = b"",
    *,
    retain: bool = False,
    content_type: str | None = None,
    response_topic: str | None = None,
    correlation: bytes | None = None,
    expires_in: int | None = None,
    properties: tuple[tuple[str, str], ...] = (),
) -> Heard:
    """A publication below the root `gate`."""
    return Heard(
        f"gate/{topic}",
        payload,
        retain,
        content_type,
        response_topic,
        correlation,
        expires_in,
        list(properties),
        None,
    )
