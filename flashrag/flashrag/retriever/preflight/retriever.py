"""The retriever that settings describe, with all its parts: what is wrong with it, and what a plan says about it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flashrag.preflight import Finding, MachineFacts, error, examine, fact, gathered, gib, note, warning
from flashrag.retriever.encoder_folder import most_tokens, resolve_model_folder
from flashrag.retriever.faiss_index import check_gpus
from flashrag.retriever.index_card import path_bytes
from flashrag.retriever.preflight.corpus import describe
from flashrag.retriever.preflight.part import PART_RULES, PartFacts
from flashrag.retriever.settings import Kind, RetrieverSettings
from flashrag.system.machine import count_gpus, gpu_memory_bytes, versions_in_words

if TYPE_CHECKING:
    from flashrag.generator import ModelFacts

LIBRARY_BYTES = 600 << 20  # torch, transformers and faiss, in a process that searches or builds
LIBRARIES = ("faiss-cpu", "faiss-gpu", "bm25s", "sentence-transformers", "torch", "transformers")


class RetrieverFacts(MachineFacts):
    """`read` gives the settings; `sharded` where the index is a folder of shards."""

    def __init__(self, read: Callable[[], RetrieverSettings], sharded: bool = False) -> None:
        self._read = read
        self._sharded = sharded

    @fact
    def settings(self) -> RetrieverSettings:
        return self._read()

    @fact
    def parts(self) -> list[PartFacts]:
        """The retrievers over local files."""
        multi = self.settings.multi_retriever_setting if self.settings.kind is Kind.HYBRID else None
        single = self.settings.model_copy(update={"use_reranker": False})
        return [
            PartFacts(settings, self._sharded)
            for settings in (multi.retriever_list if multi else (single,))
            if settings.kind in (Kind.DENSE, Kind.BM25)
        ]

    @fact
    def reranker(self) -> "ModelFacts | None":
        from flashrag.generator import read_model_facts  # here: the clients of servers come with it

        if not self.settings.use_reranker:
            return None
        assert self.settings.rerank_model_path is not None, "checked by RetrieverSettings"
        folder = resolve_model_folder(self.settings.rerank_model_path, "rerank_model_path")
        return read_model_facts(folder, "rerank_model_path")

    @fact
    def gpus(self) -> int:
        return count_gpus()

    @fact
    def named_gpus(self) -> list[int]:
        """The numbers in gpu_id."""
        return [int(name) for name in str(self.settings.gpu_id).split(",") if name.strip().isdecimal()]

    @fact
    def gpu_memories(self) -> list[int]:
        """Of the GPUs in gpu_id, or of all where it names none by number."""
        memories = gpu_memory_bytes()
        return [memories[number] for number in self.named_gpus if number < len(memories)] or memories

    @fact
    def memory_bytes(self) -> int:
        models = [part.encoder for part in self.parts] + [self.reranker]
        reranker = self.reranker.weight_bytes if self.reranker else 0
        return sum(part.memory_bytes for part in self.parts) + reranker + (LIBRARY_BYTES if any(models) else 0)


def _parts(facts: RetrieverFacts) -> Iterator[Finding]:
    for part in facts.parts:
        yield from examine(PART_RULES, part)


def _remotes(facts: RetrieverFacts) -> None:
    from flashrag.retriever.remote import check_remote

    settings = facts.settings
    multi = settings.multi_retriever_setting if settings.kind is Kind.HYBRID else None
    for part in multi.retriever_list if multi else (settings,):
        if part.kind is Kind.REMOTE and part.remote_retriever_url:
            check_remote(part.remote_retriever_url)


def _gpus(facts: RetrieverFacts) -> Iterator[Finding]:
    given = facts.settings.gpu_id
    if given not in (None, "") and not facts.gpus:
        yield warning(f"gpu_id is {given!r}, but this machine shows no GPU: the encoder runs on the CPU; remove gpu_id")
    if beyond := [number for number in facts.named_gpus if number >= facts.gpus > 0]:
        yield error(f"gpu_id is {given!r}, but there is no GPU {beyond[0]}; this machine has 0 to {facts.gpus - 1}")
    if given is None and facts.gpus and (facts.reranker or any(part.encoder for part in facts.parts)):
        yield note(f"gpu_id is not set: models are put on all {facts.gpus} GPUs; name those that the server may take")
    if any(part.settings.faiss_gpu for part in facts.parts):
        check_gpus("faiss_gpu: true")


def _gpu_memory(facts: RetrieverFacts) -> Iterator[Finding]:
    """faiss ends the process where one of several GPUs is full."""
    needed, there = sum(part.gpu_bytes for part in facts.parts), sum(facts.gpu_memories)
    if needed > there > 0:
        yield error(
            f"faiss_gpu: true puts an index of {gib(needed)} on GPUs that have {gib(there)}; give it more GPUs "
            "(gpu_id), set faiss_gpu to false, or build a smaller --faiss_type, such as IVF4096,SQ8"
        )


def _memory(facts: RetrieverFacts) -> Iterator[Finding]:
    needed, there = facts.memory_bytes, facts.machine.memory_bytes
    if needed > there:
        yield error(
            f"index and models need {gib(needed)} of memory, and this machine has {gib(there)}; set faiss_mmap to "
            "true, build a smaller --faiss_type, or split the index (docs/cluster.md)"
        )


RETRIEVER_RULES = {
    "retriever.files": _parts,
    "retriever.remote": _remotes,
    "retriever.reranker": gathered("reranker"),
    "retriever.gpus": _gpus,
    "retriever.gpu_memory": _gpu_memory,
    "retriever.memory": _memory,
}


def _each(facts: RetrieverFacts, lines: list[str]) -> str:
    return "; ".join(lines) or f"on {facts.settings.remote_retriever_url}"


def describe_passages(facts: RetrieverFacts) -> str:
    return _each(facts, [describe(part.corpus) for part in facts.parts])


def describe_indexes(facts: RetrieverFacts) -> str:
    def described(part: PartFacts) -> str:
        kind, count, dimension = part.index
        size = gib(path_bytes(part.paths[0]))
        card = "" if part.sharded or part.card else ", without a card: a sample is compared at each start"
        return f"{kind}, {count:,}{f' x {dimension}' if dimension else ''}, {size}{card} ({part.paths[0]})"

    return _each(facts, [described(part) for part in facts.parts])


def describe_encoder(encoder: "ModelFacts", folder: Path) -> str:
    return f"{encoder.architecture}, {gib(encoder.weight_bytes)}, {most_tokens(folder)} tokens ({folder})"


def describe_encoders(facts: RetrieverFacts) -> str:
    described = [
        describe_encoder(part.encoder, part.model_folder)
        for part in facts.parts
        if part.encoder is not None and part.model_folder is not None
    ]
    return "; ".join(described) or "none"


def describe_memory(facts: RetrieverFacts) -> str:
    mapped = sum(part.corpus.path.stat().st_size for part in facts.parts)
    return f"{gib(facts.memory_bytes)} for index and models; the corpus, {gib(mapped)}, stays on the disk"


def describe_machine(facts: RetrieverFacts) -> str:
    return f"{gib(facts.machine.memory_bytes)}, {facts.machine.cores} cores, {facts.gpus} GPUs"


def describe_libraries(_: object) -> str:
    return versions_in_words(LIBRARIES)


RETRIEVER_PLAN = {
    "passages": describe_passages,
    "index": describe_indexes,
    "encoder": describe_encoders,
    "memory": describe_memory,
    "this machine": describe_machine,
    "libraries": describe_libraries,
}
