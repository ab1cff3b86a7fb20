"""Batches, identical queries, the cache, the bound of the queue: over an engine whose searches are counted and held."""

import asyncio

import pytest

from rag_serving.metrics import Metrics
from rag_serving.searcher import QueueFull, Searcher, SearchFailed
from rag_serving.settings import ServerSettings
from rag_serving.workers import ThreadWorkers


async def searcher_over(engine, num_retriever: int = 1, **changes: object) -> Searcher:
    values = {"retrieval_method": "bm25", "index_path": "i", "corpus_path": "c", "max_batch_queries": 1}
    settings = ServerSettings.model_validate({**values, **changes})
    workers = ThreadWorkers(lambda: engine, num_retriever)
    await workers.start()
    return Searcher(settings, workers, Metrics())


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def ask(searcher: Searcher, *queries: str, num: int = 2) -> asyncio.Task:
    return asyncio.create_task(searcher.rank(queries, num))


async def hold(engine, searcher: Searcher) -> asyncio.Task:
    """Keep the one thread busy with a search of its own, so that what follows waits."""
    engine.proceed.clear()
    engine.batches.clear()
    held = ask(searcher, "held")
    await until(lambda: engine.batches)
    engine.batches.clear()
    return held


def expected(engine, *queries: str, num: int = 2) -> list[tuple]:
    return [tuple(engine.answer(query, num)) for query in queries]


@pytest.mark.asyncio
async def test_answers_come_in_the_order_of_the_queries_also_when_one_is_asked_twice(engine):
    searcher = await searcher_over(engine)
    assert await searcher.rank(["b", "a", "b"], 2) == expected(engine, "b", "a", "b")
    assert engine.batches == [(["b", "a"], 2)]
    assert await searcher.rank([], 2) == []


@pytest.mark.asyncio
async def test_what_waits_is_searched_together(engine):
    searcher = await searcher_over(engine)
    held = await hold(engine, searcher)
    asks = [ask(searcher, f"q{number}") for number in range(20)]
    await until(lambda: searcher.waiting == 20)
    engine.proceed.set()
    assert await asyncio.gather(*asks) == [expected(engine, f"q{number}") for number in range(20)]
    assert [len(queries) for queries, _ in engine.batches] == [20]
    await held


@pytest.mark.asyncio
async def test_a_long_line_is_searched_a_batch_at_a_time(engine):
    searcher = await searcher_over(engine, search_batch_size=40, max_wait_ms=0)
    held = await hold(engine, searcher)
    asks = [ask(searcher, f"q{number}") for number in range(100)]
    await until(lambda: searcher.waiting == 100)
    engine.proceed.set()
    await asyncio.gather(held, *asks)
    assert [len(queries) for queries, _ in engine.batches] == [40, 40, 20]


@pytest.mark.asyncio
async def test_identical_queries_in_hand_are_searched_once_and_numbers_are_told_apart(engine):
    searcher = await searcher_over(engine, cache_queries=0)
    held = await hold(engine, searcher)
    asks = [ask(searcher, "same") for _ in range(20)] + [ask(searcher, "same", num=3), ask(searcher, "held")]
    await until(lambda: searcher.waiting == 2)
    engine.proceed.set()
    answers = await asyncio.gather(*asks)
    assert answers == [expected(engine, "same")] * 20 + [expected(engine, "same", num=3), expected(engine, "held")]
    assert sorted(engine.batches) == [(["same"], 2), (["same"], 3)]
    await held


@pytest.mark.asyncio
async def test_the_cache_answers_and_forgets_the_least_recently_used(engine):
    searcher = await searcher_over(engine, cache_queries=1)  # ten documents: five queries of two
    for number in range(5):
        await searcher.rank([f"q{number}"], 2)
    assert await searcher.rank(["q0"], 2) == expected(engine, "q0")
    assert len(engine.searched) == 5
    await searcher.rank(["new"], 2)  # q1 has to go
    await searcher.rank(["q0"], 2)
    assert len(engine.searched) == 6
    await searcher.rank(["q1"], 2)
    assert len(engine.searched) == 7
    await searcher.rank(["large"], 11)  # more than the cache holds: answered, not kept
    await searcher.rank(["large"], 11)
    assert len(engine.searched) == 9


@pytest.mark.asyncio
async def test_a_full_queue_takes_all_of_a_request_or_nothing(engine):
    searcher = await searcher_over(engine, max_queue_queries=3)
    await searcher.rank(["known"], 2)
    held = await hold(engine, searcher)
    first = ask(searcher, "a", "b")
    await until(lambda: searcher.waiting == 2)
    with pytest.raises(QueueFull, match="2 queries wait and 2 more do not fit") as caught:
        await searcher.rank(["c", "d"], 2)
    assert (searcher.waiting, caught.value.headers) == (2, {"Retry-After": "1"})
    joined = ask(searcher, "a", "b", "held", "known")  # nothing new to search: there is room for that
    last = ask(searcher, "e", "e")
    await until(lambda: searcher.waiting == 3)
    engine.proceed.set()
    await asyncio.gather(held, first, joined, last)
    assert engine.searched == ["a", "e", "b"]


@pytest.mark.asyncio
async def test_who_leaves_takes_the_queries_along_that_nobody_else_wants(engine):
    searcher = await searcher_over(engine)
    held = await hold(engine, searcher)
    leaving, staying = ask(searcher, "a", "b", "c"), ask(searcher, "b", "d")
    await until(lambda: searcher.waiting == 4)
    leaving.cancel()
    await until(leaving.done)
    assert searcher.waiting == 2
    again = ask(searcher, "a")
    await until(lambda: searcher.waiting == 3)
    engine.proceed.set()
    assert await staying == expected(engine, "b", "d")
    assert await again == expected(engine, "a")
    assert sorted(engine.searched) == ["a", "b", "d"]
    await held


@pytest.mark.asyncio
async def test_who_leaves_while_the_search_runs_leaves_its_result_to_others(engine):
    searcher = await searcher_over(engine)
    held = await hold(engine, searcher)
    held.cancel()
    await until(held.done)
    late = ask(searcher, "held")
    await asyncio.sleep(0)
    engine.proceed.set()
    assert await late == expected(engine, "held")
    assert engine.searched == []  # `hold` cleared the list: no second search


@pytest.mark.asyncio
async def test_a_failed_batch_fails_its_requests_and_nothing_after_it(engine):
    searcher = await searcher_over(engine)
    held = await hold(engine, searcher)
    together = [ask(searcher, "boom"), ask(searcher, "innocent")]
    await until(lambda: searcher.waiting == 2)
    engine.proceed.set()
    for outcome in await asyncio.gather(*together, return_exceptions=True):
        assert isinstance(outcome, SearchFailed)
        assert (outcome.status_code, outcome.detail) == (500, "the search failed: RuntimeError")
    assert await searcher.rank(["innocent"], 2) == expected(engine, "innocent")
    assert searcher.available == 1
    await held


@pytest.mark.asyncio
async def test_a_retriever_that_answers_too_few_queries_is_an_error_not_a_shift(engine, monkeypatch):
    rank = engine.rank
    monkeypatch.setattr(engine, "rank", lambda queries, num: rank(queries, num)[1:])
    with pytest.raises(SearchFailed, match="ValueError"):
        await (await searcher_over(engine)).rank(["a", "b"], 2)


@pytest.mark.asyncio
async def test_single_queries_overtake_a_large_request(engine):
    searcher = await searcher_over(engine, search_batch_size=8, max_queue_queries=2000, max_wait_ms=0)
    held = await hold(engine, searcher)
    large = ask(searcher, *(f"large{number}" for number in range(1024)))
    await until(lambda: searcher.waiting == 1024)
    single = ask(searcher, "single")
    await until(lambda: searcher.waiting == 1025)
    engine.proceed.set()
    await single
    assert "single" in engine.batches[0][0]
    assert await large == expected(engine, *(f"large{number}" for number in range(1024)))
    await held


@pytest.mark.asyncio
async def test_a_thread_waits_a_moment_for_clients_that_were_just_answered(engine):
    searcher = await searcher_over(engine, max_wait_ms=1000)
    held = await hold(engine, searcher)
    first = [ask(searcher, "a"), ask(searcher, "b")]
    await until(lambda: searcher.waiting == 2)
    engine.proceed.set()
    await asyncio.gather(held, *first)
    engine.batches.clear()
    # Two were answered, so two are expected: the first to come waits for the second.
    loop = asyncio.get_running_loop()
    started = loop.time()
    back = ask(searcher, "c")
    await asyncio.sleep(0.05)
    assert engine.batches == []
    await asyncio.gather(back, ask(searcher, "d"))
    assert engine.batches == [(["c", "d"], 2)]
    assert loop.time() - started < 1
