"""MQTT topics: rendered from what devices say, checked, and read back.

Everything a device may choose ends here: its path and its query become MQTT strings only if no
broker has a reason to object. mosquitto ends the connection of a client that sends an octet it
dislikes, so one device could take the gateway of all off the broker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from coapgate.errors import RequestRefused
from coapgate.model import Code, DeviceId, Tenant, is_name

MAX_TOPIC_LENGTH = 255
"""Octets of a whole topic."""
MAX_SEGMENTS = 32
"""Segments of a device's path; mosquitto ends a connection at more than 200 topic levels."""
MAX_TOPIC_LEVELS = 200
"""Levels of a topic that is not of our making; see MAX_SEGMENTS."""
MAX_QUERY_LENGTH = 1024
"""Octets of a query as it is published."""

# C0, DEL, C1, noncharacters. Surrogates cannot come out of UTF-8.
_FORBIDDEN = "\x00-\x1f\x7f-\x9f\ufdd0-\ufdef" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17)
)
_FORBIDDEN_CHARACTER = re.compile(f"[{_FORBIDDEN}]")
_WILDCARD = re.compile("[+#]")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)

# What nearly every path looks like: none of the questions below arises.
_PLAIN_PATH = re.compile(r"[\w~:=,@-][\w.~:=,@-]*(?:/[\w~:=,@-][\w.~:=,@-]*)*", re.ASCII)


def device_prefix(root: str, tenant: Tenant, device: DeviceId) -> str:
    """What all topics of one device begin with, slash included."""
    return f"{root}/{tenant}/{device}/"


def uplink_prefix(root: str, tenant: Tenant, device: DeviceId) -> str:
    """What the topics of one device's uplinks begin with: `uplink_path` completes it."""
    return f"{root}/{tenant}/{device}/up/"


def event_topic(root: str, tenant: Tenant, device: DeviceId, name: str) -> str:
    """Where the gateway says what happened to a device; `name` is one of ours."""
    return f"{root}/{tenant}/{device}/event/{name}"


def gateway_status_topic(root: str, node: int) -> str:
    """Where a gateway says whether it is there; no tenant can be named `$gateway`."""
    return f"{root}/$gateway/{node}/status"


def uplink_path(segments: Sequence[bytes], room: int) -> str:
    """The end of an uplink's topic, from the Uri-Path options of a request in their order.

    `room`: octets left for it, MAX_TOPIC_LENGTH minus the prefix.

    Raises RequestRefused: 4.04 without any segment, 4.00 for a path no topic may carry.
    """
    try:
        path = b"/".join(segments).decode()
    except UnicodeDecodeError:
        raise _bad("path is not UTF-8") from None
    levels = path.count("/") + 1
    if (
        _PLAIN_PATH.fullmatch(path) is None
        or len(path) > room
        or levels != len(segments)
        or levels > MAX_SEGMENTS
    ):
        _check_path(segments, path, room)
    return path


def query_text(arguments: Sequence[bytes]) -> str:
    """The Uri-Query options of a request as one query, as it would stand in the URI.

    `&` and `%` inside of an argument are percent-encoded (RFC 7252 section 6.5), so the text
    splits back into the same arguments.

    Raises RequestRefused (4.00) for a query no MQTT string may carry.
    """
    try:
        query = "&".join(
            [argument.decode().replace("%", "%25").replace("&", "%26") for argument in arguments]
        )
    except UnicodeDecodeError:
        raise _bad("query is not UTF-8") from None
    if len(query.encode()) > MAX_QUERY_LENGTH:
        raise _bad("query is too long")
    if _FORBIDDEN_CHARACTER.search(query) is not None:
        raise _bad("query has a control character")
    return query


def is_text(text: str) -> bool:
    """Whether every broker takes this as a string."""
    return _FORBIDDEN_CHARACTER.search(text) is None


def is_publishable(topic: str) -> bool:
    """Whether every broker takes a publication on this topic."""
    return (
        0 < len(topic.encode()) <= MAX_TOPIC_LENGTH
        and topic.count("/") < MAX_TOPIC_LEVELS
        and _WILDCARD.search(topic) is None
        and is_text(topic)
        and not topic.startswith("$")
    )


def state_topic(root: str, tenant: Tenant, device: DeviceId, path: str) -> str:
    """Where backends publish the state of a path of a device."""
    return f"{root}/{tenant}/{device}/down/{path}"


def status_topic(root: str, tenant: Tenant, device: DeviceId) -> str:
    """Where the gateway says whether a device is attached."""
    return f"{root}/{tenant}/{device}/status"


def requests_filter(root: str) -> str:
    """All requests for devices."""
    return f"{root}/+/+/request/#"


def statuses_filter(root: str) -> str:
    """The status of every device."""
    return f"{root}/+/+/status"


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A topic of one device: `kind` is the level after the device, `path` the levels after that."""

    tenant: Tenant
    device: DeviceId
    kind: str
    path: tuple[str, ...]


def parse_device_topic(root: str, topic: str) -> DeviceTopic | None:
    """Which device a topic belongs to; None if to none."""
    if not topic.startswith(f"{root}/"):
        return None
    tenant, *levels = topic[len(root) + 1 :].split("/")
    if len(levels) < 2 or not (is_name(tenant) and is_name(levels[0])):
        return None
    return DeviceTopic(Tenant(tenant), DeviceId(levels[0]), levels[1], tuple(levels[2:]))


def _check_path(segments: Sequence[bytes], path: str, room: int) -> None:
    """Every rule a path has to keep, in the order in which a refusal explains itself best."""
    if not segments:
        raise RequestRefused(Code.NOT_FOUND, "no path")
    if len(segments) > MAX_SEGMENTS:
        raise _bad(f"path has more than {MAX_SEGMENTS} segments")
    if len(path.encode()) > room:
        raise _bad("path is too long")
    if path.count("/") >= len(segments) or _ENCODED_SLASH.search(path) is not None:
        raise _bad("path segment holds a slash")
    if _WILDCARD.search(path) is not None:
        raise _bad("path segment holds + or #")
    if _FORBIDDEN_CHARACTER.search(path) is not None:
        raise _bad("path has a control character")
    for segment in path.split("/"):
        if not segment:
            raise _bad("path segment is empty")
        if segment in {".", ".."}:
            raise _bad("path segment is . or ..")
        if segment.startswith("$"):
            raise _bad("path segment begins with $")


def _bad(diagnostic: str) -> RequestRefused:
    return RequestRefused(Code.BAD_REQUEST, diagnostic)
