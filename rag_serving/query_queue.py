"""The queries that wait for a search: requests take turns, and identical queries share one search.

Data only: no clock, no threads; only the event loop's thread touches it. Does not cover: when to search (searcher.py).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from flashrag.document import Hit

Ranked = tuple[Hit, ...]


@dataclass(eq=False)
class Ask:
    """One request's queries. `done` is set once each has its answer, or at the first error."""

    answers: list[Ranked]
    done: asyncio.Future[None]
    missing: int = 0  # answers that are still to come
    jobs: list["Job"] = field(default_factory=list)


@dataclass(eq=False)
class Job:
    """One search, for all requests that ask for the same documents of the same query."""

    query: str
    num: int
    positions: dict[Ask, list[int]] = field(default_factory=dict)
    lane: "Lane | None" = None  # None once it is searched or nobody waits for it

    @property
    def key(self) -> Hashable:
        return (self.query, self.num)

    def join(self, ask: Ask, position: int) -> None:
        if ask not in self.positions:
            self.positions[ask] = []
            ask.jobs.append(self)
        self.positions[ask].append(position)


@dataclass(eq=False)
class Lane:
    """The waiting jobs of one request, all for the same number of documents."""

    num: int
    jobs: OrderedDict[Job, None]


class QueryQueue:
    """A batch takes one query of every request before it takes a second one of any."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Lane, None] = OrderedDict()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request."""
        if not jobs:
            return
        lane = Lane(jobs[0].num, OrderedDict.fromkeys(jobs))
        for job in jobs:
            job.lane = lane
        self._lanes[lane] = None
        self._waiting += len(jobs)

    def remove(self, job: Job) -> None:
        """Remove a waiting job when no request needs it any more."""
        assert job.lane is not None, "only a waiting job can be removed"
        del job.lane.jobs[job]
        self._leave(job, job.lane)

    def take(self, limit: int) -> list[Job]:
        """The next batch: at most `limit` jobs, all for the same number of documents; empty when nothing waits.

        Numbers are not mixed: in some indexes the best ten of twenty are not the best ten. The request that was
        served longest ago determines the number.
        """
        batch: list[Job] = []
        first = next(iter(self._lanes), None)
        turn = [lane for lane in self._lanes if first and lane.num == first.num]
        while turn and len(batch) < limit:
            served = turn[: limit - len(batch)]
            for lane in served:
                job, _ = lane.jobs.popitem(last=False)
                batch.append(job)
                self._lanes.move_to_end(lane)
                self._leave(job, lane)
            turn = [lane for lane in served if lane.jobs]
        return batch

    def _leave(self, job: Job, lane: Lane) -> None:
        job.lane = None
        self._waiting -= 1
        if not lane.jobs:
            del self._lanes[lane]
