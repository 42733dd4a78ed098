"""Whatever a device puts into path and query: refused, or topics that stay under its own prefix.

`python -m tests.fuzz.fuzz_topics -max_total_time=60` runs it under atheris.
"""

from __future__ import annotations

from contextlib import suppress

from coapgate.errors import RequestRefused
from coapgate.model import DeviceId, Tenant
from coapgate.mqtt.topics import (
    MAX_TOPIC_LENGTH,
    DeviceTopic,
    parse_device_topic,
    query_text,
    uplink_path,
    uplink_prefix,
)
from tests.fuzz.script import Script

TENANT = Tenant("default")
DEVICE = DeviceId("sensor-1")
PREFIX = uplink_prefix("coapgate", TENANT, DEVICE)


def test_one_input(data: bytes) -> None:
    """The Uri-Path options of a request, which are its Uri-Query options as well."""
    script = Script(data)
    options = []
    while not script.at_end:
        options.append(script.octets())
    with suppress(RequestRefused):
        topic = PREFIX + uplink_path(options, MAX_TOPIC_LENGTH - len(PREFIX))
        path = tuple(option.decode() for option in options)
        assert parse_device_topic("coapgate", topic) == DeviceTopic(TENANT, DEVICE, "up", path)
        assert len(topic.encode()) <= MAX_TOPIC_LENGTH
        check(topic)
        assert not set("+#") & set(topic)
    with suppress(RequestRefused):
        check(query_text(options))


def check(text: str) -> None:
    """What MQTT says a string should not hold, and mosquitto ends a connection for."""
    for number in map(ord, text):
        assert 0x20 <= number < 0x7F or number >= 0xA0
        assert not 0xFDD0 <= number <= 0xFDEF
        assert number & 0xFFFE != 0xFFFE


if __name__ == "__main__":
    from tests.fuzz.running import fuzz

    fuzz(test_one_input, __file__)
