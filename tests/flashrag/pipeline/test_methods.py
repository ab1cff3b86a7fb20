"""The registry: every published name, and classes under FlashRAG's names. The words that methods look for."""

from flashrag.pipeline import METHODS, active_pipeline, chain_of_thought
from flashrag.prompts import BASELINES


def test_every_method_is_there_under_its_name():
    assert {name: spec.pipeline.__name__ for name, spec in METHODS.items()} == {
        "research": "ReSearchPipeline",
        "naive": "SequentialPipeline",
        "zero-shot": "ZeroShotPipeline",
        "flare": "FLAREPipeline",
        "iterretgen": "IterativePipeline",
        "ircot": "IRCOTPipeline",
        "self-ask": "SelfAskPipeline",
        "search-o1": "SearchO1Pipeline",
        "search-r1": "SearchR1Pipeline",
        "random": "RandomPipeline",
        "oracle-passages": "OraclePassagesPipeline",
    }
    assert all(spec.name == name and spec.description and spec.citation for name, spec in METHODS.items())
    assert [name for name, spec in METHODS.items() if not spec.pipeline.needs_retriever] == ["zero-shot", "random"]
    assert [name for name, spec in METHODS.items() if not spec.pipeline.needs_generator] == ["random"]


def test_the_prompts_teach_the_words_that_the_methods_look_for():
    for cue in (chain_of_thought.FOLLOW_UP, chain_of_thought.INTERMEDIATE_ANSWER, chain_of_thought.FINAL_ANSWER):
        assert f"\n{cue} " in BASELINES["self_ask"].system
    assert all(
        chain_of_thought.ANSWER_CUE in BASELINES[name].system for name in ("reasoning", "reasoning_with_passages")
    )
    reading = BASELINES["search_o1"].with_passages
    assert reading is not None
    assert f"\n{active_pipeline.FINAL_INFORMATION}\n\n{active_pipeline.NOTHING_HELPFUL}\n" in reading.user
