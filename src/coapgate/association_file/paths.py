"""Paths in 28 octets: which socket of ours, and an IPv4 or IPv6 peer address.

family (1: 4 or 6), whether the socket was the only one (1), port (2), CRC-32 of what it was bound
to (4), scope id (4), address (16)

A socket's number is its place in `dtls.bind`, and means another one when that changes. Flow
information is not kept: no socket of ours is told any.
"""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Sequence

from coapgate.model import Path

NOWHERE = 255
"""The number of a socket that there is no more: more than there can be."""

_PATH = struct.Struct("=B?HII16s")
_IPV4, _IPV6 = 4, 6


class SocketPaths:
    """Gives peer addresses back exactly as `recvfrom` had them: they are compared with those."""

    def __init__(self, binds: Sequence[tuple[str, int]] | None = None) -> None:
        """`binds` are hosts and ports as configured, by the number of their socket.

        Without them sockets are known by their numbers only.
        """
        self._marks: Sequence[int] = range(NOWHERE) if binds is None else _marks(binds)
        self._is_only = len(self._marks) == 1
        self._numbers = {mark: number for number, mark in enumerate(self._marks)}

    def pack(self, path: Path) -> bytes | None:
        """None if it is not such an address, or no such socket."""
        try:
            packed = self._pack(path)
        except (OSError, TypeError, ValueError, IndexError, struct.error):
            return None
        return packed if self.unpack(packed) == path else None

    def unpack(self, octets: bytes) -> Path:
        """The path that `pack` wrote, under other `binds` perhaps: NOWHERE if none is its own."""
        family, was_only, port, mark, scope, address = _PATH.unpack(octets)
        # The only one may be bound to all addresses now instead of one: there is no other.
        otherwise = 0 if was_only and self._is_only else NOWHERE
        number = self._numbers.get(mark, otherwise)
        if family == _IPV4:
            return number, (socket.inet_ntop(socket.AF_INET, address[:4]), port)
        return number, (socket.inet_ntop(socket.AF_INET6, address), port, 0, scope)

    def _pack(self, path: Path) -> bytes:
        number, peer = path
        mark = self._marks[number]
        if len(peer) == 2:
            host, port = peer
            address = socket.inet_pton(socket.AF_INET, host)
            return _PATH.pack(_IPV4, self._is_only, port, mark, 0, address)
        host, port, _, scope = peer
        address = socket.inet_pton(socket.AF_INET6, host)
        return _PATH.pack(_IPV6, self._is_only, port, mark, scope, address)


def _marks(binds: Sequence[tuple[str, int]]) -> list[int]:
    """Port 0 may be there several times: those are told apart by their order."""
    return [
        zlib.crc32(f"{host}:{port}/{binds[:number].count((host, port))}".encode())
        for number, (host, port) in enumerate(binds)
    ]
