"""Ways to answer questions with a generator and a retriever, under FlashRAG's names; METHODS has them all.

    methods.py           the methods by name
    basic.py             answers many questions at once, and records those that fail
    trace.py             records the work on one question, and turns it into a trajectory
    active_pipeline.py   the model decides when to search: ReSearch, Search-o1, Search-R1
    sequential.py        retrieve first, then answer: naive RAG, Iter-RetGen; or answer at once
    chain_of_thought.py  a chain of thought decides what to search for: IRCoT, Self-Ask, FLARE
    bounds.py            the floor and the ceiling: a random answer, the supporting passages

Light to import: the generator and the retriever are given to a pipeline, not loaded by it.
"""

from flashrag.pipeline.active_pipeline import ReSearchPipeline, SearchO1Pipeline, SearchR1Pipeline
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.bounds import OraclePassagesPipeline, RandomPipeline
from flashrag.pipeline.chain_of_thought import FLAREPipeline, IRCOTPipeline, SelfAskPipeline
from flashrag.pipeline.methods import METHODS, MethodSpec
from flashrag.pipeline.sequential import IterativePipeline, SequentialPipeline, ZeroShotPipeline
from flashrag.pipeline.settings import PipelineSettings

__all__ = [
    "METHODS",
    "BasicPipeline",
    "FLAREPipeline",
    "IRCOTPipeline",
    "IterativePipeline",
    "MethodSpec",
    "OraclePassagesPipeline",
    "PipelineSettings",
    "RandomPipeline",
    "ReSearchPipeline",
    "SearchO1Pipeline",
    "SearchR1Pipeline",
    "SelfAskPipeline",
    "SequentialPipeline",
    "ZeroShotPipeline",
]
