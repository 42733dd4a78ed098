"""Which server a fleet connects to, and the resource that it sends to."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote_to_bytes, urlsplit

from coapgate.errors import Failed, Misused
from coapgate.simulated.radio import Place

PORT = 5684
"""Of `coaps` (RFC 7252 section 12.8)."""
PATH = (b"load",)
MAX_PATH_LENGTH = 255
"""Characters: it is to fit one datagram, with the payload."""
_HINT = "coaps://HOST, HOST:PORT or coaps://HOST:PORT/PATH"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.%a-z]{2,60}")


@dataclass(frozen=True, slots=True)
class Target:
    """A server's name or address, and the segments of a path there."""

    host: str
    port: int
    path: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"coaps://{_join(self.host, self.port)}"


def parse_target(text: str) -> Target:
    """`coaps://HOST[:PORT][/PATH]`, where `coaps://` may be left out. Raises Misused."""
    try:
        parts = urlsplit(text if "://" in text else f"coaps://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Misused(f"{text!r} is no target", _HINT) from error
    odd = parts.query or parts.fragment or parts.username is not None or port == 0
    if parts.scheme != "coaps" or not host or odd or not _HOST.fullmatch(host):
        raise Misused(f"{text!r} is no target", _HINT)
    if len(parts.path) > MAX_PATH_LENGTH:
        raise Misused(f"the path has {len(parts.path)} characters", f"at most {MAX_PATH_LENGTH}")
    segments = tuple(unquote_to_bytes(each) for each in parts.path.strip("/").split("/"))
    return Target(host, port or PORT, segments if parts.path.strip("/") else PATH)


async def look_up(target: Target) -> Place:
    """Where the target is. Raises Failed, and Misused for an address that is not one machine's."""
    loop = asyncio.get_running_loop()
    try:
        places = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise Failed(
            f"{target.host!r} has no address: {error.strerror}", "check how it is written"
        ) from error
    family, _, _, _, address = places[0]
    numeric = ip_address(str(address[0]).partition("%")[0])
    if numeric.is_multicast or numeric.is_unspecified or str(numeric) == "255.255.255.255":
        raise Misused(f"{numeric} is not the address of one machine", _HINT)
    return family, address


def render_address(place: Place) -> str:
    """As an operator writes it."""
    host, port, *_ = place[1]
    return _join(str(host), port)


def _join(host: str, port: object) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
