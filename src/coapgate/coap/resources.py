"""The gateway's own resources: `/.well-known/core`, `/time` and `/hello`.

They are for a device under development: what is here, what time is it, who do you think I am.
Every answer is complete, small enough for one datagram, and needs no state: none of aiocoap's
blockwise caches is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from aiocoap import Message, resource

from coapgate.coap.content import CBOR, JSON, LINK_FORMAT, TEXT
from coapgate.model import Code, Identity

WELL_KNOWN_CORE = (".well-known", "core")
TIME = ("time",)
HELLO = ("hello",)
PATHS = frozenset(tuple(s.encode() for s in path) for path in (WELL_KNOWN_CORE, TIME, HELLO))

FORMATS = frozenset((TEXT, LINK_FORMAT, JSON, CBOR))
"""Content-Formats that any of the resources can answer in."""

_LINKS: tuple[tuple[str, dict[str, str]], ...] = (
    ("/.well-known/core", {"ct": "40"}),
    ("/time", {"ct": "0", "rt": "coapgate.time"}),
    ("/hello", {"ct": "50 60", "rt": "coapgate.hello"}),
)


class _Resource(resource.Resource):  # type: ignore[misc]  # aiocoap is untyped
    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False


class Discovery(_Resource):
    """What is here (RFC 6690), with the filters of section 4.1: `?rt=coapgate.*`."""

    async def render_get(self, request: Message) -> Message:
        if request.opt.accept not in (None, LINK_FORMAT):
            return Message(code=Code.NOT_ACCEPTABLE)
        links = [link for link in _LINKS if all(_matches(link, q) for q in request.opt.uri_query)]
        return Message(payload=_link_format(links).encode(), content_format=LINK_FORMAT)


class Time(_Resource):
    """The gateway's clock as RFC 3339 text in UTC, for devices that have none; never cached."""

    def __init__(self, wall: Callable[[], float]) -> None:
        super().__init__()
        self._wall = wall

    async def render_get(self, request: Message) -> Message:
        if request.opt.accept not in (None, TEXT):
            return Message(code=Code.NOT_ACCEPTABLE)
        text = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Message(payload=text.encode(), content_format=TEXT, max_age=0)


class Hello(_Resource):
    """Who the device has proven to be: `tenant`, `device`, `method`; JSON, or CBOR if asked."""

    async def render_get(self, request: Message) -> Message:
        (identity,) = request.remote.authenticated_claims
        if request.opt.accept in (None, JSON):
            return Message(payload=_json(identity), content_format=JSON)
        if request.opt.accept == CBOR:
            return Message(payload=_cbor(identity), content_format=CBOR)
        return Message(code=Code.NOT_ACCEPTABLE)


def build_site(wall: Callable[[], float]) -> resource.Site:
    """All of them at their paths; `wall` is the clock, in Unix seconds."""
    site = resource.Site()
    site.add_resource(WELL_KNOWN_CORE, Discovery())
    site.add_resource(TIME, Time(wall))
    site.add_resource(HELLO, Hello())
    return site


def _link_format(links: list[tuple[str, dict[str, str]]]) -> str:
    """RFC 6690 section 2; our values hold nothing to be escaped."""
    return ",".join(
        f"<{href}>" + "".join(f';{name}="{value}"' for name, value in attributes.items())
        for href, attributes in links
    )


def _matches(link: tuple[str, dict[str, str]], condition: str) -> bool:
    """One query argument: `name=value`, the value of one word, `*` at its end for a prefix."""
    href, attributes = link
    name, equals, wanted = condition.partition("=")
    if not equals:
        return True
    words = [href] if name == "href" else attributes.get(name, "").split()
    if wanted.endswith("*"):
        return any(word.startswith(wanted[:-1]) for word in words)
    return wanted in words


def _fields(identity: Identity) -> dict[str, str]:
    return {
        "tenant": identity.tenant,
        "device": identity.device,
        "method": identity.method.value,
    }


def _json(identity: Identity) -> bytes:
    return json.dumps(_fields(identity), separators=(",", ":")).encode()


def _cbor(identity: Identity) -> bytes:
    """A map of text strings (RFC 8949 section 3.1), none as long as 256 octets."""
    fields = _fields(identity)
    octets = bytes((0xA0 | len(fields),))
    for text in (text for field in fields.items() for text in field):
        value = text.encode()
        octets += bytes((0x60 | len(value),) if len(value) < 24 else (0x78, len(value))) + value
    return octets
