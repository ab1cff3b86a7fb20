"""Ways to answer questions with a generator and a retriever, under FlashRAG's names; METHODS has them all.

    methods.py           the methods by name
    basic.py             answers many questions at once, and records those that fail
    trace.py             records the work on one question, and turns it into a trajectory
    episode_pipeline.py  methods whose model decides when to search; active_pipeline.py is ReSearch's
    sequential.py        retrieve once, then answer; or answer at once
    iterative.py, ircot.py, self_ask.py, flare.py, search_o1.py, search_r1.py   one method each, with its paper
    random_answer.py, oracle.py   the floor and the ceiling

Light to import: the generator and the retriever are given to a pipeline, not loaded by it.
"""

from flashrag.pipeline.active_pipeline import ReSearchPipeline
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.flare import FLAREPipeline
from flashrag.pipeline.ircot import IRCOTPipeline
from flashrag.pipeline.iterative import IterativePipeline
from flashrag.pipeline.methods import METHODS, MethodSpec
from flashrag.pipeline.oracle import OraclePassagesPipeline
from flashrag.pipeline.random_answer import RandomPipeline
from flashrag.pipeline.search_o1 import SearchO1Pipeline
from flashrag.pipeline.search_r1 import SearchR1Pipeline
from flashrag.pipeline.self_ask import SelfAskPipeline
from flashrag.pipeline.sequential import SequentialPipeline, ZeroShotPipeline
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
