"""Ways to answer questions with a generator and a retriever, under FlashRAG's names.

    basic.py            many questions at once; one that fails is recorded and stops nothing
    active_pipeline.py  ReSearchPipeline: the model searches while it thinks

Light to import: the generator and the retriever are given to a pipeline, not loaded by it.
"""

from flashrag.pipeline.active_pipeline import ReSearchPipeline
from flashrag.pipeline.basic import Answer, BasicPipeline, Outcome
from flashrag.pipeline.settings import PipelineSettings

__all__ = ["Answer", "BasicPipeline", "Outcome", "PipelineSettings", "ReSearchPipeline"]
