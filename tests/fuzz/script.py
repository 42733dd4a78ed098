"""Reads a fuzzer's octets as a script: what happens next, and with what."""

from __future__ import annotations


class Script:
    """Front to back; past its end everything is zero or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position >= len(self._data)

    def octet(self) -> int:
        return int.from_bytes(self._take(1), "big")

    def number(self) -> int:
        """Of two octets."""
        return int.from_bytes(self._take(2), "big")

    def octets(self) -> bytes:
        """As many as the next two octets say, or until the end."""
        return self._take(self.number())

    def rest(self) -> bytes:
        return self._take(len(self._data))

    def patched(self, octets: bytes) -> bytes:
        """`octets` with up to three of them changed, or cut short, or followed by others."""
        changed = bytearray(octets)
        how = self.octet()
        for _ in range(how & 3):
            position, mask = self.number(), self.octet()
            if changed:
                changed[position % len(changed)] ^= mask
        if how & 4:
            del changed[self.number() % (len(changed) + 1) :]
        if how & 8:
            changed += self.octets()
        return bytes(changed)

    def _take(self, count: int) -> bytes:
        taken = self._data[self._position : self._position + count]
        self._position += count
        return taken
