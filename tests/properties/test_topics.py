"""Whatever a device puts into its path: refused, or a topic of its own that reads back the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from coapgate.errors import RequestRefused
from coapgate.model import Code, DeviceId, Tenant
from coapgate.mqtt.topics import (
    MAX_TOPIC_LENGTH,
    DeviceTopic,
    parse_device_topic,
    query_text,
    uplink_path,
    uplink_prefix,
)

NAMES = st.from_regex(re.compile(r"[A-Za-z0-9._~:-]{1,64}"), fullmatch=True)
ROOTS = st.from_regex(re.compile(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}"), fullmatch=True)
SEGMENTS = st.lists(st.binary(max_size=24) | st.text(max_size=12).map(str.encode), max_size=40)


def may_stand_in_mqtt(text: str) -> bool:
    """MQTT 5 1.5.4 and 4.7, said in another way than `topics` does."""
    return not any(
        unicodedata.category(character) in {"Cc", "Cs"}
        or ord(character) & 0xFFFE == 0xFFFE
        or 0xFDD0 <= ord(character) <= 0xFDEF
        for character in text
    )


def rendered(render: Callable[[], str]) -> str | RequestRefused:
    try:
        return render()
    except RequestRefused as refused:
        return refused


@given(ROOTS, NAMES, NAMES, SEGMENTS)
@example("r", "default", "sensor-1", [b"a", b"..", b"..", b"sensor-2", b"up", b"t"])
@example("r", "default", "sensor-1", [b"a/b"])
@example("r", "default", "sensor-1", [b"a", b"\n"])
@example("r", "default", "sensor-1", ["\u2028".encode(), "\ufeff".encode()])
def test_a_path_is_refused_or_reads_back(
    root: str, tenant: str, device: str, segments: list[bytes]
) -> None:
    prefix = uplink_prefix(root, Tenant(tenant), DeviceId(device))
    path = rendered(lambda: uplink_path(segments, MAX_TOPIC_LENGTH - len(prefix)))
    if isinstance(path, RequestRefused):
        assert path.code == (Code.BAD_REQUEST if segments else Code.NOT_FOUND)
        assert len(str(path)) < 64
        return
    topic = prefix + path
    assert parse_device_topic(root, topic) == DeviceTopic(
        Tenant(tenant), DeviceId(device), "up", tuple(segment.decode() for segment in segments)
    )
    assert may_stand_in_mqtt(topic)
    assert not set("+#\0") & set(topic)
    assert len(topic.encode()) <= MAX_TOPIC_LENGTH


@given(SEGMENTS)
@example([b"a=1&b=2", b"%26", b""])
def test_a_query_is_refused_or_splits_into_its_arguments(arguments: list[bytes]) -> None:
    query = rendered(lambda: query_text(arguments))
    if isinstance(query, RequestRefused):
        assert query.code == Code.BAD_REQUEST
        return
    assert may_stand_in_mqtt(query)
    if arguments:
        parts = [part.replace("%26", "&").replace("%25", "%") for part in query.split("&")]
        assert parts == [argument.decode() for argument in arguments]


@given(st.text())
def test_any_topic_is_some_devices_or_nobodys(topic: str) -> None:
    parsed = parse_device_topic("coapgate", f"coapgate/{topic}")
    if parsed is not None:
        levels = [parsed.tenant, parsed.device, parsed.kind, *parsed.path]
        assert "/".join(levels) == topic
