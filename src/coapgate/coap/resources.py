"""The gateway's own resources: `/.well-known/core`, `/time` and `/hello`.

They are for a device under development: what is here, what time is it, who do you think I am.
Every answer is complete and needs no state: the message layer cuts it into blocks where it has to,
and none of aiocoap's blockwise caches is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from urllib.parse import quote

from aiocoap import Message, resource

from coapgate.coap.content import CBOR, JSON, LINK_FORMAT, TEXT
from coapgate.model import Code, Identity
from coapgate.rights import Offer

WELL_KNOWN_CORE = (".well-known", "core")
TIME = ("time",)
HELLO = ("hello",)
PATHS = frozenset(tuple(s.encode() for s in path) for path in (WELL_KNOWN_CORE, TIME, HELLO))

FORMATS = frozenset((TEXT, LINK_FORMAT, JSON, CBOR))
"""Content-Formats that any of the resources can answer in."""

_DAY = 86400.0
_PLAIN = "/:@!$&'()*+,;=~"
"""What a path of a URI holds as it is (RFC 3986 section 3.3), beside letters and digits."""

_Link = tuple[str, dict[str, str | None]]
"""A target and its attributes; None: the attribute has no value."""

_LINKS: tuple[_Link, ...] = (
    ("/.well-known/core", {"ct": "40"}),
    ("/time", {"ct": "0", "rt": "coapgate.time"}),
    ("/hello", {"ct": "50 60", "rt": "coapgate.hello"}),
)


class _Resource(resource.Resource):  # type: ignore[misc]  # aiocoap is untyped
    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False


class Discovery(_Resource):
    """What is here for this device (RFC 6690), with the filters of section 4.1: `?rt=coapgate.*`.

    Beside the gateway's own resources these are the paths that its rights name, as
    `coapgate.uplink` where it may POST and `coapgate.state` where it may GET, with `obs` where it
    may observe.
    """

    def __init__(self, offers: Callable[[Identity], Iterable[Offer]]) -> None:
        super().__init__()
        self._offers = offers

    async def render_get(self, request: Message) -> Message:
        if request.opt.accept not in (None, LINK_FORMAT):
            return Message(code=Code.NOT_ACCEPTABLE)
        (identity,) = request.remote.authenticated_claims
        offered = filter(None, map(_link, self._offers(identity)))
        links = [
            link
            for link in (*_LINKS, *offered)
            if all(_matches(link, q) for q in request.opt.uri_query)
        ]
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
    """Who the device has proven to be: `tenant`, `device`, `method`; JSON, or CBOR if asked.

    `days_left`, where there is an end to it, are the whole days for which its certificate chain, or
    its key, is valid still.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        super().__init__()
        self._wall = wall

    async def render_get(self, request: Message) -> Message:
        (identity,) = request.remote.authenticated_claims
        if request.opt.accept in (None, JSON):
            return Message(payload=_json(self._fields(identity)), content_format=JSON)
        if request.opt.accept == CBOR:
            return Message(payload=_cbor(self._fields(identity)), content_format=CBOR)
        return Message(code=Code.NOT_ACCEPTABLE)

    def _fields(self, identity: Identity) -> dict[str, str | int]:
        fields: dict[str, str | int] = {
            "tenant": identity.tenant,
            "device": identity.device,
            "method": identity.method.value,
        }
        if identity.not_after is not None:
            fields["days_left"] = max(0, int((identity.not_after - self._wall()) / _DAY))
        return fields


def nothing(identity: Identity) -> tuple[Offer, ...]:
    """The rights of no device name a path."""
    return ()


def build_site(
    wall: Callable[[], float], offers: Callable[[Identity], Iterable[Offer]] = nothing
) -> resource.Site:
    """All of them at their paths; `wall` is the clock, in Unix seconds, `offers` are the paths that
    the rights of a device name."""
    site = resource.Site()
    site.add_resource(WELL_KNOWN_CORE, Discovery(offers))
    site.add_resource(TIME, Time(wall))
    site.add_resource(HELLO, Hello(wall))
    return site


def _link(offer: Offer) -> _Link | None:
    """None for a path of which the device may do nothing."""
    kinds = [
        name
        for name, may in (("coapgate.uplink", offer.post), ("coapgate.state", offer.read))
        if may
    ]
    if not kinds:
        return None
    attributes: dict[str, str | None] = {"rt": " ".join(kinds)}
    if offer.observe:
        attributes["obs"] = None
    return f"/{quote(offer.path, safe=_PLAIN)}", attributes


def _link_format(links: list[_Link]) -> str:
    """RFC 6690 section 2; our values hold nothing to be escaped."""
    return ",".join(
        f"<{href}>"
        + "".join(
            f";{name}" if value is None else f';{name}="{value}"'
            for name, value in attributes.items()
        )
        for href, attributes in links
    )


def _matches(link: _Link, condition: str) -> bool:
    """One query argument: `name=value`, the value of one word, `*` at its end for a prefix."""
    href, attributes = link
    name, equals, wanted = condition.partition("=")
    if not equals:
        return True
    words = [href] if name == "href" else (attributes.get(name) or "").split()
    if wanted.endswith("*"):
        return any(word.startswith(wanted[:-1]) for word in words)
    return wanted in words


def _json(fields: dict[str, str | int]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _cbor(fields: dict[str, str | int]) -> bytes:
    """A map of text strings, none as long as 256 octets, and of numbers (RFC 8949 section 3.1)."""
    octets = bytes((0xA0 | len(fields),))
    for item in (item for field in fields.items() for item in field):
        if isinstance(item, int):
            octets += b"\x1b" + item.to_bytes(8, "big")
            continue
        value = item.encode()
        octets += bytes((0x60 | len(value),) if len(value) < 24 else (0x78, len(value))) + value
    return octets
