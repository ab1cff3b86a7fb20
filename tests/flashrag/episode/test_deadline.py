"""A deadline on a clock that may stand still."""

import asyncio
import time

import pytest

from flashrag.episode.run import DeadlinePassed, within


class Work:
    """Sleeps, then gives 7; remembers whether it was cancelled."""

    def __init__(self, seconds: float):
        self.seconds, self.cancelled = seconds, False

    async def __call__(self) -> int:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return 7


@pytest.mark.asyncio
async def test_work_in_time_gives_its_outcome():
    assert await within(Work(0.0)(), None, time.monotonic) == 7
    assert await within(Work(0.02)(), time.monotonic() + 30, time.monotonic) == 7

    async def broken() -> int:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await within(broken(), time.monotonic() + 30, time.monotonic)


@pytest.mark.asyncio
async def test_late_work_is_cancelled_at_once():
    work, started = Work(60), time.monotonic()
    with pytest.raises(DeadlinePassed):
        await within(work(), started + 0.05, time.monotonic)
    assert work.cancelled
    assert 0.05 <= time.monotonic() - started < 5


@pytest.mark.asyncio
async def test_work_after_the_deadline_does_not_begin():
    begun = False

    async def work() -> None:
        nonlocal begun
        begun = True

    with pytest.raises(DeadlinePassed):
        await within(work(), 1.0, lambda: 1.0)
    assert not begun


@pytest.mark.asyncio
async def test_a_clock_that_stands_still_brings_no_deadline():
    asked = 0

    def standing() -> float:
        nonlocal asked
        asked += 1
        return 9.9999

    assert await within(Work(0.2)(), 10.0, standing) == 7  # 0.1 ms are left, all the time
    assert asked <= 25  # and it is not asked in a busy loop


@pytest.mark.asyncio
async def test_work_that_finishes_although_cancelled_counts():
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    assert await within(stubborn(), time.monotonic() + 0.02, time.monotonic) == "done all the same"


@pytest.mark.asyncio
async def test_cancelling_the_waiting_task_cancels_the_work():
    work = Work(60)
    waiting = asyncio.create_task(within(work(), time.monotonic() + 60, time.monotonic))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.cancelled
