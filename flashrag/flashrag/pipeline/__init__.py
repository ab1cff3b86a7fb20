"""Ways to answer questions with a generator and a retriever, under FlashRAG's names; METHODS has them all.

    methods.py           the methods by name
    basic.py             many questions at once; one that fails is recorded and stops nothing
    outcome.py, trace.py what came of a question, and its record while it is answered
    episode_pipeline.py  methods whose model decides when to search; active_pipeline.py is ReSearch's
    sequential.py        retrieve once, then answer

Light to import: the generator and the retriever are given to a pipeline, not loaded by it.
"""

from flashrag.pipeline.active_pipeline import ReSearchPipeline
from flashrag.pipeline.basic import Answered, BasicPipeline
from flashrag.pipeline.methods import METHODS, MethodSpec
from flashrag.pipeline.outcome import Outcome, Passage, Step, StepKind, Usage
from flashrag.pipeline.sequential import SequentialPipeline, ZeroShotPipeline
from flashrag.pipeline.settings import PipelineSettings

__all__ = [
    "METHODS",
    "Answered",
    "BasicPipeline",
    "MethodSpec",
    "Outcome",
    "Passage",
    "PipelineSettings",
    "ReSearchPipeline",
    "SequentialPipeline",
    "Step",
    "StepKind",
    "Usage",
    "ZeroShotPipeline",
]
