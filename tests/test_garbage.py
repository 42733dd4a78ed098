"""What stays is set apart from the garbage collector, and what goes is freed all the same."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from coapgate import garbage
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
    await until(lambda: gc.get_freeze_count() > 0, "what was there is set apart")
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
