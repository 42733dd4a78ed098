"""Coroutines that seldom wait: at once if they can, as a task with a deadline if not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from coapgate.decisions import Decisions
from tests.waiting import until

TOO_SLOW = "registry is too slow for dtls.auth_timeout"
FAILED = "authentication failed"


class Desk:
    """Decisions, what became of them, and how often somebody was told of an end."""

    def __init__(self, tasks: asyncio.TaskGroup, timeout: float = 10.0, limit: int = 2) -> None:
        self.tasks = tasks
        self.decisions = Decisions(tasks, self._end, timeout=timeout, limit=limit)
        self.decided: list[object] = []
        self.ended = 0

    async def decide(self, *answers: asyncio.Future[object]) -> None:
        """Wait for each of the answers in turn."""
        for answer in answers:
            try:
                self.decided.append(await answer)
            except asyncio.CancelledError:
                self.decided.append("cancelled")
                raise

    def _end(self) -> None:
        self.ended += 1


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as tasks:
        desk = Desk(tasks)
        yield desk
        desk.decisions.stop()


def question() -> asyncio.Future[object]:
    return asyncio.get_running_loop().create_future()


async def turns(count: int = 5) -> None:
    """Let the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_need_not_wait_is_done_at_once_and_without_a_task(desk: Desk) -> None:
    answer = question()
    answer.set_result("yes")
    before = asyncio.all_tasks()

    desk.decisions.start(desk.decide(answer, answer), "decide")

    assert desk.decided == ["yes", "yes"]
    assert asyncio.all_tasks() == before
    assert (desk.decisions.waiting, desk.ended) == (0, 0)


async def test_what_waits_goes_on_as_a_task_and_its_end_is_told(desk: Desk) -> None:
    first, second = question(), question()

    desk.decisions.start(desk.decide(first, second), "decide")
    assert desk.decisions.waiting == 1
    # An answer may come before the task has run at all.
    first.set_result(1)
    await turns()
    assert (desk.decided, desk.ended) == ([1], 0)

    second.set_result(2)
    await until(lambda: desk.ended == 1, "the decision ends")
    assert desk.decided == [1, 2]
    assert desk.decisions.waiting == 0


async def test_one_that_only_lets_others_run_goes_on_too(desk: Desk) -> None:
    async def pause() -> None:
        await asyncio.sleep(0)
        desk.decided.append("done")

    desk.decisions.start(pause(), "pause")
    await until(lambda: desk.ended == 1, "the decision ends")

    assert desk.decided == ["done"]


async def test_several_may_wait_for_the_same_answer(desk: Desk) -> None:
    answer = question()
    for _ in range(2):
        desk.decisions.start(desk.decide(answer), "decide")
    another = desk.tasks.create_task(desk.decide(answer))
    await turns()

    answer.set_result("yes")
    await another
    await until(lambda: desk.ended == 2, "both have ended")

    assert desk.decided == ["yes", "yes", "yes"]
    assert desk.decisions.failures == 0


async def test_what_the_answer_raises_is_the_coroutines_to_handle(desk: Desk) -> None:
    answer = question()

    async def doubt() -> None:
        try:
            await answer
        except ValueError:
            desk.decided.append("no")
        await asyncio.sleep(0)
        desk.decided.append("and done")

    desk.decisions.start(doubt(), "doubt")
    answer.set_exception(ValueError())
    await until(lambda: desk.ended == 1, "the decision ends")

    assert desk.decided == ["no", "and done"]
    assert desk.decisions.failures == 0


@pytest.mark.expects_warnings(FAILED)
async def test_what_is_raised_costs_one_decision_and_one_line_in_a_while(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*before: asyncio.Future[object]) -> None:
        await desk.decide(*before)
        raise ValueError("a mistake")

    answer = question()
    desk.decisions.start(fail(), "at once")
    desk.decisions.start(fail(answer), "later")
    answer.set_result("yes")
    await until(lambda: desk.ended == 1, "the decision ends")

    assert desk.decisions.failures == 2
    (line,) = caplog.records
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], ValueError)


@pytest.mark.expects_warnings(FAILED)
async def test_whoever_awaits_what_was_cancelled_ends_alone(desk: Desk) -> None:
    cancelled, answer = question(), question()
    cancelled.cancel()

    desk.decisions.start(desk.decide(cancelled), "cancelled before")
    desk.decisions.start(desk.decide(answer), "cancelled later")
    answer.cancel()
    await until(lambda: desk.decisions.waiting == 0, "both have ended")

    assert desk.decided == ["cancelled", "cancelled"]
    assert desk.decisions.failures == 1


@pytest.mark.expects_warnings(TOO_SLOW)
async def test_a_decision_ends_at_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.TaskGroup() as tasks:
        desk = Desk(tasks, timeout=0.01)
        for _ in range(2):
            desk.decisions.start(desk.decide(question()), "forgotten")
        await until(lambda: desk.ended == 2, "both have ended")

    assert desk.decided == ["cancelled", "cancelled"]
    assert (desk.decisions.overruns, desk.decisions.failures) == (2, 0)
    assert [record.msg for record in caplog.records] == [TOO_SLOW]


@pytest.mark.expects_warnings(FAILED)
async def test_a_timeout_of_somebody_else_is_no_overrun(desk: Desk) -> None:
    answer = question()
    desk.decisions.start(desk.decide(answer), "decide")

    answer.set_exception(TimeoutError("the store's own"))
    await until(lambda: desk.ended == 1, "the decision ends")

    assert (desk.decisions.overruns, desk.decisions.failures) == (0, 1)


@pytest.mark.expects_warnings(TOO_SLOW)
async def test_about_strangers_no_more_than_a_limit_wait(desk: Desk) -> None:
    answer = question()
    for is_proven in (False, False, False, True):
        desk.decisions.start(desk.decide(answer), "decide", is_proven=is_proven)

    assert desk.decisions.waiting == 3
    assert desk.decisions.overruns == 1
    answer.set_result("yes")
    await until(lambda: desk.ended == 3, "all have ended")
    assert desk.decided == ["yes", "yes", "yes"]

    # There is room again, and who need not wait needs none.
    desk.decisions.start(desk.decide(question()), "decide")
    desk.decisions.start(desk.decide(answer), "decide")
    assert (desk.decisions.waiting, desk.decided[3:]) == (1, ["yes"])


async def test_after_the_stop_nothing_waits(desk: Desk) -> None:
    answer = question()
    desk.decisions.start(desk.decide(answer), "decide")
    await turns()

    desk.decisions.stop()
    await until(lambda: desk.decisions.waiting == 0, "it has ended")
    desk.decisions.start(desk.decide(question()), "decide", is_proven=True)

    assert answer.cancelled()
    assert desk.decided == ["cancelled"]
    assert (desk.decisions.waiting, desk.ended) == (0, 0)


async def test_when_everything_ends_a_decision_ends_too() -> None:
    async def crash() -> None:
        raise OSError("the broker's task has crashed")

    desks = []

    async def serve() -> None:
        async with asyncio.TaskGroup() as tasks:
            desk = Desk(tasks)
            tasks.create_task(crash())
            try:
                await question()
            finally:
                desk.decisions.start(desk.decide(question()), "decide")
                desks.append(desk)

    with pytest.raises(ExceptionGroup) as raised:
        await serve()

    assert raised.group_contains(OSError)
    assert [(desk.decisions.waiting, desk.decided) for desk in desks] == [(0, [])]
