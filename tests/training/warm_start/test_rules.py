"""Transcripts by rules, on the demo's tokenizer, with an index whose every answer is written by hand."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flashrag.document import Document, Hit
from flashrag.episode import SEARCH_R1, EpisodeCodec, Limits, Source, Trajectory
from flashrag.errors import SearchError, UserError
from flashrag.generator import eos_token_ids, load_tokenizer
from flashrag.prompts import choose_prompt
from flashrag.questions import Question
from training.warm_start.rules import Rules, held_answer, write_transcript
from training.warm_start.transcripts import check_ids, choose_good, describe, is_good, parted, write_by_rules

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
KING = Document("7", '"King of Zhou"\nThe first was King Wu of Zhou.')
TOWN = Document("8", '"Luoyang"\nA town of Zhou.')
QUESTION = Question("q1", "Who was the first king of Zhou?", ("Ji Fa", "King Wu"))


class Index:
    """Finds what is written down for a query, and nothing else."""

    def __init__(self, found: dict[str, list[Document]], fails: bool = False) -> None:
        self.found, self.fails = found, fails
        self.queries: list[str] = []

    async def search_scored(self, query: str) -> list[Hit]:
        self.queries.append(query)
        if self.fails:
            raise SearchError("no answer")
        return [Hit(document, 1.0) for document in self.found.get(query, [])]

    async def __aenter__(self) -> "Index":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(BASE_MODEL))


def rules(tokenizer: Any, index: Index, searches: int = 2) -> Rules:
    ends = eos_token_ids(tokenizer, str(BASE_MODEL))
    client: Any = index
    codec, limits = EpisodeCodec(tokenizer, ends), Limits(2000, 200, searches)
    return Rules(codec, ends[0], client, limits, choose_prompt("qa_template"), False)


def written(question: Question, index: Index, tokenizer: Any, knows: bool = False) -> Trajectory:
    return asyncio.run(write_transcript(question, rules(tokenizer, index), knows))


def test_it_searches_with_the_question_and_gives_the_answer_that_the_result_holds(tokenizer: Any) -> None:
    index = Index({QUESTION.question: [TOWN, KING]})
    transcript = written(QUESTION, index, tokenizer)
    asked, result, answered = transcript.segments
    assert asked.text == (
        " <think> I need to find out: Who was the first king of Zhou? </think>"
        " <search> Who was the first king of Zhou? </search>"
    )
    assert result.source is Source.RESULT
    assert "King Wu of Zhou" in result.text
    assert answered.text == (
        " <think> The result says that it is King Wu. </think>"
        r" <answer> The final answer is \[ \boxed{King Wu} \] </answer>"
    )
    assert answered.token_ids[-1] == tokenizer.eos_token_id
    assert (transcript.answer, transcript.format_valid, transcript.metrics["em"]) == ("King Wu", True, 1.0)
    assert is_good(transcript)


def test_it_searches_once_more_with_the_title_of_the_first_passage(tokenizer: Any) -> None:
    index = Index({QUESTION.question: [TOWN], f"{QUESTION.question} Luoyang": [KING]})
    transcript = written(QUESTION, index, tokenizer)
    assert index.queries == [QUESTION.question, f"{QUESTION.question} Luoyang"]
    assert transcript.usage.searches == 2
    assert is_good(transcript)


@pytest.mark.parametrize("found", [[], [TOWN]])
def test_what_no_search_finds_is_not_good(tokenizer: Any, found: list[Document]) -> None:
    transcript = written(QUESTION, Index(dict.fromkeys([QUESTION.question], found)), tokenizer)
    assert transcript.answer == ""
    assert not is_good(transcript)


def test_it_can_answer_at_once(tokenizer: Any) -> None:
    index = Index({})
    transcript = written(QUESTION, index, tokenizer, knows=True)
    assert index.queries == []
    assert [segment.source for segment in transcript.segments] == [Source.MODEL]
    assert transcript.answer == "Ji Fa"
    assert is_good(transcript)


def test_a_server_that_fails_ends_the_writing(tokenizer: Any) -> None:
    with pytest.raises(SearchError, match="question q1: no answer"):
        written(QUESTION, Index({}, fails=True), tokenizer)


def test_a_share_of_the_transcripts_answers_at_once_and_each_question_has_one(tokenizer: Any) -> None:
    questions = [Question(f"q{i}", f"Question {i}?", ("King Wu",)) for i in range(40)]
    index = Index({question.question: [KING] for question in questions[:20]})  # half of them are found
    transcripts = write_by_rules(questions, rules(tokenizer, index), 20, 0.25, seed=3)
    assert len(transcripts) == 20
    assert [len(transcript.calls) for transcript in transcripts].count(0) == 5
    assert len({transcript.question_id for transcript in transcripts}) == 20
    assert transcripts != write_by_rules(questions, rules(tokenizer, index), 20, 0.25, seed=4)
    assert describe(transcripts) == "20 transcripts: 5 with 0 searches, 15 with 1 searches"


def test_the_share_is_one_of_the_transcripts_that_could_be_written(tokenizer: Any) -> None:
    questions = [Question(f"q{i}", f"Question {i}?", ("King Wu",)) for i in range(10)]
    index = Index({question.question: [KING] for question in questions[:6]})
    transcripts = write_by_rules(questions, rules(tokenizer, index), 100, 0.25, seed=3)
    assert describe(transcripts) == "8 transcripts: 2 with 0 searches, 6 with 1 searches"  # of four that were not found


def test_the_first_answer_that_a_text_holds_as_whole_words() -> None:
    assert held_answer("King Wu of Zhou", ["Wu Di", "wu"]) == "wu"
    assert held_answer("Wuhan", ["wu"]) is None


def test_good_trajectories_are_chosen_by_seed_at_most_so_many_of_a_question_and_no_text_twice(tokenizer: Any) -> None:
    index = Index({QUESTION.question: [KING]})
    searched, known = written(QUESTION, index, tokenizer), written(QUESTION, index, tokenizer, knows=True)
    wrong = written(QUESTION, Index({}), tokenizer)
    given = [searched, searched, known, wrong]
    assert len(choose_good(given, count=9, each=9, seed=0)) == 2
    assert len(choose_good(given, count=9, each=1, seed=0)) == 1
    assert len(choose_good(given, count=1, each=9, seed=0)) == 1
    assert {len(choose_good(given, 9, 1, seed)[0].calls) for seed in range(10)} == {0, 1}


def test_questions_are_told_apart_by_their_words_because_ids_repeat(tokenizer: Any) -> None:
    index = Index({QUESTION.question: [KING]})
    other = replace(written(QUESTION, index, tokenizer), question="Who ruled Zhou first?")
    given = [written(QUESTION, index, tokenizer), other]
    assert len(choose_good(given, count=9, each=1, seed=0)) == 2


def test_a_direct_answer_is_kept_only_if_it_is_good(tokenizer: Any) -> None:
    questions = [
        Question("q1", "Where?", ("\\text{open", "b")),  # its box never closes
        Question("q2", "Who?", ("", "Wu")),
    ]
    (kept,) = write_by_rules(questions, rules(tokenizer, Index({})), 2, 1.0, seed=0)
    assert kept.answer == "Wu"


def test_transcripts_are_parted_by_question_in_whole_batches(tokenizer: Any) -> None:
    one = written(QUESTION, Index({}), tokenizer, knows=True)
    transcripts = [replace(one, question=f"Question {i // 2}?") for i in range(20)]  # two of each question
    train, held_out = parted(transcripts, share=0.25, batch=3, most_tokens=1000)
    # A quarter is five; whole batches of three: six. Its three questions are wholly held out.
    assert (len(train), len(held_out)) == (14, 6)
    train, held_out = parted(transcripts, share=0.15, batch=3, most_tokens=1000)
    assert (len(train), len(held_out)) == (16, 3)  # the fourth asks what the third asks
    assert parted(transcripts, share=0.0, batch=3, most_tokens=1000) == (transcripts, [])
    with pytest.raises(UserError, match="20 transcripts were made to train on, fewer than"):
        parted(transcripts, share=0.05, batch=32, most_tokens=1000)
    with pytest.raises(UserError, match="tokens, more than"):
        parted(transcripts, share=0.0, batch=3, most_tokens=100)


def test_search_r1_s_tags_end_at_the_answer(tokenizer: Any) -> None:
    index = Index({QUESTION.question: [KING]})
    ours = rules(tokenizer, index)
    codec = EpisodeCodec(tokenizer, [ours.eos_token_id], SEARCH_R1)
    transcript = asyncio.run(write_transcript(QUESTION, replace(ours, codec=codec, prompt=choose_prompt("search_r1"))))
    assert transcript.segments[-1].text.endswith("<answer> King Wu </answer>")
    assert transcript.end_reason == "answered"
    assert is_good(transcript)


def test_ids_of_another_tokenizer_are_refused(tokenizer: Any) -> None:
    transcript = written(QUESTION, Index({}), tokenizer, knows=True)
    codec = rules(tokenizer, Index({})).codec
    check_ids([transcript], codec)
    (segment,) = transcript.segments
    other = replace(transcript, segments=(replace(segment, token_ids=(5, *segment.token_ids)),))
    with pytest.raises(UserError, match="token ids of question q1 are another tokenizer's"):
        check_ids([transcript, other], codec)
