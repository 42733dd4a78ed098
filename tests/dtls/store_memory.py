"""Memory for an association store, that remembers each write to it."""

from __future__ import annotations

import random
from typing import NamedTuple

from coapgate.association_file import SocketPaths
from coapgate.dtls.store import AssociationStore
from coapgate.dtls.store_format import SLOT_LENGTH

KEY = bytes(range(32))


class Write(NamedTuple):
    """One write; a word is written whole, anything else may be cut short anywhere."""

    at: int
    octets: bytes
    is_word: bool


class Memory:
    """Mutable: the memory itself, and `writes` to it in order."""

    def __init__(self, content: bytes) -> None:
        self._memory = bytearray(content)
        self.writes: list[Write] = []
        self.octets = _Octets(memoryview(self._memory), self.writes)
        self.words = _Words(memoryview(self._memory).cast("Q"), self.writes)

    def store(self) -> AssociationStore:
        """A store that has looked at what is here."""
        store = AssociationStore(self.octets, self.words, KEY, SocketPaths())
        store.check()
        return store

    def __bytes__(self) -> bytes:
        return bytes(self._memory)


class _Octets:
    def __init__(self, view: memoryview, writes: list[Write]) -> None:
        self._view = view
        self._writes = writes

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, part: slice) -> memoryview:
        return self._view[part]

    def __setitem__(self, part: slice, octets: bytes) -> None:
        self._view[part] = octets
        self._writes.append(Write(part.start, octets, is_word=False))


class _Words:
    def __init__(self, view: memoryview, writes: list[Write]) -> None:
        self._view = view
        self._writes = writes

    def __getitem__(self, index: int) -> int:
        return self._view[index]

    def __setitem__(self, index: int, stored: int) -> None:
        self._view[index] = stored
        octets = bytes(self._view[index : index + 1])
        self._writes.append(Write(index * 8, octets, is_word=True))


def tear(content: bytearray, write: Write, chance: random.Random) -> None:
    """Do a part of a write: its beginning, its end, or octets here and there."""
    at, octets, _ = write
    cut = chance.randrange(len(octets) + 1)
    done = chance.choice(
        (range(cut), range(cut, len(octets)), chance.sample(range(len(octets)), cut))
    )
    for place in done:
        content[at + place] = octets[place]


def blank(slots: int) -> bytes:
    return bytes(slots * SLOT_LENGTH)
