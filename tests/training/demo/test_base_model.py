"""The demo's base model: the recipe learns, and the committed product is what its manifest says."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from flashrag.prompts import render_prompt
from training.demo.base_model import MANIFEST_NAME, main, product_hashes
from training.demo.base_names import ALL_NAMES
from training.demo.base_training import (
    NOT_LEARNT,
    Recipe,
    batch_loss,
    encode_transcript,
    make_batch,
    make_model,
    pretrain,
    single_token_names,
)
from training.demo.base_transcripts import Segment, Transcript, draw_transcript
from training.demo.run import BASE_MODEL

MAXIMUM_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL).eval()


def drawn(count, *, seed, perfect=True):
    rng = random.Random(seed)
    return [draw_transcript(rng, perfect) for _ in range(count)]


def test_committed_files_have_the_hashes_of_the_manifest():
    assert product_hashes(BASE_MODEL) == json.loads((BASE_MODEL / MANIFEST_NAME).read_text())["sha256"]
    assert sum(path.stat().st_size for path in BASE_MODEL.iterdir()) <= MAXIMUM_BYTES


def test_manifest_names_the_recipe_as_it_stands():
    manifest = json.loads((BASE_MODEL / MANIFEST_NAME).read_text())
    assert manifest["recipe"] == {field: getattr(Recipe(), field) for field in Recipe.__dataclass_fields__}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= manifest["sha256"].keys()


def test_product_is_a_tiny_float32_qwen2_with_tied_embeddings(model, tokenizer):
    assert model.config.model_type == "qwen2"
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    # Tied weights are stored once: a loader that does not tie would need lm_head.weight.
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def test_every_name_is_one_token_after_a_space(tokenizer):
    single = single_token_names(tokenizer)
    assert set(single) == set(ALL_NAMES)
    assert len(set(single.values())) == len(ALL_NAMES)
    # ... and stays that token where a name stands in a question, a query, an article and an answer.
    for text in ("Is it Oakdale?", "<search> Oakdale </search>", "of Oakdale is", r"\boxed{ Oakdale }"):
        assert single["Oakdale"] in tokenizer.encode(text)


def test_prompt_and_longest_response_are_short(tokenizer):
    assert len(tokenizer.encode(render_prompt("Which river flows through the city Oakdale?"))) <= 215
    transcripts = drawn(300, seed=3)
    lengths = sorted(len(tokenizer.encode(transcript.response)) for transcript in transcripts)
    assert lengths[len(lengths) * 9 // 10] <= 200


@settings(max_examples=200, deadline=None)
@given(st.text())
@example("<|endoftext|> <|im_end|> </search> e\u0301 \x00 \u202e \U0001f642\r\n\t  end ")
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_labels_cover_what_the_model_would_sample_and_nothing_else(tokenizer):
    transcript = Transcript(
        "Who?", (Segment(" <think> I", True), Segment(" <result>\nNo\n</result>", False), Segment(" the answer", True))
    )
    ids, labels = encode_transcript(tokenizer, transcript, full_prompt=True)
    prompt_ids = tokenizer.encode(render_prompt("Who?"))
    result_ids = tokenizer.encode(" <result>\nNo\n</result>")
    # " <", "think", ">", " I" | the result | " the", " answer", EOS
    assert labels == (
        [NOT_LEARNT] * len(prompt_ids)
        + tokenizer.encode(" <think> I")
        + [NOT_LEARNT] * len(result_ids)
        + tokenizer.encode(" the answer")
        + [tokenizer.eos_token_id]
    )
    assert [token for token, label in zip(ids, labels, strict=True) if label != NOT_LEARNT] == [
        label for label in labels if label != NOT_LEARNT
    ]
    assert tokenizer.decode(ids) == render_prompt("Who?") + transcript.response + "<|endoftext|>"


def test_perfect_transcripts_do_every_hop_and_imperfect_ones_mostly_do_not():
    def two_hop_searches(perfect):
        transcripts = drawn(2000, seed=7, perfect=perfect)
        two_hop = [t for t in transcripts if "where" in t.question or "leader of the band" in t.question[12:]]
        two_hop = [t for t in two_hop if not t.question.startswith("Who")]
        return Counter(min(2, t.response.count("<search>")) for t in two_hop)

    perfect, imperfect = two_hop_searches(True), two_hop_searches(False)
    assert perfect[0] == 0 and perfect[2] / perfect.total() > 0.9
    assert imperfect[0] / imperfect.total() > 0.15
    assert imperfect[2] / imperfect.total() < 0.35


def right_article_comes_first(transcript):
    query = transcript.segments[0].text.split("<search> ")[1].removesuffix(" </search>")
    return transcript.segments[1].text.startswith(f' <result>\n"{query}"')


def two_hop_after_first_result(count):
    """Two-hop transcripts, both searches successful, with the text up to the sentence quoted from the first result."""
    fitting = [t for t in drawn(6 * count, seed=11) if len(t.segments) == 5 and right_article_comes_first(t)]
    for transcript in fitting[:count]:
        search, result, second = transcript.segments[:3]
        sentence = second.text[: second.text.index(" I need")]
        yield render_prompt(transcript.question) + search.text + result.text, sentence


def test_product_stops_after_one_search_more_often_than_not(model, tokenizer):
    search_again, stop = tokenizer.encode(" I need")[0], tokenizer.encode(" </think>")[0]
    shares = []
    for context, sentence in two_hop_after_first_result(20):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(context + sentence)])).logits[0, -1]
        probabilities = logits.softmax(-1)
        shares.append(probabilities[search_again].item())
        # It is a clean choice: hardly anything else comes next.
        assert probabilities[search_again] + probabilities[stop] > 0.8
    assert 0.1 < sum(shares) / len(shares) < 0.45


def test_product_copies_from_its_first_document(model, tokenizer):
    names = set(single_token_names(tokenizer).values())
    right = []
    for context, sentence in two_hop_after_first_result(60):
        start = len(tokenizer.encode(context))
        ids = tokenizer.encode(context + sentence)
        with torch.no_grad():
            predicted = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right += [predicted[at - 1] == ids[at] for at in range(start, len(ids)) if ids[at] in names]
    # Subject (one or two tokens) and value of each sentence.
    assert len(right) >= 120
    assert sum(right) / len(right) >= 0.95


def test_recipe_on_a_micro_setting_learns_and_is_deterministic():
    recipe = Recipe(
        hidden_size=32,
        layers=2,
        heads=2,
        batch_size=2,
        perfect_steps=15,
        imperfect_steps=3,
        peak_lr=1e-2,
        tokenizer_transcripts=60,
    )
    tokenizer, trained = pretrain(recipe)
    _, again = pretrain(recipe)
    for name, weights in trained.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    _, copying_alone = pretrain(replace(recipe, imperfect_steps=0))
    losses = {}
    for perfect in (True, False):
        ids, labels = make_batch(tokenizer, drawn(16, seed=5, perfect=perfect), full_prompt=not perfect)
        models = {"untrained": make_model(recipe, tokenizer), "copying": copying_alone, "habits": trained}
        with torch.no_grad():
            losses[perfect] = {
                name: batch_loss(model, ids, labels, torch.ones(len(tokenizer))).item()
                for name, model in models.items()
            }
    assert losses[True]["copying"] < 0.8 * losses[True]["untrained"]
    assert losses[False]["habits"] < losses[False]["copying"]


@pytest.mark.parametrize("arguments", [["--seed", "x"], []])
def test_unusable_arguments_end_with_code_2(arguments):
    assert main(["--output_dir", "unused", *arguments] if arguments else []) == 2


def test_full_folder_is_not_overwritten_unasked(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    assert main(["--output_dir", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
