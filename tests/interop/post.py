"""The one request that every client makes here, and what is to come of it."""

from __future__ import annotations

from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options
from tests.bus import Bus

PAYLOAD = b"21.5 degrees"
# A message ID and a token without an octet that a terminal program might take for a command.
POST = Message(
    Kind.CON,
    Code.POST,
    0x4142,
    b"tokn",
    request_options((b"room", b"temperature"), content_format=0),
    PAYLOAD,
).encode()
CHANGED = Message(Kind.ACK, Code.CHANGED, 0x4142, b"tokn").encode()


async def was_published(bus: Bus, device: str, method: str) -> None:
    """The message is on the bus under the identity that was proven."""
    published = await bus.next()
    assert published.topic == f"{bus.root}/{device}/up/room/temperature"
    assert published.payload == PAYLOAD
    assert published["device"] == device
    assert published["auth"] == method
    assert published.content_type == "text/plain; charset=utf-8"
