"""The anti-replay window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coapgate.dtls.records import MAX_SEQUENCE
from coapgate.dtls.replay import WINDOW_LENGTH, ReplayWindow

# Near each other, so that they meet; and anywhere, so that the window jumps.
_numbers = st.one_of(st.integers(0, 200), st.integers(0, MAX_SEQUENCE))


class _Remembering:
    """The same by remembering everything."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_fresh(self, sequence: int) -> bool:
        newest = max(self._seen, default=-1)
        return sequence not in self._seen and sequence > newest - WINDOW_LENGTH

    def mark(self, sequence: int) -> None:
        self._seen.add(sequence)


@given(st.lists(_numbers, max_size=200))
def test_the_window_agrees_with_one_that_remembers_everything(numbers: list[int]) -> None:
    window, model = ReplayWindow(), _Remembering()
    for number in numbers:
        assert window.is_fresh(number) == model.is_fresh(number)
        if window.is_fresh(number):
            window.mark(number)
            model.mark(number)
        assert not window.is_fresh(number)


def test_no_record_is_accepted_twice() -> None:
    window = ReplayWindow()
    for number in (0, 5, 3, 4, 70):
        assert window.is_fresh(number)
        window.mark(number)
    for number in (0, 5, 3, 4, 70):
        assert not window.is_fresh(number)


def test_what_is_older_than_the_window_is_refused() -> None:
    window = ReplayWindow()
    window.mark(1000)

    assert window.is_fresh(1000 - WINDOW_LENGTH + 1)
    assert not window.is_fresh(1000 - WINDOW_LENGTH)
    assert window.newest == 1000


def test_a_jump_to_the_last_number_neither_costs_nor_forgets() -> None:
    # An authenticated peer once made the bitmap 2**48 bits long.
    window = ReplayWindow()
    window.mark(0)
    window.mark(MAX_SEQUENCE)

    assert window.newest == MAX_SEQUENCE
    assert not window.is_fresh(MAX_SEQUENCE)
    assert not window.is_fresh(0)
    assert window.is_fresh(MAX_SEQUENCE - 1)


def test_the_window_does_not_grow() -> None:
    window = ReplayWindow()
    for number in range(0, 100_000, 7):
        window.mark(number)

    assert window._bitmap.bit_length() <= WINDOW_LENGTH


def test_the_window_moves_by_exactly_its_length() -> None:
    window = ReplayWindow()
    window.mark(0)
    window.mark(WINDOW_LENGTH - 1)
    assert not window.is_fresh(0)

    window.mark(WINDOW_LENGTH)
    assert not window.is_fresh(0)
    assert not window.is_fresh(WINDOW_LENGTH - 1)
    assert window.is_fresh(1)
