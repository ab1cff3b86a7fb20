"""Transcripts over random worlds: what the demo's base model is pretrained on.

Every transcript draws new facts for the whole name pool, so nothing about the demo world can be learnt from them: only
the tags, copying, and the habits of an imperfect searcher. A transcript is a list of segments; spliced results are not
learnt. `perfect=True` gives the transcripts of a searcher that does every hop; otherwise it mostly guesses at once or
stops after the first article, and sometimes breaks the format (`HABITS`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.demo.base_names import BANDS, CITIES, COUNTRIES, FIRST_NAMES, JOBS, LAST_NAMES, RIVERS
from training.demo.world import (
    ARTICLE_RELATIONS,
    ONE_HOP_TYPES,
    QUESTION_TYPES,
    TWO_HOP_TYPES,
    article_text,
    contents,
    statement,
)

RELATION_VALUES = {
    "birthplace": CITIES,
    "home": CITIES,
    "country": COUNTRIES,
    "river": RIVERS,
    "job": JOBS,
}
SUBJECT_KIND = {
    "birthplace": "person",
    "leader": "band",
    "home": "band",
    "country": "city",
    "river": "city",
}


@dataclass(frozen=True)
class Habits:
    """How often the imperfect searcher does what (shares of transcripts)."""

    guess_at_once_two_hop: float = 0.25
    stop_after_first_hop: float = 0.53
    # The searcher believes that it knows some things by heart: these types it mostly guesses, the others it looks up.
    known_by_heart: tuple[str, ...] = ("country", "river")
    guess_known_by_heart: float = 0.60
    guess_otherwise: float = 0.25
    unclosed_think: float = 0.07
    unboxed_answer: float = 0.05
    two_hop_share: float = 0.65


@dataclass(frozen=True)
class Searches:
    """What the simulated retrieval returns (shares of searches)."""

    gold_first: float = 0.86
    gold_later: float = 0.11
    three_documents: float = 0.10
    empty_query: float = 0.01


HABITS = Habits()
SEARCHES = Searches()

NOTHING_FOUND = "The search found nothing."


@dataclass(frozen=True)
class Segment:
    """A piece of a transcript; `learnt` is False for what the model would not sample."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Transcript:
    question: str
    segments: tuple[Segment, ...]

    @property
    def response(self) -> str:
        return "".join(segment.text for segment in self.segments)


class RandomWorld:
    """Facts that are drawn when they are first asked for, and a retrieval that returns look-alikes of the title."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.facts: dict[str, dict[str, str]] = {}

    def person(self) -> str:
        return f"{self.rng.choice(FIRST_NAMES)} {self.rng.choice(LAST_NAMES)}"

    def subject(self, kind: str) -> str:
        return self.person() if kind == "person" else self.rng.choice(CITIES if kind == "city" else BANDS)

    def value(self, relation: str) -> str:
        return self.person() if relation == "leader" else self.rng.choice(RELATION_VALUES[relation])

    def article(self, kind: str, title: str, **stated: str) -> dict[str, str]:
        """The facts of this title, drawn now if new; `stated` fixes some of them."""
        if title not in self.facts:
            self.facts[title] = {relation: self.value(relation) for relation in ARTICLE_RELATIONS[kind]} | stated
        return self.facts[title]

    def document(self, title: str) -> str:
        return contents(title, article_text(self.facts[title], title))

    def look_alike(self, kind: str, title: str) -> str:
        """The title of an article that a sentence encoder would confuse with this one; it may be far off, too."""
        draw = self.rng.random()
        if kind == "person" and draw < 0.75:
            first, last = title.split()
            other = f"{first} {self.rng.choice(LAST_NAMES)}" if draw < 0.5 else f"{self.rng.choice(FIRST_NAMES)} {last}"
            self.article("person", other)
        elif kind == "person" and draw < 0.85:
            other = self.rng.choice(BANDS)
            self.article("band", other, leader=title)
        elif kind == "city" and draw < 0.5:
            other = self.person()
            self.article("person", other, birthplace=title)
        elif kind == "city" and draw < 0.6:
            other = self.rng.choice(BANDS)
            self.article("band", other, home=title)
        else:
            other_kind = kind if draw < 0.9 else self.rng.choice(list(ARTICLE_RELATIONS))
            other = self.subject(other_kind)
            self.article(other_kind, other)
        return other

    def search(self, kind: str, title: str) -> tuple[str, bool]:
        """The text between the result tags, and whether the article of this title is in it."""
        if self.rng.random() < 0.01:
            return "No results found.", False
        count = 3 if self.rng.random() < SEARCHES.three_documents else 2
        others: list[str] = []
        while len(others) < count:
            other = self.look_alike(kind, title)
            if other != title and other not in others:
                others.append(other)
        draw = self.rng.random()
        if draw < SEARCHES.gold_first:
            titles = [title, *others[:-1]]
        elif draw < SEARCHES.gold_first + SEARCHES.gold_later:
            titles = others[:-1]
            titles.insert(self.rng.randint(1, count - 1), title)
        else:
            titles = others
        return "\n\n".join(self.document(each) for each in titles), title in titles


def searches_to_do(rng: random.Random, question_type: str, perfect: bool) -> int:
    """How many hops the searcher does before it answers."""
    hops = len(QUESTION_TYPES[question_type][0])
    draw = rng.random()
    if perfect:
        return hops
    if hops == 1:
        by_heart = question_type in HABITS.known_by_heart
        return 0 if draw < (HABITS.guess_known_by_heart if by_heart else HABITS.guess_otherwise) else 1
    if draw < HABITS.guess_at_once_two_hop:
        return 0
    return 1 if draw < HABITS.guess_at_once_two_hop + HABITS.stop_after_first_hop else 2


def answer_text(rng: random.Random, value: str, perfect: bool) -> str:
    """The end of the last think block and the answer block, in the imperfect case with a flaw now and then."""
    draw = 1.0 if perfect else rng.random()
    close = "" if draw < HABITS.unclosed_think else " </think>"
    boxed = f"\\boxed{{ {value} }}"
    if HABITS.unclosed_think <= draw < HABITS.unclosed_think + HABITS.unboxed_answer:
        boxed = value
    return f"{close} <answer> The final answer is \\[ {boxed} \\] </answer>"


def draw_transcript(rng: random.Random, perfect: bool) -> Transcript:
    """One question and the searcher's whole response to it, over facts of its own."""
    question_type = rng.choice(list(TWO_HOP_TYPES if rng.random() < HABITS.two_hop_share else ONE_HOP_TYPES))
    relations, wording = QUESTION_TYPES[question_type]
    world = RandomWorld(rng)
    subject = current = world.subject(SUBJECT_KIND[relations[0]])
    segments: list[Segment] = []
    to_do = searches_to_do(rng, question_type, perfect)
    thought = "" if to_do else " I know the answer."
    answer = world.value(relations[-1])
    for relation in relations[:to_do]:
        kind = SUBJECT_KIND[relation]
        value = world.article(kind, current)[relation]
        thought += f" I need to search for {current}."
        if rng.random() < SEARCHES.empty_query:
            segments.append(Segment(f" <think>{thought} </think> <search> </search>", False))
            segments.append(Segment(" <result>\nThe search query was empty.\n</result>", False))
            thought = f" {NOTHING_FOUND} I need to search for {current}."
        segments.append(Segment(f" <think>{thought} </think> <search> {current} </search>", True))
        result, found = world.search(kind, current)
        segments.append(Segment(f" <result>\n{result}\n</result>", False))
        if not found:
            thought = f" {NOTHING_FOUND}"
            answer = world.value(relations[-1])
            break
        thought = f" {statement(relation, current, value)}"
        current = answer = value
    segments.append(Segment(f" <think>{thought}{answer_text(rng, answer, perfect)}", True))
    return Transcript(wording.format(subject), tuple(segments))


def draw_transcripts(rng: random.Random, count: int, perfect: bool) -> Sequence[Transcript]:
    return [draw_transcript(rng, perfect) for _ in range(count)]
