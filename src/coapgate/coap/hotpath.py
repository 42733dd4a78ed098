"""Plain uplinks: what a device POSTs or PUTs goes to the bus without a detour.

| path                          | GET       | POST, PUT | other |
|-------------------------------|-----------|-----------|-------|
| none                          | 4.04      | 4.04      | 4.05  |
| a resource of the Site        | the Site  | 4.05      | 4.05  |
| other below `.well-known`     | 4.04      | 4.05      | 4.05  |
| any other                     | its state | an uplink | 4.05  |
"""

from __future__ import annotations

from typing import Protocol

from coapgate.coap.content import CONTENT_TYPES
from coapgate.coap.options import SUPPRESS_SUCCESS, Request
from coapgate.errors import RequestRefused
from coapgate.model import Code, Identity
from coapgate.mqtt import topics
from coapgate.uplink import Source, Uplinks

STATE = int(Code.GET)
"""What `handle` returns for a request that the state of its path answers."""

_WELL_KNOWN = b".well-known"
_UPLINK_METHODS = frozenset((Code.POST, Code.PUT))


class Site(Protocol):
    """What answers GET on the gateway's own resources."""

    paths: frozenset[tuple[bytes, ...]]

    def request(self, source: Source, ticket: int, request: Request) -> None:
        """Answer later, by ticket. Raises RequestRefused to refuse at once."""


class HotPath:
    """Decides where a request goes; the message layer's `Requests`."""

    def __init__(self, uplinks: Uplinks, site: Site) -> None:
        self._uplinks = uplinks
        self._site = site
        self._site_paths = site.paths

    def source(self, identity: Identity, association_id: bytes) -> Source:
        """Prepare for the requests of one association."""
        return self._uplinks.source(identity, association_id)

    def handle(self, source: Source, ticket: int, request: Request) -> int | None:
        """Carry out one request.

        Returns None if the answer comes later, by ticket, EMPTY if none will come, or STATE.
        Raises RequestRefused.
        """
        method = request.method
        path = request.path
        if method in _UPLINK_METHODS:
            if not path or path[0] == _WELL_KNOWN or path in self._site_paths:
                raise _not_an_uplink(path)
        elif method != Code.GET:
            raise RequestRefused(Code.METHOD_NOT_ALLOWED, "POST, PUT or GET only")
        elif path in self._site_paths:
            self._site.request(source, ticket, request)
            return None
        elif not path or path[0] == _WELL_KNOWN:
            raise RequestRefused(Code.NOT_FOUND, "no such resource")
        else:
            return STATE

        content_format = request.content_format
        content_type = None
        if content_format is not None:
            content_type = CONTENT_TYPES.get(content_format)
            if content_type is not None:
                content_format = None
        # Whoever neither repeats nor wants to hear of success asks for no more than an attempt.
        at_most_once = request.no_response & SUPPRESS_SUCCESS and not request.confirmable
        self._uplinks.forward(
            source,
            method,
            path,
            request.query,
            request.payload,
            content_type=content_type,
            content_format=content_format,
            message_id=request.message_id,
            token=request.token,
            ticket=None if at_most_once else ticket,
        )
        return Code.EMPTY if at_most_once else None

    def check(self, source: Source, request: Request) -> None:
        """Refuse what could not be carried out, before its body has come: RequestRefused."""
        path = request.path
        if request.method not in _UPLINK_METHODS:
            raise RequestRefused(Code.BAD_OPTION, "a body in blocks is for POST and PUT")
        if not path or path[0] == _WELL_KNOWN or path in self._site_paths:
            raise _not_an_uplink(path)
        self._uplinks.check(source, path)
        if request.query:
            topics.query_text(request.query)

    @property
    def wall(self) -> float:
        """When this tick began, in Unix seconds."""
        return self._uplinks.wall

    def conclude(self, outcome: int) -> RequestRefused | None:
        """What a device is told about its uplink; None is 2.04."""
        return self._uplinks.conclude(outcome)


def _not_an_uplink(path: tuple[bytes, ...]) -> RequestRefused:
    if not path:
        return RequestRefused(Code.NOT_FOUND, "no path")
    return RequestRefused(Code.METHOD_NOT_ALLOWED, "GET only")
