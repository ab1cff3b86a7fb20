"""Fairness and bookkeeping of the line, by hand and against a model of it."""

from hypothesis import given
from hypothesis import strategies as st

from rag_serving.query_queue import Job, QueryQueue


def lane(name: str, size: int, num: int = 5) -> list[Job]:
    return [Job(f"{name}{place}", num) for place in range(size)]


def taken(queue: QueryQueue, limit: int) -> list[str]:
    return [job.query for job in queue.take(limit)]


def test_requests_take_turns():
    queue = QueryQueue()
    for name, size in (("a", 5), ("b", 1), ("c", 2)):
        queue.put(lane(name, size))
    assert len(queue) == 8
    # Each gives one, then those that have a second one; what is left of the large one follows.
    assert taken(queue, 4) == ["a0", "b0", "c0", "a1"]
    # c was served longest ago, so it comes first now.
    assert taken(queue, 3) == ["c1", "a2", "a3"]
    assert (taken(queue, 3), taken(queue, 3), len(queue)) == (["a4"], [], 0)


def test_a_single_query_is_in_the_next_batch_whatever_else_waits():
    queue = QueryQueue()
    for name in "abc":
        queue.put(lane(name, 1024))
    taken(queue, 64)
    queue.put(lane("single", 1))
    assert "single0" in taken(queue, 4)


def test_more_large_requests_than_a_batch_holds_all_get_on():
    queue = QueryQueue()
    for name in "abcd":
        queue.put(lane(name, 2))
    assert [taken(queue, 2) for _ in range(4)] == [["a0", "b0"], ["c0", "d0"], ["a1", "b1"], ["c1", "d1"]]


def test_a_batch_is_for_one_number_of_documents_and_no_number_waits_for_ever():
    queue = QueryQueue()
    queue.put(lane("a", 3, num=5))
    queue.put(lane("b", 1, num=10))
    queue.put(lane("c", 1, num=5))
    assert [taken(queue, 2) for _ in range(4)] == [["a0", "c0"], ["b0"], ["a1", "a2"], []]


def test_a_removed_job_is_never_taken():
    queue = QueryQueue()
    jobs, alone = lane("a", 3), lane("b", 1)
    queue.put(jobs)
    queue.put(alone)
    queue.remove(jobs[1])
    queue.remove(alone[0])
    assert (len(queue), jobs[1].lane) == (2, None)
    assert taken(queue, 9) == ["a0", "a2"]
    assert [job.lane for job in jobs] == [None] * 3


@given(
    requests=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([3, 5])), max_size=12),
    limits=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    removed=st.sets(st.integers(0, 108)),
)
def test_everything_put_in_and_not_removed_comes_out_once_and_in_its_order(requests, limits, removed):
    queue = QueryQueue()
    lanes = [lane(f"r{number}-", size, num) for number, (size, num) in enumerate(requests)]
    for jobs in lanes:
        queue.put(jobs)
    kept = []
    for place, job in enumerate([job for jobs in lanes for job in jobs]):
        if place in removed:
            queue.remove(job)
        else:
            kept.append(job)
    out = []
    while len(queue):
        before, batch = len(queue), queue.take(limits[len(out) % len(limits)])
        assert len({job.num for job in batch}) == 1
        assert len(queue) == before - len(batch)
        out += batch
    assert sorted(map(id, out)) == sorted(map(id, kept))
    for jobs in lanes:
        assert [job for job in out if job in jobs] == [job for job in jobs if job in kept]
