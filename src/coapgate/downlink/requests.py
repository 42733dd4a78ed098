"""Requests for devices as backends publish them: topic, properties, Response Topic.

    {root}/{tenant}/{device}/request/{method}/{path}

The gateway may publish anything below its root, a backend may not: a Response Topic is honoured
only where the operator said that answers for this tenant may go, and never where it would look like
the word of a device or of the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from coapgate.downlink.formats import ContentFormats
from coapgate.errors import RequestRefused
from coapgate.model import Code, DeviceId, Tenant, is_name
from coapgate.mqtt import topics
from coapgate.mqtt.subscriptions import Heard
from coapgate.rights import RightsTable

METHODS: Mapping[str, int] = {
    "get": Code.GET,
    "post": Code.POST,
    "put": Code.PUT,
    "delete": Code.DELETE,
    "fetch": Code.FETCH,
    "patch": Code.PATCH,
    "ipatch": Code.IPATCH,
}
MAX_CORRELATION_LENGTH = 128
"""Octets of Correlation Data."""
MAX_ROOM = 255
"""Octets of a path: the longest that fits one of the device's own topics is no longer."""
OURS = frozenset(("up", "down", "request", "event", "status"))
"""Topic levels below a device on which only it, the gateway, or a backend by itself may speak."""

_QUERY = "coap-query"


class Origin(NamedTuple):
    """Where a request came from, and where its outcome goes.

    `response_topic` None: to the device's `event/request`; `device` None: nowhere, since the topic
    named none. `method` and `path` are as the backend wrote them.
    """

    tenant: Tenant
    device: DeviceId | None
    method: str
    path: str
    response_topic: str | None
    correlation: bytes | None


class Request(NamedTuple):
    """A request for a device; `expires_at` is when it is worth nothing any more (Unix seconds).

    `number` tells it from all others, also from those of earlier processes that still wait.
    """

    number: int
    origin: Origin
    device: DeviceId
    code: int
    query: str
    content_format: int | None
    payload: bytes
    expires_at: float

    @property
    def key(self) -> tuple[Tenant, DeviceId]:
        """Whom it is for."""
        return (self.origin.tenant, self.device)


class Rejection(NamedTuple):
    """A request that nobody can carry out, and why."""

    origin: Origin
    reason: str


class Parser:
    """Reads requests, and numbers them; times are in Unix seconds, sizes in octets."""

    def __init__(
        self,
        root: str,
        rights: RightsTable,
        formats: ContentFormats,
        *,
        hold_time: float,
        max_body: int,
        max_hold_time: float = 604_800.0,
        first_number: int = 1,
    ) -> None:
        self.next_number = first_number
        self._prefix = f"{root}/"
        self._root = root
        self._rights = rights
        self._formats = formats
        self._hold_time = hold_time
        self._max_hold_time = max_hold_time
        self._max_body = max_body

    def parse(self, heard: Heard, wall: float) -> Request | Rejection | None:
        """None: not even the tenant can be told, so nobody can be told anything."""
        tenant, _, rest = heard.topic.removeprefix(self._prefix).partition("/")
        device, _, rest = rest.partition("/")
        _, _, rest = rest.partition("/")  # `request`
        method, _, path = rest.partition("/")
        if not heard.topic.startswith(self._prefix) or not is_name(tenant):
            return None
        reason = ""
        response_topic = heard.response_topic
        if response_topic is not None:
            reason = self._why_not_to(Tenant(tenant), response_topic)
        correlation = heard.correlation_data
        if correlation is not None and len(correlation) > MAX_CORRELATION_LENGTH:
            reason = reason or f"Correlation Data has more than {MAX_CORRELATION_LENGTH} octets"
            correlation = None
        origin = Origin(
            Tenant(tenant),
            DeviceId(device) if is_name(device) else None,
            method,
            path,
            None if reason.startswith("Response Topic") else response_topic,
            correlation,
        )
        code = METHODS.get(method.lower())
        reason = (
            reason
            or ("no device can have this name" if origin.device is None else "")
            or (f"method is none of {', '.join(METHODS)}" if code is None else "")
            or _why_not_path(path)
            or ("a request must not be retained" if heard.retain else "")
            or self._why_too_large(heard)
        )
        if reason or code is None or origin.device is None:
            return Rejection(origin, reason)
        try:
            query, content_format = self._read_properties(heard)
        except ValueError as error:
            return Rejection(origin, str(error))
        expires_in = self._hold_time if heard.expires_in is None else heard.expires_in
        expires_in = min(expires_in, self._max_hold_time)
        number = self.next_number
        self.next_number += 1
        return Request(
            number,
            origin,
            origin.device,
            code,
            query,
            content_format,
            heard.payload,
            wall + expires_in,
        )

    def _why_too_large(self, heard: Heard) -> str:
        if heard.is_cut or len(heard.payload) > self._max_body:
            return f"body has more than {self._max_body} octets, or properties are too long"
        return ""

    def _why_not_to(self, tenant: Tenant, topic: str) -> str:
        """Why an answer may not go to a topic, or an empty text."""
        allowed = (f"{self._root}/{tenant}/reply/", *self._rights.of(tenant).replies)
        if not topics.is_publishable(topic):
            return "Response Topic is no topic"
        if not any(topic.startswith(prefix) and topic != prefix for prefix in allowed):
            return f"Response Topic must be below {allowed[0]}"
        found = topics.parse_device_topic(self._root, topic)
        if (found is not None and found.kind in OURS) or topic.startswith(f"{self._prefix}$"):
            return "Response Topic belongs to a device or to the gateway"
        return ""

    def _read_properties(self, heard: Heard) -> tuple[str, int | None]:
        """Query and Content-Format. Raises ValueError."""
        query = dict(heard.properties).get(_QUERY, "")
        if len(query.encode()) > topics.MAX_QUERY_LENGTH or not topics.is_text(query):
            raise ValueError(f"{_QUERY} is too long, or has a control character")
        return query, self._formats.find(heard)


def _why_not_path(path: str) -> str:
    try:
        topics.uplink_path([segment.encode() for segment in path.split("/")], MAX_ROOM)
    except RequestRefused as refusal:
        return str(refusal)
    return ""
