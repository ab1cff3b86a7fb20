"""The ceiling: the supporting passages of a question, in every shape that data sets have them in."""

import pytest

from flashrag.dataset import Question
from flashrag.document import Passage
from flashrag.episode import steps
from flashrag.errors import UserError
from flashrag.pipeline.bounds import NoSupport, supporting_passages

PASSAGES = (Passage("Wu", '"Wu"\nHe was king. Of Zhou.'), Passage("Zhou", '"Zhou"\nA dynasty.'))
TITLES, SENTENCES = ["Tang", "Wu", "Zhou"], [["No."], ["He was king.", " Of Zhou."], ["A dynasty."]]
HUB_FACTS = {"title": ["Wu", "Zhou", "Wu"], "sent_id": [0, 0, 1]}


@pytest.mark.parametrize(
    "metadata",
    [
        {"supporting_facts": HUB_FACTS, "context": {"title": TITLES, "sentences": SENTENCES}},
        {"supporting_facts": HUB_FACTS, "context": {"title": TITLES, "content": SENTENCES}},
        {
            "supporting_facts": [["Wu", 0], ["Zhou", 0], ["Wu", 1]],
            "context": [list(pair) for pair in zip(TITLES, SENTENCES, strict=True)],
        },
        {
            "paragraphs": [
                {"title": "Tang", "paragraph_text": "No.", "is_supporting": False},
                {"title": "Wu", "paragraph_text": "He was king. Of Zhou.", "is_supporting": True},
                {"title": "Zhou", "paragraph_text": "A dynasty.", "is_supporting": True},
            ]
        },
    ],
    ids=["hotpotqa, hub", "2wikimultihopqa", "hotpotqa, official", "musique"],
)
@pytest.mark.asyncio
async def test_the_supporting_passages_are_the_context(make, server, index, metadata):
    assert supporting_passages(metadata) == PASSAGES
    server.replies = ["King Wu"]
    trajectory = await make("oracle-passages").answer(Question("q", "Who?", ("Wu",), metadata))
    assert "\n\n[1] Wu: He was king. Of Zhou.\n[2] Zhou: A dynasty.\n\n" in server.asked[0].prompt
    assert (trajectory.answer, index.queries) == ("King Wu", [])
    assert [passage.id for passage in next(steps(trajectory)).passages] == ["Wu", "Zhou"]


@pytest.mark.asyncio
async def test_titles_alone_are_looked_up(make, server, index):
    server.replies = ["King Wu"]
    index.passages = {
        "Zhou Dynasty": [
            Passage("1", '"Zhou"\nno'), Passage("2", '"Zhou dynasty"\nyes'), Passage("3", '"Zhou dynasty"\nx'),
        ],
        "Lost": [Passage("1", '"Zhou"\nno')],
    }  # fmt: skip
    question = Question("q", "Who?", ("Wu",), {"supporting_titles": ["Zhou Dynasty", "Lost"]})
    trajectory = await make("oracle-passages").answer(question)
    assert index.queries == ["Zhou Dynasty", "Lost"]
    assert "possible.\n\n[1] Zhou dynasty: yes\n\nQuestion: " in server.asked[0].prompt
    assert server.asked[0].prompt.endswith("\n\nQuestion: Who?\nAnswer:")
    assert [passage.id for step in steps(trajectory) for passage in step.passages] == ["2"]
    lost = Question("q", "Who?", ("Wu",), {"supporting": ["Lost"]})
    with pytest.raises(NoSupport, match="question q: its metadata names no supporting passage that could be found"):
        await make("oracle-passages").answer(lost)


@pytest.mark.asyncio
async def test_an_id_chooses_among_the_passages_of_a_title_however_many_come_before(make, server, index):
    others = [Passage(str(number), '"Zhou dynasty"\nno') for number in range(50)]
    index.passages = {"Zhou dynasty": [*others, Passage("77", '"Zhou dynasty"\nyes')]}
    server.replies = lambda _: "King Wu"
    metadata = {"golden_doc_ids": ["77"], "supporting_titles": ["Zhou dynasty"]}
    trajectory = await make("oracle-passages", retrieval_topk=2).answer(Question("q", "Who?", ("Wu",), metadata))
    assert "possible.\n\n[1] Zhou dynasty: yes\n\nQuestion: " in server.asked[0].prompt
    assert server.asked[0].prompt.endswith("\n\nQuestion: Who?\nAnswer:")
    assert trajectory.usage.searches == 1
    elsewhere = {**metadata, "golden_doc_ids": ["of another corpus"]}
    await make("oracle-passages").answer(Question("q", "Who?", ("Wu",), elsewhere))
    assert "possible.\n\n[1] Zhou dynasty: no\n\nQuestion: " in server.asked[1].prompt
    assert server.asked[1].prompt.endswith("\n\nQuestion: Who?\nAnswer:")


@pytest.mark.asyncio
async def test_a_set_without_support_is_refused_at_the_start(make):
    pipeline = make("oracle-passages")
    with pytest.raises(UserError, match="no question's metadata has any; expected supporting_facts with context"):
        pipeline.prepare([Question("q", "Who?", ("Wu",), {"hops": 2})])
    pipeline.prepare([Question("q", "Who?", ("Wu",)), Question("r", "Who?", ("Wu",), {"supporting": ["Wu"]})])
