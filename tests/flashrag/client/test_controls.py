"""What a search gives under each control: from a client that finds one passage with the query as its text."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.client import SearchControl, controlled, for_one_question, forced_query
from flashrag.client import controls as module
from flashrag.document import Document, Hit
from flashrag.errors import UserError
from flashrag.questions import same_question_key

QUESTIONS = [f"Who was king number {number}?" for number in range(40)]


class Echo:
    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    async def search_scored(self, query: str, *top_n: int) -> list[Hit]:
        self.asked.append((query, top_n))
        return [Hit(Document("1", query), 1.0)]


def under(control: SearchControl, client: Any, seed: int = 0, questions: list[str] = QUESTIONS) -> Any:
    return controlled(client, control, seed=seed, delay_s=10.0, questions=lambda: questions)


@pytest.mark.parametrize("control", [SearchControl.NONE, SearchControl.FORBIDDEN])
def test_the_client_itself_where_no_search_is_changed(control: SearchControl):
    client = Echo()
    assert under(control, client, questions=[]) is client


@pytest.mark.asyncio
async def test_nothing_is_found_and_nobody_is_asked():
    client = Echo()
    assert await under(SearchControl.EMPTY, client).search_scored("Wu", 3) == []
    assert client.asked == []


@pytest.mark.asyncio
async def test_another_question_is_asked_in_place_of_the_query():
    client, again, other_seed = Echo(), Echo(), Echo()
    queries = [*QUESTIONS, "Wu", "half a sign: \ud83d"]
    for found_by, seed in ((client, 0), (again, 0), (other_seed, 1)):
        search = under(SearchControl.RANDOM, found_by, seed)
        found = [await search.search_scored(query, 3) for query in queries]
        assert [hits[0].document.contents for hits in found] == [query for query, _ in found_by.asked]
    assert client.asked == again.asked
    assert client.asked != other_seed.asked
    assert {top_n for _, top_n in client.asked} == {(3,)}
    drawn = [query for query, _ in client.asked]
    assert set(drawn) <= set(QUESTIONS)
    assert len(set(drawn)) > 20, "42 draws from 40 questions give 26 different ones on average"


@pytest.mark.asyncio
async def test_a_question_never_finds_its_own_passages():
    client = Echo()
    twenty = [f"{name} of the Zhou?" for name in "ABCDEFGHIJKLMNOPQRST"]
    for seed in range(50):
        search = under(SearchControl.RANDOM, client, seed, twenty)
        await search.search_scored("b of  Zhou")  # the same question as "B of the Zhou?"
    drawn = Counter(query for query, _ in client.asked)
    assert drawn["B of the Zhou?"] == 0
    assert drawn.total() == 50


def test_too_few_questions_to_draw_from():
    same = [*QUESTIONS[:19], "who was KING number 3"]
    with pytest.raises(UserError, match="which has 19 different ones; give at least 20"):
        under(SearchControl.RANDOM, Echo(), questions=same)


@pytest.mark.asyncio
async def test_a_query_finds_the_passages_of_the_last_different_one():
    client = Echo()
    shared = under(SearchControl.STALE, client)
    first, second = for_one_question(shared), for_one_question(shared)

    async def found(search: Any, *queries: str) -> list[list[str]]:
        return [[hit.document.contents for hit in await search.search_scored(query, 3)] for query in queries]

    # "the wu" asks the same as "Wu": it must not find Wu's passages, whether it comes first or later.
    queries = ("Wu", "the wu", "Zhou", "Zhou?", "Tang", "Wu")
    assert await found(first, *queries) == [[], [], ["the wu"], ["the wu"], ["Zhou?"], ["Tang"]]
    assert await found(second, "Han", "Wu") == [[], ["Han"]], "each question has queries of its own"
    assert client.asked == [(query, (3,)) for query in ("the wu", "the wu", "Zhou?", "Tang", "Han")]
    assert await found(for_one_question(shared), "half a sign: \ud83d", "Wu") == [[], ["half a sign: \ud83d"]]


@pytest.mark.asyncio
@given(queries=st.lists(st.sampled_from(["Wu", "wu.", "Zhou", "Tang", "the Tang", ""]), max_size=12))
async def test_no_query_ever_finds_its_own_passages(queries: list[str]):
    search = for_one_question(under(SearchControl.STALE, Echo()))
    for number, query in enumerate(queries):
        found = [hit.document.contents for hit in await search.search_scored(query)]
        others = [each for each in queries[:number] if same_question_key(each) != same_question_key(query)]
        assert found == others[-1:]


@pytest.mark.asyncio
async def test_only_forced_forces_a_search_and_each_finds_its_own_result():
    client = Echo()
    for control in SearchControl:
        assert forced_query(under(control, client), "Who?") == ("Who?" if control == "forced" else None)
    (hit,) = await for_one_question(under(SearchControl.FORCED, client)).search_scored("Wu", 3)
    assert (hit.document.contents, client.asked) == ("Wu", [("Wu", (3,))])


def test_only_a_control_knows_of_questions():
    client = Echo()
    assert for_one_question(client) is client
    assert for_one_question(None) is None
    assert forced_query(client, "Who?") is None


@pytest.mark.asyncio
async def test_the_own_result_comes_late_by_a_seeded_time(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    client = Echo()
    for _ in range(2):
        search = under(SearchControl.DELAYED, client)
        for query in ("Wu", "Tang"):
            (hit,) = await search.search_scored(query)
            assert hit.document.contents == query
    assert waited[:2] == waited[2:]
    assert waited[0] != waited[1]
    assert all(0.0 <= seconds <= 10.0 for seconds in waited)


def test_searches_wait_side_by_side():
    """Nothing but the searches themselves waits: a hundred take as long as the longest one."""

    async def all_of_them() -> float:
        search = controlled(Echo(), SearchControl.DELAYED, seed=0, delay_s=0.2, questions=list)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(search.search_scored(f"q{number}") for number in range(100)))
        return loop.time() - started

    assert 0.1 < asyncio.run(all_of_them()) < 5.0  # one after the other would take 10 s


@pytest.mark.asyncio
async def test_the_connections_of_the_client_are_closed():
    class Open(Echo):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    client = Open()
    await under(SearchControl.EMPTY, client).aclose()
    assert client.closed
    await under(SearchControl.EMPTY, Echo()).aclose()  # a retriever in this process has none
