"""The presentation language of TLS: integers and length-prefixed vectors (RFC 5246 section 4)."""

from __future__ import annotations

import struct
from typing import Any

from coapgate.errors import MalformedMessage

_FORMATS = {1: "B", 2: "H"}


class Reader:
    """Reads a message from front to back; every method raises MalformedMessage at its end."""

    __slots__ = ("_octets", "_position")

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._position = 0

    def fixed(self, length: int) -> bytes:
        """The next `length` octets."""
        end = self._position + length
        if end > len(self._octets):
            raise MalformedMessage("message cut short")
        octets = self._octets[self._position : end]
        self._position = end
        return octets

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fields, whose lengths never change."""
        start = self._position
        self._position = end = start + layout.size
        if end > len(self._octets):
            raise MalformedMessage("message cut short")
        return layout.unpack_from(self._octets, start)

    def integer(self, length: int) -> int:
        """An unsigned integer of `length` octets."""
        start = self._position
        self._position = end = start + length
        if end > len(self._octets):
            raise MalformedMessage("message cut short")
        return int.from_bytes(self._octets[start:end], "big")

    def vector(self, prefix: int, minimum: int = 0) -> bytes:
        """A vector behind a length of `prefix` octets, `minimum` octets or longer."""
        octets = self._octets
        start = self._position + prefix
        end = start + int.from_bytes(octets[self._position : start], "big")
        if end > len(octets):
            raise MalformedMessage("message cut short")
        if end - start < minimum:
            raise MalformedMessage("vector too short")
        self._position = end
        return octets[start:end]

    def integers(self, prefix: int, size: int) -> tuple[int, ...]:
        """A vector of unsigned integers of `size` octets (1 or 2) each, at least one."""
        octets = self.vector(prefix, minimum=size)
        if len(octets) % size:
            raise MalformedMessage("vector of odd length")
        return struct.unpack(f"!{len(octets) // size}{_FORMATS[size]}", octets)

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self._position == len(self._octets)

    def finish(self) -> None:
        """Raises MalformedMessage if octets are left over."""
        if not self.at_end:
            raise MalformedMessage("octets after the end of the message")


def vector(prefix: int, octets: bytes) -> bytes:
    """`octets` behind their length in `prefix` octets."""
    return len(octets).to_bytes(prefix, "big") + octets


def integers(prefix: int, size: int, values: tuple[int, ...]) -> bytes:
    """A vector of unsigned integers of `size` octets each."""
    return vector(prefix, b"".join(value.to_bytes(size, "big") for value in values))
