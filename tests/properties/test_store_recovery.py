"""Whenever the process dies: no send number is used again, no record is accepted again, no request
is answered with what it was not answered with, and no association is lost or comes back."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from coapgate.dtls.store_format import SLOT_LENGTH
from coapgate.errors import StoreDamaged
from tests.dtls.store_book import (
    KINDS,
    Book,
    Draw,
    Operation,
    Script,
    adopt,
    note,
    perform,
    verify,
)
from tests.dtls.store_memory import Memory, blank, tear

SLOTS = 4

draws = st.lists(
    st.builds(
        Draw,
        st.sampled_from(KINDS),
        st.integers(0, 2 * SLOTS),
        st.one_of(st.integers(0, 255), st.integers(0, (1 << 48) - 1)),
    ),
    min_size=1,
    max_size=25,
)


class Life:
    """One process: what it was told after it had recovered, and the writes that this led to."""

    def __init__(self, content: bytes, opened: int, wall: int) -> None:
        memory = Memory(content)
        store = memory.store()
        self.book, self._slots = adopt(store.recover())
        self._store = store
        self._memory = memory
        self._script = Script(dict(self.book), SLOTS, opened, wall)
        # What is erased while recovering belongs to no operation.
        self.operations: list[tuple[int, int, Operation | None]] = [(0, len(memory.writes), None)]

    @property
    def writes(self) -> int:
        return len(self._memory.writes)

    @property
    def opened(self) -> int:
        return self._script.opened

    @property
    def wall(self) -> int:
        return self._script.wall

    def live(self, draws: list[Draw]) -> None:
        for operation in self._script.operations(draws):
            begin = self.writes
            perform(self._store, self._slots, operation)
            self.operations.append((begin, self.writes, operation))
        assert self._slots.keys() == self._script.book.keys()

    def cuts(self, before: bytes, chance: random.Random) -> Iterator[tuple[bytes, int]]:
        """What each death leaves, with how many writes were done; the next may be so in part."""
        content = bytearray(before)
        yield bytes(content), 0
        for done, write in enumerate(self._memory.writes):
            if not write.is_word:
                for _ in range(3):
                    torn = bytearray(content)
                    tear(torn, write, chance)
                    yield bytes(torn), done
            content[write.at : write.at + len(write.octets)] = write.octets
            yield bytes(content), done + 1

    def at(self, done: int) -> tuple[Book, Operation | None]:
        """What was known when so many writes were done, and which operation was under way.

        What writes nothing, as when there is no room, changes nothing.
        """
        book = dict(self.book)
        for begin, end, operation in self.operations:
            if done < end:
                return book, operation if begin <= done else None
            if operation is not None and begin < end:
                note(book, operation)
        return book, None


@settings(max_examples=100)
@given(st.lists(draws, min_size=1, max_size=3), st.randoms(use_true_random=False), st.data())
def test_after_any_part_of_the_writes_the_store_goes_on_safely(
    lives: list[list[Draw]], chance: random.Random, data: st.DataObject
) -> None:
    content, opened, wall = blank(SLOTS), 0, 1_700_000_000
    for draws_of_life in lives:
        life = Life(content, opened, wall)
        life.live(draws_of_life)
        deaths = list(life.cuts(content, chance))

        for left, done in deaths:
            book, cut_short = life.at(done)
            verify(book, cut_short, Memory(left).store().recover())

        content, _ = data.draw(st.sampled_from(deaths), "death")
        opened, wall = life.opened, life.wall


@settings(max_examples=50)
@given(draws)
def test_what_was_not_cut_short_is_recovered_as_it_was(draws: list[Draw]) -> None:
    life = Life(blank(SLOTS), 0, 0)
    life.live(draws)
    book, cut_short = life.at(life.writes)
    assert cut_short is None

    (*_, (content, _)) = life.cuts(blank(SLOTS), random.Random(0))

    recovered, _ = adopt(Memory(content).store().recover())
    assert recovered == book


@settings(max_examples=100)
@given(draws, st.lists(st.tuples(st.integers(0, SLOTS * SLOT_LENGTH - 1), st.binary(max_size=40))))
def test_whatever_is_in_the_memory_it_is_read_or_refused(
    draws: list[Draw], damage: list[tuple[int, bytes]]
) -> None:
    life = Life(blank(SLOTS), 0, 0)
    life.live(draws)
    (*_, (left, _)) = life.cuts(blank(SLOTS), random.Random(0))
    content = bytearray(left)
    for at, octets in damage:
        content[at : at + len(octets)] = octets[: len(content) - at]

    try:
        recovered = list(Memory(bytes(content)).store().recover())
    except StoreDamaged:
        return
    book, _ = life.at(life.writes)
    for each in recovered:
        assert each.established == book[each.established.id].established
