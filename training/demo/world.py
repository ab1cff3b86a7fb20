"""The demo's synthetic world: a few hundred linked articles and the 1- and 2-hop questions about them.

It is written as `corpus.jsonl`, `train.jsonl` and `dev.jsonl` in FlashRAG's formats. The world has two components,
train and dev, that share no name: no person, city, band, country or river, and no first or last name, occurs in both.
The corpus is their union, so the articles of each component are the distractors of the other.

A relation has one object per subject, so no question is ambiguous; a band is never formed in its leader's birthplace,
so no 2-hop question can be answered from the first article. Nothing is taken from a real encyclopedia.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.demo.base_names import BANDS, CITIES, COUNTRIES, FIRST_NAMES, JOBS, LAST_NAMES, RIVERS

# The relation of each hop, and the question with {} for the subject. One entry per question type.
ONE_HOP_TYPES = {
    "birthplace": (("birthplace",), "In which city was {} born?"),
    "leader": (("leader",), "Who is the leader of the band {}?"),
    "home": (("home",), "In which city was the band {} formed?"),
    "country": (("country",), "In which country is the city {}?"),
    "river": (("river",), "Which river flows through the city {}?"),
}
TWO_HOP_TYPES = {
    "birthplace_country": (("birthplace", "country"), "In which country is the city where {} was born?"),
    "birthplace_river": (("birthplace", "river"), "Which river flows through the city where {} was born?"),
    "leader_birthplace": (("leader", "birthplace"), "In which city was the leader of the band {} born?"),
    "home_country": (("home", "country"), "In which country is the city where the band {} was formed?"),
    "home_river": (("home", "river"), "Which river flows through the city where the band {} was formed?"),
}
QUESTION_TYPES = ONE_HOP_TYPES | TWO_HOP_TYPES

# What each kind of article states, in order. The first relation of a question type tells the kind of its subject.
ARTICLE_RELATIONS = {
    "person": ("birthplace", "job"),
    "city": ("country", "river"),
    "band": ("leader", "home"),
}

# Any seed makes a usable world (at least 99 % of the articles rank first for their own title under all-MiniLM-L6-v2);
# with this one every article does.
DEMO_SEED = 1

Facts = dict[str, dict[str, str]]  # subject -> relation -> object


@dataclass(frozen=True)
class Question:
    """One question; `supporting` holds the titles of the articles to read, in hop order."""

    question: str
    answer: str
    type: str
    supporting: tuple[str, ...]

    @property
    def hops(self) -> int:
        return len(self.supporting)


@dataclass(frozen=True)
class NamePool:
    """The names that one component of a world is made of."""

    first_names: Sequence[str]
    last_names: Sequence[str]
    cities: Sequence[str]
    bands: Sequence[str]
    countries: Sequence[str]
    rivers: Sequence[str]


@dataclass(frozen=True)
class World:
    """The facts of the two components and the questions drawn from each."""

    train_facts: Facts
    dev_facts: Facts
    train_questions: tuple[Question, ...]
    dev_questions: tuple[Question, ...]

    @property
    def facts(self) -> Facts:
        return self.train_facts | self.dev_facts


FULL_POOL = NamePool(FIRST_NAMES, LAST_NAMES, CITIES, BANDS, COUNTRIES, RIVERS)


def statement(relation: str, subject: str, value: str) -> str:
    """One sentence of an article; the last words before the value are always the subject and "is"."""
    return f"The {relation} of {subject} is {value}."


def article_text(facts: dict[str, str], subject: str) -> str:
    """
    >>> article_text({"country": "Aldonia", "river": "Abara"}, "Oakfield")
    'The country of Oakfield is Aldonia. The river of Oakfield is Abara.'
    """
    return " ".join(statement(relation, subject, value) for relation, value in facts.items())


def contents(title: str, text: str) -> str:
    """A document in the corpus format: the quoted title on its own line, then the text."""
    return f'"{title}"\n{text}'


def split_pool(rng: random.Random, pool: NamePool, train_share: float) -> tuple[NamePool, NamePool]:
    """Two disjoint pools, shuffled."""
    train, dev = {}, {}
    for field, names in asdict(pool).items():
        shuffled = rng.sample(list(names), len(names))
        cut = round(train_share * len(shuffled))
        train[field], dev[field] = shuffled[:cut], shuffled[cut:]
    return NamePool(**train), NamePool(**dev)


def make_people(rng: random.Random, pool: NamePool, people_per_last_name: int) -> list[str]:
    """Full names: every last name occurs equally often, each time with another first name."""
    return [
        f"{first} {last}"
        for last in pool.last_names
        for first in rng.sample(list(pool.first_names), people_per_last_name)
    ]


def make_facts(rng: random.Random, pool: NamePool, people_per_last_name: int = 2) -> Facts:
    """One linked component. Every band has a leader of its own."""
    people = make_people(rng, pool, people_per_last_name)
    leaders = rng.sample(people, len(pool.bands))
    facts: Facts = {}
    for person in people:
        facts[person] = {"birthplace": rng.choice(pool.cities), "job": rng.choice(JOBS)}
    for city in pool.cities:
        facts[city] = {"country": rng.choice(pool.countries), "river": rng.choice(pool.rivers)}
    for band, leader in zip(pool.bands, leaders, strict=True):
        elsewhere = [city for city in pool.cities if city != facts[leader]["birthplace"]]
        facts[band] = {"leader": leader, "home": rng.choice(elsewhere)}
    return facts


def ask(facts: Facts, question_type: str, subject: str) -> Question:
    """The question of this type about `subject`, with its answer looked up hop by hop."""
    relations, wording = QUESTION_TYPES[question_type]
    supporting, current = [], subject
    for relation in relations:
        supporting.append(current)
        current = facts[current][relation]
    return Question(wording.format(subject), current, question_type, tuple(supporting))


def make_questions(rng: random.Random, facts: Facts, per_type: int) -> tuple[Question, ...]:
    """`per_type` questions of each type, each about another subject (fewer when there are fewer subjects), shuffled."""
    questions = []
    for question_type, (relations, _) in QUESTION_TYPES.items():
        subjects = [subject for subject, stated in facts.items() if relations[0] in stated]
        chosen = rng.sample(subjects, min(per_type, len(subjects)))
        questions += [ask(facts, question_type, subject) for subject in chosen]
    return tuple(rng.sample(questions, len(questions)))


def make_world(seed: int = DEMO_SEED, train_per_type: int = 70, dev_per_type: int = 30) -> World:
    """The world of this seed: same seed, same world."""
    rng = random.Random(seed)
    train_pool, dev_pool = split_pool(rng, FULL_POOL, train_share=0.6)
    train_facts, dev_facts = make_facts(rng, train_pool), make_facts(rng, dev_pool)
    return World(
        train_facts,
        dev_facts,
        make_questions(rng, train_facts, train_per_type),
        make_questions(rng, dev_facts, dev_per_type),
    )


def corpus_records(facts: Facts) -> list[dict[str, str]]:
    """The articles, sorted by title so that their order tells nothing about the split."""
    articles = sorted(facts.items())
    return [
        {"id": str(number), "contents": contents(title, article_text(facts, title))}
        for number, (title, facts) in enumerate(articles)
    ]


def question_records(questions: Iterable[Question], split: str) -> list[dict[str, Any]]:
    """The questions in FlashRAG's data set format."""
    return [
        {
            "id": f"{split}_{number}",
            "question": question.question,
            "golden_answers": [question.answer],
            "metadata": {"hops": question.hops, "type": question.type, "supporting": list(question.supporting)},
        }
        for number, question in enumerate(questions)
    ]


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_world(world: World, output_dir: Path) -> None:
    """Write corpus, train and dev files into `output_dir`, which is made when missing."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_jsonl(output_dir / "corpus.jsonl", corpus_records(world.facts))
    write_jsonl(output_dir / "train.jsonl", question_records(world.train_questions, "train"))
    write_jsonl(output_dir / "dev.jsonl", question_records(world.dev_questions, "dev"))
