"""The registry: every published name, and classes under FlashRAG's names."""

from flashrag.pipeline import METHODS


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
    assert [name for name, spec in METHODS.items() if not spec.needs_retriever] == ["zero-shot", "random"]
    assert [name for name, spec in METHODS.items() if not spec.needs_generator] == ["random"]
