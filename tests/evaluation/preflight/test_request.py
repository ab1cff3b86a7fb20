"""The first request of each method, made by its own code; and the prompts that leave no room."""

from dataclasses import replace
from typing import Any

import pytest

from evaluation.preflight.request import FOUND, FoundPassage, Recorder, first_request, too_long
from flashrag.dataset import Question
from flashrag.episode import prompt_token_ids
from flashrag.errors import ReSearchError
from flashrag.pipeline import METHODS, BasicPipeline, PipelineSettings

QUESTION = Question("a", "Who was the first king of Zhou?", ("Wu",), {"supporting_titles": ["King Wu"]})


def pipeline_of(name: str, tokenizer: Any, **keys: Any) -> BasicPipeline:
    settings = PipelineSettings(**{"generator_max_input_len": 4096, **keys})
    pipeline = METHODS[name].pipeline(settings, FoundPassage(), Recorder(tokenizer, [0]))
    pipeline.prepare([QUESTION])
    return pipeline


def test_the_prompt_of_an_episode_is_training_s(tokenizer: Any):
    request = first_request(pipeline_of("research", tokenizer), QUESTION)
    assert request is not None
    assert (request.route, request.prompt) == ("generate", prompt_token_ids(tokenizer, QUESTION.question))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("random", "research")])
def test_every_method_asks_about_the_question(name: str, tokenizer: Any):
    request = first_request(pipeline_of(name, tokenizer), QUESTION)
    assert request is not None
    text = tokenizer.decode(request.prompt)
    assert QUESTION.question in text
    searches_first = name in ("naive", "iterretgen", "ircot", "oracle-passages")
    assert (FOUND in text) is searches_first
    assert ("[1] King Wu: " in text) is (name == "oracle-passages")
    assert request.wants_log_probs is (name == "flare")


def test_a_method_without_a_model_asks_nothing(tokenizer: Any):
    assert first_request(pipeline_of("random", tokenizer), QUESTION) is None


def test_without_a_tokenizer_the_request_is_a_conversation():
    request = first_request(pipeline_of("naive", None), QUESTION)
    assert request is not None
    assert request.route == "chat"
    assert QUESTION.question in request.prompt[-1]["content"]


def test_a_request_that_cannot_be_made_is_an_error(tokenizer: Any):
    with pytest.raises(ReSearchError, match="names no supporting passage"):
        first_request(pipeline_of("oracle-passages", tokenizer), replace(QUESTION, metadata={}))


@pytest.mark.parametrize("name", ["research", "naive"])
def test_questions_that_are_too_long_are_found(name: str, tokenizer: Any):
    """The tests' tokenizer makes a token of each letter."""
    long = replace(QUESTION, id="long", question="why " * 1000)
    assert too_long(pipeline_of(name, tokenizer), [QUESTION, long]) == [long]
    assert too_long(pipeline_of(name, tokenizer, generator_max_input_len=8192), [QUESTION, long]) == []
