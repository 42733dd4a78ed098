"""Associations that outlive the process, in memory that does: a mapped file, or any buffer.

Every change is in the memory before anything is done because of it, so that after the death of the
process at any instant its successor goes on: no send number is used twice under a key, no record is
accepted twice, and a request that was answered gets the same answer. For that

- what may change again is a word of 8 octets, written by one store of the machine; what is longer
  is written beside what is in use, and then switched to by a word;
- send numbers are leased in blocks of 64, and the successor begins after the block;
- of what was received only the highest number is kept, and all up to it count as seen;
- an answer that was cut short does not check, and was not sent.

`store_format` says what is where. A copy of the memory that is put back later would make all of
this untrue: whoever provides it must see to that.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from coapgate.dtls import store_format as f
from coapgate.dtls.store_format import Answer, Established, PathCodec
from coapgate.errors import StoreDamaged
from coapgate.model import Path

__all__ = ["LEASE", "Answer", "AssociationStore", "Established", "PathCodec", "Recovered"]

LEASE = 64
"""Send numbers that are leased at a time."""
RETRY_TIME = 60
"""Seconds until more room is asked for again that was refused."""

_BLANK = bytes(f.SLOT_LENGTH - f.WORD_LENGTH)
_LATEST = (1 << 32) - 1000
"""Unix seconds that leave room for what expires after them."""

# The two that are called for every request look nothing up in another module.
_WORDS, _NEWEST, _SEEN_AT = f.SLOT_WORDS, f.NEWEST, f.SEEN_AT
_LENGTH, _ANSWERS_AT, _ANSWER_LENGTH = f.SLOT_LENGTH, f.ANSWERS_AT, f.ANSWER_LENGTH
_MAX_ANSWER, _PRIME = f.MAX_ANSWER, f.CHECK_PRIME
_pack_answer, _pack_checksum, _crc32 = f.ANSWER_BODY.pack, f.CHECKSUM.pack, zlib.crc32


class Octets(Protocol):
    """Memory by octets, as a memoryview has it; nobody relies on the order within one write."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> memoryview | bytes: ...

    def __setitem__(self, part: slice, octets: bytes, /) -> None: ...


class Words(Protocol):
    """The same memory by aligned words of 8 octets, as `memoryview.cast("Q")` has it."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, stored: int, /) -> None:
        """Whole or not at all, and after everything that was written before it."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """An association of an earlier process.

    `number` counts in order of opening. All record numbers up to `newest` count as seen; `sequence`
    is the first send number that may be used, 2**48 if none may. `seen_at` is Unix seconds;
    `answers` are the last that were given, the oldest first.
    """

    slot: int
    number: int
    established: Established
    path: Path
    is_proven: bool
    newest: int
    sequence: int
    seen_at: int
    answers: tuple[Answer, ...]


class AssociationStore:
    """Every association in a slot of its own. Call `check` before anything else.

    Slot -1 is none: what is told of it is not kept. Nothing may be told of a slot after `remove`.
    Mutable: the memory, which slots are free, and `wall`, the time as last told (Unix seconds).
    """

    __slots__ = (
        "_cipher",
        "_free",
        "_is_checked",
        "_next_number",
        "_octets",
        "_paths",
        "_refused_at",
        "_reserve",
        "_usable",
        "_wall_word",
        "_words",
        "capacity",
        "count",
        "unstored",
        "wall",
    )

    def __init__(
        self,
        octets: Octets,
        words: Words,
        key: bytes,
        paths: PathCodec,
        reserve: Callable[[int], int] | None = None,
    ) -> None:
        """`octets` and `words` are the same memory, `key` is 32 octets of its own.

        `reserve(count)` makes the first `count` slots fit to be touched, if it can, and returns how
        many are. Without it all are.
        """
        self.capacity = len(octets) // f.SLOT_LENGTH
        """Slots, free or not."""
        self.count = 0
        """Associations that are stored."""
        self.unstored = 0
        """How often one was not, for want of room or because it does not fit."""
        self._octets = octets
        self._words = words
        self._cipher = AESGCM(key)
        self._paths = paths
        self._reserve = reserve or (lambda _: self.capacity)
        self._usable = 0
        self._free: list[int] = []
        self._next_number = 1
        self._is_checked = False
        self._refused_at = -RETRY_TIME
        self.wall = 0
        self._wall_word = f.word(0)

    def begin(self, wall: float) -> None:
        """A tick begins: what is told of in it happens at `wall` (Unix seconds)."""
        second = int(wall)
        if second != self.wall:
            self.wall = min(max(second, 0), _LATEST)
            self._wall_word = f.word(self.wall)

    # --- what an earlier process left

    def check(self) -> None:
        """Look at everything that is there, and free what death cut short as it opened or closed.

        Raises StoreDamaged if anything else is not as it was written; then nothing can be trusted.
        """
        self._usable = self._reserve(0)
        numbers = set()
        free = []
        for slot in range(self._usable):
            if self._words[slot * _WORDS]:
                try:
                    number = self._open(slot)[0].number
                except StoreDamaged as error:
                    raise StoreDamaged(f"slot {slot}: {error}") from None
                if number in numbers:
                    raise StoreDamaged(f"slot {slot}: number {number} is there twice")
                numbers.add(number)
            else:
                self._blank(slot)
                free.append(slot)
        free.reverse()  # the first slots are taken first: the file stays short
        self._free = free
        self.count = len(numbers)
        self._next_number = max(numbers, default=0) + 1
        self._is_checked = True

    def recover(self) -> Iterator[Recovered]:
        """What there is now, in order of opening; what is removed meanwhile is left out.

        Raises StoreDamaged as `check` does, before it yields anything.
        """
        if not self._is_checked:
            self.check()
        words = self._words
        found = [(words[slot * _WORDS], slot) for slot in range(self._usable)]
        return self._recover(sorted(each for each in found if each[0]))

    def _recover(self, found: list[tuple[int, int]]) -> Iterator[Recovered]:
        for stored, slot in found:
            if self._words[slot * _WORDS] == stored:
                yield self._read(slot)

    def _read(self, slot: int) -> Recovered:
        found, content = self._open(slot)
        return Recovered(
            slot,
            found.number,
            f.parse_established(content),
            self._paths.unpack(found.path),
            found.is_proven,
            found.newest,
            found.leased + 1,
            found.seen_at,
            f.parse_answers(found.answers),
        )

    def _open(self, slot: int) -> tuple[f.Slot, bytes]:
        """What is there, and what was sealed in it. Raises StoreDamaged."""
        found = f.parse_slot(bytes(self._octets[slot * _LENGTH : (slot + 1) * _LENGTH]))
        nonce, sealed = found.sealed[: f.NONCE_LENGTH], found.sealed[f.NONCE_LENGTH :]
        try:
            return found, self._cipher.decrypt(nonce, sealed, f.BINDING.pack(slot, found.number))
        except InvalidTag:
            raise StoreDamaged("what is sealed does not open") from None

    # --- what happens now

    def add(self, established: Established, path: Path, newest: int) -> int:
        """Keep a new association whose path is proven, and lease numbers 0 to 63; its slot.

        `newest` is the highest record number that was received. -1 if it does not fit or there is
        no room: then it ends with this process.
        """
        assert self._is_checked, "what an earlier process left comes first"
        content = f.encode_established(established)
        packed = self._paths.pack(path)
        if content is not None and packed is not None and not self._free:
            self._ask_for_room()
        if content is None or packed is None or not self._free:
            self.unstored += 1
            return -1
        slot = self._free.pop()
        number = self._next_number
        self._next_number = number + 1
        nonce = os.urandom(f.NONCE_LENGTH)
        sealed = self._cipher.encrypt(nonce, content, f.BINDING.pack(slot, number))
        image = f.encode_slot(newest, LEASE - 1, self.wall, packed, nonce + sealed)
        self._octets[slot * _LENGTH + f.WORD_LENGTH : (slot + 1) * _LENGTH] = image
        self._words[slot * _WORDS] = f.word(number)
        self.count += 1
        return slot

    def seen(self, slot: int, sequence: int) -> None:
        """A record came that is newer than all before it; call before acting on it."""
        if slot >= 0:
            words, at = self._words, slot * _WORDS
            words[at + _NEWEST] = sequence << 16 | (sequence + 1) % _PRIME
            words[at + _SEEN_AT] = self._wall_word

    def lease(self, slot: int, sequence: int) -> None:
        """Numbers `sequence`, a multiple of 64, to `sequence` + 63 are about to be used."""
        if slot >= 0:
            self._words[slot * _WORDS + f.LEASED] = f.word(sequence + LEASE - 1)

    def answered(self, slot: int, message_id: int, octets: bytes, left: float) -> None:
        """A request is answered; call before it is. `octets` answer a repetition of it.

        It is the one to that message ID for `left` seconds more, cut to whole ones: the device may
        use it anew then. Longer ones than 21 octets are not kept; what the same message ID got
        before is forgotten.
        """
        if slot < 0:
            return
        at = slot * _LENGTH + _ANSWERS_AT + (message_id & 3) * _ANSWER_LENGTH
        length = len(octets)
        if length <= _MAX_ANSWER:
            body = _pack_answer(self.wall + int(left), message_id, length, octets)
            self._octets[at : at + _ANSWER_LENGTH] = _pack_checksum(_crc32(body)) + body
        else:
            before = f.parse_answer(bytes(self._octets[at : at + _ANSWER_LENGTH]))
            if before is not None and before.message_id == message_id:
                self._words[at // f.WORD_LENGTH] = 0

    def move(self, slot: int, path: Path, *, is_proven: bool) -> None:
        """The association has moved to `path`, or that has proven itself.

        A path that cannot be written leaves the one before in place.
        """
        packed = self._paths.pack(path)
        if slot < 0 or packed is None:
            return
        in_use = slot * _WORDS + f.IN_USE
        other = ~(self._words[in_use] >> 16) & 1
        at = slot * _LENGTH + f.PATHS_AT + other * f.PATH_COPY_LENGTH
        self._octets[at : at + f.PATH_COPY_LENGTH] = f.encode_path(packed)
        self._words[in_use] = f.word(is_proven << 1 | other)

    def remove(self, slot: int) -> None:
        """Forget an association, its keys too."""
        if slot < 0 or not self._words[slot * _WORDS]:
            return
        self._words[slot * _WORDS] = 0
        self._blank(slot)
        self._free.append(slot)
        self.count -= 1

    def _blank(self, slot: int) -> None:
        """Erase what is in a free slot. What is blank is not written: it may not be on disk."""
        begin, end = slot * _LENGTH + f.WORD_LENGTH, (slot + 1) * _LENGTH
        if bytes(self._octets[begin:end]) != _BLANK:
            self._octets[begin:end] = _BLANK

    def _ask_for_room(self) -> None:
        if self._usable == self.capacity or abs(self.wall - self._refused_at) < RETRY_TIME:
            return
        usable = self._reserve(self._usable + 1)
        if usable == self._usable:
            self._refused_at = self.wall
        self._free.extend(reversed(range(self._usable, usable)))
        self._usable = usable
