"""Topics: what devices say becomes MQTT strings no broker objects to."""

from __future__ import annotations

import pytest

from coapgate.errors import RequestRefused
from coapgate.model import Code, DeviceId, Tenant
from coapgate.mqtt.topics import (
    MAX_QUERY_LENGTH,
    MAX_SEGMENTS,
    MAX_TOPIC_LENGTH,
    DeviceTopic,
    device_prefix,
    event_topic,
    gateway_status_topic,
    parse_device_topic,
    query_text,
    uplink_path,
    uplink_prefix,
)

DEFAULT = Tenant("default")
SENSOR_1 = DeviceId("sensor-1")


def test_every_topic_of_a_device_lies_under_its_prefix() -> None:
    prefix = device_prefix("coapgate", DEFAULT, SENSOR_1)

    assert prefix == "coapgate/default/sensor-1/"
    assert uplink_prefix("coapgate", DEFAULT, SENSOR_1) == prefix + "up/"
    assert event_topic("coapgate", DEFAULT, SENSOR_1, "refused") == prefix + "event/refused"


def test_the_status_of_a_gateway_is_no_device() -> None:
    topic = gateway_status_topic("coapgate", 3)

    assert topic == "coapgate/$gateway/3/status"
    assert parse_device_topic("coapgate", topic) is None


@pytest.mark.parametrize(
    ("segments", "path"),
    [
        ([b"temperature"], "temperature"),
        ([b"building-7", b"floor 3", b"t.1"], "building-7/floor 3/t.1"),
        (["caf\u00e9".encode(), "\u6e29\u5ea6".encode()], "caf\u00e9/\u6e29\u5ea6"),
        ([b"...", b".well-known", b"a$b", b"50%"], ".../.well-known/a$b/50%"),
        (["\U0001f321".encode()], "\U0001f321"),
    ],
)
def test_a_path_is_its_segments(segments: list[bytes], path: str) -> None:
    assert uplink_path(segments, 200) == path


@pytest.mark.parametrize(
    ("segments", "diagnostic"),
    [
        ([b""], "path segment is empty"),
        ([b"a", b"", b"b"], "path segment is empty"),
        ([b"a", b""], "path segment is empty"),
        ([b".."], "path segment is . or .."),
        ([b"a", b".", b"b"], "path segment is . or .."),
        ([b"a/b"], "path segment holds a slash"),
        ([b"a", b"/"], "path segment holds a slash"),
        ([b"a%2Fb"], "path segment holds a slash"),
        ([b"a%2fb"], "path segment holds a slash"),
        ([b"+"], "path segment holds + or #"),
        ([b"a#"], "path segment holds + or #"),
        ([b"$SYS"], "path segment begins with $"),
        ([b"a", b"$b"], "path segment begins with $"),
        ([b"a\x00"], "path has a control character"),
        ([b"a\n"], "path has a control character"),
        ([b"\x7f"], "path has a control character"),
        (["\u0085".encode()], "path has a control character"),
        (["\ufffe".encode()], "path has a control character"),
        (["\U0010ffff".encode()], "path has a control character"),
        ([b"\xff"], "path is not UTF-8"),
        ([b"\xed\xa0\x80"], "path is not UTF-8"),
        ([b"\xc3", b"\xa9"], "path is not UTF-8"),
        ([b"a" * 201], "path is too long"),
        (["\u00e9".encode() * 101], "path is too long"),
        ([b"a"] * (MAX_SEGMENTS + 1), "path has more than 32 segments"),
    ],
)
def test_a_path_that_no_topic_may_carry_is_a_bad_request(
    segments: list[bytes], diagnostic: str
) -> None:
    with pytest.raises(RequestRefused, match=r".") as refused:
        uplink_path(segments, 200)
    assert (refused.value.code, str(refused.value)) == (Code.BAD_REQUEST, diagnostic)


def test_no_path_is_not_found() -> None:
    with pytest.raises(RequestRefused) as refused:
        uplink_path([], 200)
    assert refused.value.code == Code.NOT_FOUND


def test_the_longest_topic_is_published_and_one_octet_more_is_not() -> None:
    prefix = uplink_prefix("coapgate", DEFAULT, SENSOR_1)
    room = MAX_TOPIC_LENGTH - len(prefix)

    assert len(prefix + uplink_path([b"a" * room], room)) == 255
    assert uplink_path([b"a"] * MAX_SEGMENTS, room).count("/") == 31
    with pytest.raises(RequestRefused):
        uplink_path([b"a" * (room + 1)], room)


def test_a_query_stands_as_it_would_in_the_uri() -> None:
    assert query_text([]) == ""
    assert query_text([b"unit=C", "ort=k\u00fcche".encode()]) == "unit=C&ort=k\u00fcche"
    assert query_text([b"a=1&b=2", b"c=50%"]) == "a=1%26b=2&c=50%25"


@pytest.mark.parametrize(
    ("arguments", "diagnostic"),
    [
        ([b"a=\xff"], "query is not UTF-8"),
        ([b"a=\x1b[31m"], "query has a control character"),
        (["\ufdd0".encode()], "query has a control character"),
        ([b"a" * 512, b"b" * 512], "query is too long"),
    ],
)
def test_a_query_that_no_mqtt_string_may_carry_is_a_bad_request(
    arguments: list[bytes], diagnostic: str
) -> None:
    with pytest.raises(RequestRefused, match=diagnostic) as refused:
        query_text(arguments)
    assert refused.value.code == Code.BAD_REQUEST
    assert len(query_text([b"a" * MAX_QUERY_LENGTH])) == MAX_QUERY_LENGTH


def test_a_topic_is_read_back() -> None:
    topic = parse_device_topic("site/a", "site/a/default/sensor-1/down/valve/1")

    assert topic == DeviceTopic(DEFAULT, SENSOR_1, "down", ("valve", "1"))


@pytest.mark.parametrize(
    "topic",
    [
        "other/default/sensor-1/up/t",
        "coapgate",
        "coapgatex/default/sensor-1/up/t",
        "coapgate/default",
        "coapgate/default/sensor-1",
        "coapgate//sensor-1/up/t",
        "coapgate/default/sensor 1/up/t",
    ],
)
def test_a_topic_that_is_no_devices_is_nobodys(topic: str) -> None:
    assert parse_device_topic("coapgate", topic) is None
