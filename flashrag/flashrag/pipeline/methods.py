"""The methods of an evaluation, by the names that `--method_name` takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flashrag.pipeline.active_pipeline import ReSearchPipeline
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.sequential import SequentialPipeline, ZeroShotPipeline


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method: `pipeline(config, retriever, generator)` makes it; None where it needs no such part."""

    name: str
    pipeline: type[BasicPipeline]
    description: str
    citation: str

    @property
    def needs_retriever(self) -> bool:
        return self.pipeline.needs_retriever

    @property
    def needs_generator(self) -> bool:
        return self.pipeline.needs_generator


_SPECS = (
    MethodSpec("research", ReSearchPipeline, "thinks and searches in turn, as trained here", "arXiv 2503.19470"),
    MethodSpec("naive", SequentialPipeline, "one search with the question, one answer", "arXiv 2005.11401"),
    MethodSpec("zero-shot", ZeroShotPipeline, "the model's own knowledge, no search", "arXiv 2405.13576"),
)

METHODS: Mapping[str, MethodSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
