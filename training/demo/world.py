"""The demo's synthetic world: a few hundred linked articles and the 1- and 2-hop questions about them.

It is written as `corpus.jsonl`, `train.jsonl` and `dev.jsonl` in FlashRAG's formats. The world has two components,
train and dev, that share no name: no person, city, band, country or river, and no first or last name, occurs in both.
The corpus is their union, so the articles of each component are the distractors of the other.

A relation has one object per subject, so no question is ambiguous; a band is never formed in its leader's birthplace,
so no 2-hop question can be answered from the first article. Nothing is taken from a real encyclopedia.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashrag.dataset import Question
from flashrag.system.json_lines import encode_object
from training.demo.base_names import JOBS, NAMES, Names

# Each type of question, with {} for the subject. The type's name holds the relation of each hop.
QUESTION_TYPES = {
    "birthplace": "In which city was {} born?",
    "leader": "Who is the leader of the band {}?",
    "home": "In which city was the band {} formed?",
    "country": "In which country is the city {}?",
    "river": "Which river flows through the city {}?",
    "birthplace_country": "In which country is the city where {} was born?",
    "birthplace_river": "Which river flows through the city where {} was born?",
    "leader_birthplace": "In which city was the leader of the band {} born?",
    "home_country": "In which country is the city where the band {} was formed?",
    "home_river": "Which river flows through the city where the band {} was formed?",
}
# What each kind of article states, in order.
ARTICLE_RELATIONS = {
    "person": ("birthplace", "job"),
    "city": ("country", "river"),
    "band": ("leader", "home"),
}

# Any seed makes a usable world (at least 99 % of the articles rank first for their own title under all-MiniLM-L6-v2);
# with this one every article does.
DEMO_SEED = 1
TRAIN_SHARE = 0.6  # of the names
QUESTIONS_PER_TYPE = {"train": 70, "dev": 30}

Facts = dict[str, dict[str, str]]  # subject -> relation -> object


@dataclass(frozen=True)
class World:
    """The facts of the two components and the questions drawn from each, by split."""

    facts_by_split: Mapping[str, Facts]
    questions_by_split: Mapping[str, list[Question]]

    @property
    def facts(self) -> Facts:
        return self.facts_by_split["train"] | self.facts_by_split["dev"]


def relations_of(question_type: str) -> list[str]:
    """The relation of each hop.

    >>> relations_of("leader_birthplace")
    ['leader', 'birthplace']
    """
    return question_type.split("_")


def statement(relation: str, subject: str, value: str) -> str:
    """One sentence of an article; the last words before the value are always the subject and "is"."""
    return f"The {relation} of {subject} is {value}."


def article(title: str, stated: Mapping[str, str]) -> str:
    """A document in the corpus format: the quoted title on its own line, then what is stated about it.

    >>> article("Oakfield", {"country": "Aldonia", "river": "Abara"})
    '"Oakfield"\\nThe country of Oakfield is Aldonia. The river of Oakfield is Abara.'
    """
    return f'"{title}"\n' + " ".join(statement(relation, title, value) for relation, value in stated.items())


def split_names(rng: random.Random) -> tuple[Names, Names]:
    """The names of the train and of the dev component, which share none."""
    shuffled = [rng.sample(names, len(names)) for names in NAMES]
    cuts = [round(TRAIN_SHARE * len(names)) for names in shuffled]
    train = (names[:cut] for names, cut in zip(shuffled, cuts, strict=True))
    dev = (names[cut:] for names, cut in zip(shuffled, cuts, strict=True))
    return Names(*train), Names(*dev)


def make_facts(rng: random.Random, names: Names) -> Facts:
    """One linked component. Each last name occurs with two first names, and each band has a leader of its own."""
    people = [f"{first} {last}" for last in names.last_names for first in rng.sample(names.first_names, 2)]
    leaders = rng.sample(people, len(names.bands))
    facts: Facts = {}
    for person in people:
        facts[person] = {"birthplace": rng.choice(names.cities), "job": rng.choice(JOBS)}
    for city in names.cities:
        facts[city] = {"country": rng.choice(names.countries), "river": rng.choice(names.rivers)}
    for band, leader in zip(names.bands, leaders, strict=True):
        elsewhere = [city for city in names.cities if city != facts[leader]["birthplace"]]
        facts[band] = {"leader": leader, "home": rng.choice(elsewhere)}
    return facts


def make_questions(rng: random.Random, facts: Facts, split: str) -> list[Question]:
    """The questions of a split, shuffled: the same number of each type, or one per subject where there are fewer.

    Their metadata holds the hops, the type, and the titles of the articles to read, in the order of the hops.
    """
    asked: list[tuple[str, str]] = []  # question type, subject
    for question_type in QUESTION_TYPES:
        first_relation = relations_of(question_type)[0]
        subjects = [subject for subject, stated in facts.items() if first_relation in stated]
        chosen = rng.sample(subjects, min(QUESTIONS_PER_TYPE[split], len(subjects)))
        asked += [(question_type, subject) for subject in chosen]
    questions = []
    for number, (question_type, subject) in enumerate(rng.sample(asked, len(asked))):
        chain = [subject]
        for relation in relations_of(question_type):
            chain.append(facts[chain[-1]][relation])
        *supporting, answer = chain
        metadata = {"hops": len(supporting), "type": question_type, "supporting": supporting}
        question = QUESTION_TYPES[question_type].format(subject)
        questions.append(Question(f"{split}_{number}", question, (answer,), metadata))
    return questions


def make_world(seed: int) -> World:
    """The world of this seed: same seed, same world."""
    rng = random.Random(seed)
    names_by_split = dict(zip(("train", "dev"), split_names(rng), strict=True))
    facts_by_split = {split: make_facts(rng, names) for split, names in names_by_split.items()}
    return World(facts_by_split, {split: make_questions(rng, facts, split) for split, facts in facts_by_split.items()})


def write_corpus(path: Path, facts: Facts) -> None:
    """Write the articles, sorted by title so that their order tells nothing about the split."""
    articles = (article(title, stated) for title, stated in sorted(facts.items()))
    _write_lines(path, ({"id": str(number), "contents": text} for number, text in enumerate(articles)))


def write_world(world: World, folder: Path) -> None:
    """Write corpus, train and dev files into `folder`, which is made when missing."""
    write_corpus(folder / "corpus.jsonl", world.facts)
    for split, questions in world.questions_by_split.items():
        _write_lines(folder / f"{split}.jsonl", map(asdict, questions))


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(encode_object(record) + b"\n" for record in records))
