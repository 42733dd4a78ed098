"""What became of a request for a device, as its backend is told.

| outcome          | what it means                                                               |
|------------------|-----------------------------------------------------------------------------|
| `answered`       | the device answered: with its code and payload, whatever they say           |
| `delivered`      | the device acknowledged the request and sent no answer in time              |
| `expired`        | its time was over, or the device was tried often enough, without an answer  |
| `superseded`     | a newer PUT on the same path took its place while it waited                 |
| `rejected`       | it cannot be carried out; `reason` says why                                 |
| `device-unknown` | the registry has no such device                                             |
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping

from coapgate.downlink.requests import Origin
from coapgate.mqtt import topics
from coapgate.notices import render_time
from coapgate.outbox import Notice


class RequestOutcome(enum.StrEnum):
    """See the module."""

    ANSWERED = "answered"
    DELIVERED = "delivered"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    DEVICE_UNKNOWN = "device-unknown"


class Answer:
    """What a device answered: a code such as 0x45, and a body."""

    __slots__ = ("code", "content_format", "payload")

    def __init__(self, code: int, content_format: int | None, payload: bytes) -> None:
        self.code = code
        self.content_format = content_format
        self.payload = payload


class Renderer:
    """Makes notices of outcomes; `content_types` are CoAP's by their numbers."""

    def __init__(self, root: str, content_types: Mapping[int, str]) -> None:
        self._root = root
        self._content_types = content_types

    def render(
        self,
        origin: Origin,
        outcome: RequestOutcome,
        wall: float,
        *,
        reason: str = "",
        answer: Answer | None = None,
        settles: int | None = None,
    ) -> Notice | None:
        """None: the request says neither whom it was for nor whom to tell."""
        event = self._event(origin, outcome, wall, reason, answer, settles)
        if origin.response_topic is None:
            return event
        properties = [("outcome", outcome.value), ("tenant", origin.tenant)]
        if origin.device is not None:
            properties.append(("device", origin.device))
        if reason:
            properties.append(("reason", reason))
        payload = b""
        content_type = None
        if answer is not None:
            payload = answer.payload
            properties.append(("coap-code", code_text(answer.code)))
            if answer.content_format is not None:
                content_type = self._content_types.get(answer.content_format)
                if content_type is None:
                    properties.append(("content-format", str(answer.content_format)))
        return Notice(
            origin.response_topic,
            payload,
            content_type=content_type,
            properties=tuple(properties),
            correlation=origin.correlation,
            settles=settles,
            instead=event,
        )

    def _event(
        self,
        origin: Origin,
        outcome: RequestOutcome,
        wall: float,
        reason: str,
        answer: Answer | None,
        settles: int | None,
    ) -> Notice | None:
        """The same, for everybody: without what the device said."""
        if origin.device is None:
            return None
        fields: dict[str, object] = {
            "at": render_time(wall),
            "event": "request",
            "outcome": outcome.value,
            "method": origin.method,
            "path": origin.path,
        }
        if answer is not None:
            fields["code"] = code_text(answer.code)
        if reason:
            fields["reason"] = reason
        if origin.correlation is not None:
            fields["correlation"] = origin.correlation.hex()
        topic = topics.event_topic(self._root, origin.tenant, origin.device, "request")
        return Notice(topic, json.dumps(fields).encode(), settles=settles)


def code_text(code: int) -> str:
    """`2.05` for 0x45 (RFC 7252 section 12.1)."""
    return f"{code >> 5}.{code & 31:02}"
