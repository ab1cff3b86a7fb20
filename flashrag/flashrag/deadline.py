"""An awaited thing with a deadline on a clock that may stand still.

`asyncio.timeout` measures on the event loop's clock; an episode's clock stops while an outage pauses it, so what is
left has to be asked again whenever it should have run out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]

# Also the most that a deadline is overshot: what is left is not asked of a standing clock more often.
MIN_WAIT_S = 0.01


class DeadlinePassed(Exception):
    """The deadline of `within` came first. No `TimeoutError`: that is what the awaited thing itself may raise."""


async def within(work: Awaitable[T], deadline: float | None, clock: Clock) -> T:
    """The outcome of `work`, which is cancelled once `clock` has reached `deadline`; None is no deadline.

    Work that finishes although it was cancelled has happened: its outcome counts. Otherwise raises `DeadlinePassed`.
    """
    if deadline is None:
        return await work
    task, late = asyncio.ensure_future(work), False
    try:
        while not (task.done() or late):
            left_s = deadline - clock()
            late = left_s <= 0
            if not late:
                await asyncio.wait([task], timeout=max(left_s, MIN_WAIT_S))
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if late and task.cancelled():
        raise DeadlinePassed
    return task.result()
