"""The main job in one test: a real device, a real broker, one message, one answer."""

from __future__ import annotations

from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options
from tests.bus import Bus
from tests.gateways import Running
from tests.interop.openssl import s_client_by_psk


async def test_what_openssl_sends_by_psk_is_on_the_bus_before_it_is_answered(
    gateway: Running, bus: Bus
) -> None:
    key = gateway.installation.add_psk("sensor-1")
    options = request_options((b"temperature",), content_format=0)
    request = Message(Kind.CON, Code.POST, 0x4142, b"tokn", options, b"21.5")
    response = Message(Kind.ACK, Code.CHANGED, 0x4142, b"tokn")

    async with s_client_by_psk(gateway, key) as client:
        client.write(request.encode())
        await client.until(response.encode())

    published = await bus.next()
    assert published.topic == f"{bus.root}/sensor-1/up/temperature"
    assert published.payload == b"21.5"
    assert published.content_type == "text/plain; charset=utf-8"
    assert published["device"] == "sensor-1"
    assert published["auth"] == "psk"
