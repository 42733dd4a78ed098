"""Counters count what the package does, and nothing else; budgets say what to do."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from coapgate.coap.options import encode_uint
from coapgate.logs import Seldom
from tests.guard.budget import C_CALLS, hold
from tests.guard.counting import Calls, Collections, Instructions, Memory
from tests.guard.loop import SteppedLoop


class Kind:
    """Something of a test's that the package calls: it is hashed once for each look-up."""

    def __hash__(self) -> int:
        return hash("kind") + len("not counted")


def test_calls_of_the_package_are_counted_by_name() -> None:
    with Calls() as calls:
        encode_uint(300)

    assert calls.python == {"coap.options.encode_uint": 1}
    assert calls.c == {"int.bit_length": 1, "int.to_bytes": 1}


def test_calls_of_others_are_not_counted() -> None:
    with Calls() as calls:
        len("x")
        sorted("x", key=ord)

    assert not calls.python
    assert not calls.c


def test_what_a_test_does_for_the_package_is_one_call() -> None:
    seldom = Seldom()

    with Calls() as calls:
        seldom.count(Kind(), 0.0)

    assert calls.python["tests.guard.test_counting.Kind.__hash__"] == 2
    assert "builtins.hash" not in calls.c


def test_counting_goes_on_where_it_was_left() -> None:
    calls = Calls()
    for _ in range(3):
        with calls:
            encode_uint(0)

    assert calls.python.total() == 3


@pytest.mark.parametrize("counter", [Calls, Instructions])
def test_the_same_work_is_counted_the_same(counter: Callable[[], Calls | Instructions]) -> None:
    def count() -> object:
        with counter() as counted:
            for number in range(1000):
                encode_uint(number)
        return counted.python if isinstance(counted, Calls) else counted.by_name

    count()
    assert count() == count()


def test_instructions_of_the_package_are_counted_by_name() -> None:
    with Instructions() as instructions:
        encode_uint(300)
        once = instructions.by_name.total()
        sum(range(100))
        encode_uint(300)

    assert set(instructions.by_name) == {"coap.options.encode_uint"}
    assert instructions.by_name.total() == 2 * once


def test_memory_is_what_is_held() -> None:
    with Memory() as memory:
        before = memory.now()
        held = bytes(10_000)
        assert 10_000 <= memory.now() - before < 10_500
        del held
        assert memory.now() - before < 500


def test_runs_of_the_garbage_collector_are_counted() -> None:
    before = gc.get_threshold()

    with Collections() as collections:
        held = [[] for _ in range(1500)]  # type: list[list[int]]

    assert collections.count == 2
    assert len(held) == 1500
    assert gc.get_threshold() == before


def test_a_stepped_loop_counts_what_it_is_asked_for() -> None:
    loop = SteppedLoop()
    done: list[str] = []

    async def wait() -> None:
        await loop.create_future()

    task = loop.create_task(wait())
    loop.call_soon(done.append, "soon")
    loop.call_later(5.0, done.append, "later")
    assert done == []
    loop.step()
    assert done == ["soon"]
    loop.now += 5.0
    loop.step()
    assert done == ["soon", "later"]
    assert loop.asked == {"tasks": 1, "callbacks": 2, "timers": 1, "futures": 1}

    task.cancel()
    loop.step()
    loop.close()


def test_what_costs_too_much_is_told_with_what_to_do() -> None:
    hold("request", C_CALLS, 5.0, 5.0)

    with pytest.raises(AssertionError) as failure:
        hold("request", C_CALLS, 5.1, 5.0, {"builtins.len": 4.0})

    assert str(failure.value) == (
        "request: 5.1 calls of functions written in C, 5 are allowed\n"
        "most of them: builtins.len 4\n"
        "hint: look at each datagram once, and compute once an association what never changes in "
        "it; `python -m tests.guard` shows where all of it goes\n"
        "hint: if it is worth it, raise the number in tests/guard/budget.py and say why"
    )
