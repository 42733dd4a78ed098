"""Paths in 28 octets: a socket's number and an IPv4 or IPv6 peer address.

socket number (1), family (1: 4 or 6), port (2), flow information (4), scope id (4), address (16)
"""

from __future__ import annotations

import socket
import struct

from coapgate.model import Path

_PATH = struct.Struct("=BBHII16s")
_IPV4, _IPV6 = 4, 6


class SocketPaths:
    """Gives peer addresses back exactly as `recvfrom` had them: they are compared with those."""

    def pack(self, path: Path) -> bytes | None:
        """None if it is not such an address."""
        try:
            packed = _pack(path)
        except (OSError, TypeError, ValueError, struct.error):
            return None
        return packed if self.unpack(packed) == path else None

    def unpack(self, octets: bytes) -> Path:
        """The path that `pack` wrote."""
        number, family, port, flow, scope, address = _PATH.unpack(octets)
        if family == _IPV4:
            return number, (socket.inet_ntop(socket.AF_INET, address[:4]), port)
        return number, (socket.inet_ntop(socket.AF_INET6, address), port, flow, scope)


def _pack(path: Path) -> bytes:
    number, peer = path
    if len(peer) == 2:
        host, port = peer
        return _PATH.pack(number, _IPV4, port, 0, 0, socket.inet_pton(socket.AF_INET, host))
    host, port, flow, scope = peer
    address = socket.inet_pton(socket.AF_INET6, host)
    return _PATH.pack(number, _IPV6, port, flow, scope, address)
