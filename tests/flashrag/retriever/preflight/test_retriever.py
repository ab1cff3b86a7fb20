from typing import Any

import pytest

from flashrag.preflight import Finding, Severity, examine
from flashrag.retriever import RETRIEVER_PLAN, RETRIEVER_RULES, RetrieverFacts, RetrieverSettings
from flashrag.retriever.preflight.retriever import LIBRARY_BYTES
from tests.flashrag.retriever.preflight.conftest import Files, write_index

GPUS = "flashrag.retriever.preflight.retriever.count_gpus"


def facts_of(files: Files, **changes: Any) -> RetrieverFacts:
    return RetrieverFacts(lambda: files.settings(**changes))


def found(files: Files, **changes: Any) -> list[Finding]:
    return examine(RETRIEVER_RULES, facts_of(files, **changes))


def test_nothing_is_said_about_good_files(files):
    assert found(files) == []


def test_each_part_of_a_hybrid_is_examined(files, closed_url):
    bad = {"retrieval_method": "bm25", "index_path": "/no/bm25"}
    dense = files.settings().model_dump(exclude_unset=True)
    remote = {"retrieval_method": "remote", "remote_retriever_url": closed_url}
    settings = RetrieverSettings.model_validate(
        {
            "use_multi_retriever": True,
            "corpus_path": str(files.folder / "none"),
            "multi_retriever_setting": {"retriever_list": [bad, dense, remote]},
            "use_reranker": True,
            "rerank_model_path": "/no/reranker",
        }
    )
    told = [(each.rule, each.message) for each in examine(RETRIEVER_RULES, RetrieverFacts(lambda: settings))]
    assert [rule for rule, _ in told] == [
        "retriever.index",
        "retriever.corpus",
        "retriever.remote",
        "retriever.reranker",
    ]
    assert "nothing at /no/bm25" in told[0][1]
    assert "corpus_path: no file at" in told[1][1]
    assert "/no/reranker" in told[3][1]


def test_an_index_larger_than_the_memory_is_refused_unless_it_stays_on_the_disk(files, monkeypatch):
    facts = facts_of(files)
    # 6 x 4 float32 and a header of 45 bytes; 2 x 3 float32 in a safetensors file
    weights = (files.encoder / "model.safetensors").stat().st_size
    assert facts.memory_bytes == 6 * 4 * 4 + 45 + weights + LIBRARY_BYTES
    assert facts_of(files, faiss_mmap=True).memory_bytes == weights + LIBRARY_BYTES
    monkeypatch.setattr("flashrag.preflight.machine._memory_bytes", lambda: LIBRARY_BYTES + weights + 100)
    (finding,) = found(files)
    assert (finding.severity, finding.rule) == (Severity.ERROR, "retriever.memory")
    assert "index and models need 600 MiB of memory, and this machine has 600 MiB; set faiss_mmap" in finding.message
    assert found(files, faiss_mmap=True) == []


@pytest.mark.parametrize(
    ("gpu_id", "gpus", "severity", "words"),
    [
        ("0,1", 2, None, ""),
        ("", 0, None, ""),
        ("0", 0, Severity.WARNING, "shows no GPU: the encoder runs on the CPU"),
        (0, 0, Severity.WARNING, "shows no GPU"),
        ("0,2", 2, Severity.ERROR, "gpu_id is '0,2', but there is no GPU 2; this machine has 0 to 1"),
        ("GPU-1234", 2, None, ""),
        (
            None,
            8,
            Severity.NOTE,
            "gpu_id is not set: models are put on all 8 GPUs; name those that the server may take",
        ),
        (None, 0, None, ""),
    ],
)
def test_a_gpu_that_is_not_there(files, monkeypatch, gpu_id, gpus, severity, words):
    monkeypatch.setattr(GPUS, lambda: gpus)
    told = found(files, gpu_id=gpu_id)
    assert [finding.severity for finding in told] == ([severity] if severity else [])
    assert all(words in finding.message for finding in told)


def test_faiss_on_gpus_needs_one(files):
    (finding,) = found(files, faiss_gpu=True)
    assert finding.message.startswith("faiss_gpu: true was given, but this faiss sees no GPU")


@pytest.mark.parametrize(("kind", "divisor"), [("Flat", 2), ("IVF1,Flat", 1)])
def test_an_index_larger_than_the_memory_of_the_gpus_is_told(files, monkeypatch, kind, divisor):
    write_index(files.index, kind=kind)
    needed = files.index.stat().st_size // divisor  # Flat in float16
    monkeypatch.setattr("flashrag.retriever.preflight.retriever.check_gpus", lambda _: None)
    monkeypatch.setattr(GPUS, lambda: 2)
    memories = "flashrag.retriever.preflight.retriever.gpu_memory_bytes"
    monkeypatch.setattr(memories, lambda: [needed - 1, 1])
    assert [finding.severity for finding in found(files, faiss_gpu=True)] == [Severity.NOTE]  # gpu_id is not set
    assert found(files, faiss_gpu=True, gpu_id="0,1") == []
    (finding,) = found(files, faiss_gpu=True, gpu_id="0")
    assert (finding.severity, finding.rule) == (Severity.ERROR, "retriever.gpu_memory")
    assert "faiss_gpu: true puts an index of 0 MiB on GPUs that have 0 MiB; give it more GPUs" in finding.message
    files.index.unlink()
    assert [finding.rule for finding in found(files, faiss_gpu=True, gpu_id="0")] == ["retriever.index"]
    write_index(files.index, kind=kind)
    monkeypatch.setattr(memories, lambda: [])  # a driver that does not tell
    assert found(files, faiss_gpu=True, gpu_id="0") == []


def test_the_plan_names_every_part(files):
    facts = facts_of(files)
    told = {name: entry(facts) for name, entry in RETRIEVER_PLAN.items()}
    assert told["passages"] == f"6 in {files.corpus}"
    assert (
        told["index"]
        == f"IndexFlatIP, 6 x 4, 0 MiB, without a card: a sample is compared at each start ({files.index})"
    )
    assert told["encoder"] == f"BertModel, 0 MiB, 16 tokens ({files.encoder})"
    assert told["memory"].startswith("600 MiB for index and models; the corpus, 0 MiB, stays on the disk")
    assert "faiss-cpu " in told["libraries"]
