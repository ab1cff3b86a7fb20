"""The methods of an evaluation, by the names that `--method_name` takes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from flashrag.pipeline.active_pipeline import ReSearchPipeline, SearchO1Pipeline, SearchR1Pipeline
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.bounds import OraclePassagesPipeline, RandomPipeline
from flashrag.pipeline.chain_of_thought import FLAREPipeline, IRCOTPipeline, SelfAskPipeline
from flashrag.pipeline.sequential import IterativePipeline, SequentialPipeline, ZeroShotPipeline


class MethodSpec(NamedTuple):
    """One method. Call `pipeline(config, retriever, generator)` with None for a part that it does not need."""

    name: str
    pipeline: type[BasicPipeline]
    description: str
    citation: str


_SPECS = (
    MethodSpec("research", ReSearchPipeline, "thinks and searches in turn, as trained here", "arXiv 2503.19470"),
    MethodSpec("naive", SequentialPipeline, "one search with the question, one answer", "arXiv 2005.11401"),
    MethodSpec("zero-shot", ZeroShotPipeline, "the model's own knowledge, no search", "arXiv 2405.13576"),
    MethodSpec("flare", FLAREPipeline, "searches if the model is unsure of its next sentence", "arXiv 2305.06983"),
    MethodSpec("iterretgen", IterativePipeline, "searches again with each answer", "arXiv 2305.15294"),
    MethodSpec("ircot", IRCOTPipeline, "a search after each sentence of a chain of thought", "arXiv 2212.10509"),
    MethodSpec("self-ask", SelfAskPipeline, "follow-up questions, a search for each", "arXiv 2210.03350"),
    MethodSpec("search-o1", SearchO1Pipeline, "an instruct model, told how to search", "arXiv 2501.05366"),
    MethodSpec("search-r1", SearchR1Pipeline, "Search-R1's models in their own tags", "arXiv 2503.09516"),
    MethodSpec("random", RandomPipeline, "the floor: the answer of another question", "-"),
    MethodSpec("oracle-passages", OraclePassagesPipeline, "the ceiling: the supporting passages themselves", "-"),
)

METHODS: Mapping[str, MethodSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
