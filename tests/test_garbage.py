"""What stays is set apart from the garbage collector, what goes is freed all the same; pauses."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from coapgate import garbage
from coapgate.errors import StartError
from tests.waiting import until


class Link:
    """Something the collector visits."""

    def __init__(self) -> None:
        self.other: object = None


@pytest.fixture(autouse=True)
def thawed() -> object:
    """Other tests have the collector as it was."""
    yield
    gc.unfreeze()


async def test_what_survives_a_thousand_associations_is_not_visited_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "LOOK_INTERVAL", 0.01)
    opened = 0
    looking = asyncio.create_task(garbage.set_apart_what_stays(lambda: opened))
    await asyncio.sleep(0)  # it knows how many there were
    kept = [Link() for _ in range(10_000)]
    assert any(each is kept[0] for each in gc.get_objects())

    opened = garbage.FREEZE_EVERY
    before = gc.get_freeze_count()
    await until(lambda: gc.get_freeze_count() >= before + len(kept), "what stays is set apart")
    looking.cancel()

    assert not any(each is kept[0] for each in gc.get_objects())
    reference = weakref.ref(kept[0])
    kept.clear()
    assert reference() is None


def test_garbage_is_collected_before_the_rest_is_set_apart() -> None:
    one, other = Link(), Link()
    one.other, other.other = other, one
    reference = weakref.ref(one)
    del one, other

    garbage.set_apart()

    assert reference() is None


def test_what_comes_to_be_while_a_gateway_opens_is_never_visited() -> None:
    with garbage.put_off():
        assert not gc.isenabled()
        kept = [Link() for _ in range(1000)]
        assert any(each is kept[0] for each in gc.get_objects())

    assert gc.isenabled()
    assert not any(each is kept[0] for each in gc.get_objects())


def test_the_collector_is_as_before_when_a_gateway_cannot_be_opened() -> None:
    with pytest.raises(StartError, match="bound"), garbage.put_off():
        raise StartError("the port is bound")

    assert gc.isenabled()


def test_pauses_are_counted_added_up_and_the_longest_is_known() -> None:
    clock = iter([0.0, 10.0, 10.5, 20.0, 20.125])
    gc.disable()
    try:
        with garbage.Pauses(lambda: next(clock)) as pauses:
            gc.collect()
            gc.collect(0)
        gc.collect()
    finally:
        gc.enable()

    assert (pauses.collections, pauses.seconds, pauses.longest) == (2, 0.625, 0.5)


def test_what_is_set_apart_costs_a_collection_nothing() -> None:
    """Counted by what the collector finds to visit: it is the same beside many as beside few."""
    garbage.set_apart()
    kept = [Link() for _ in range(100_000)]
    visited = len(gc.get_objects())

    garbage.set_apart()

    assert visited > len(kept)
    assert len(gc.get_objects()) < len(kept) / 100
