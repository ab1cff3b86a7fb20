"""Transcripts over random worlds: what the demo's base model is pretrained on.

Every transcript draws new facts for the whole name pool, so nothing about the demo world can be learnt from them: only
the tags, copying, and the habits of an imperfect searcher. A transcript is a list of segments; spliced results are not
learnt. `perfect=True` gives the transcripts of a searcher that does every hop; otherwise it mostly guesses at once or
stops after the first article, and sometimes breaks the format.
"""

import random
from typing import NamedTuple

from training.demo.base_names import BANDS, CITIES, COUNTRIES, FIRST_NAMES, JOBS, LAST_NAMES, RIVERS
from training.demo.world import ARTICLE_RELATIONS, QUESTION_TYPES, article, relations_of, statement

OBJECTS = {"birthplace": CITIES, "home": CITIES, "country": COUNTRIES, "river": RIVERS, "job": JOBS}
SUBJECT_KIND = {relation: kind for kind, relations in ARTICLE_RELATIONS.items() for relation in relations}
TWO_HOP_SHARE = 0.65

# The habits of the imperfect searcher, as shares of its transcripts.
GUESSES_TWO_HOPS_AT_ONCE = 0.25
STOPS_AFTER_FIRST_HOP = 0.53
# It believes that it knows some things by heart: it mostly guesses these, and looks up the others.
GUESSES_ONE_HOP = {"country": 0.60, "river": 0.60, "birthplace": 0.25, "leader": 0.25, "home": 0.25}
LEAVES_THINK_OPEN = 0.07
LEAVES_ANSWER_UNBOXED = 0.05

# The simulated searches, as shares of all of them.
EMPTY_QUERY = 0.01
NO_RESULTS = 0.01
THREE_DOCUMENTS = 0.10  # two otherwise
GOLD_FIRST = 0.86
GOLD_LATER = 0.11

NOTHING_FOUND = "The search found nothing."


class Segment(NamedTuple):
    """A piece of a transcript; `learnt` is False for what the model would not sample."""

    text: str
    learnt: bool


class Transcript(NamedTuple):
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
        return self.person() if relation == "leader" else self.rng.choice(OBJECTS[relation])

    def stated(self, kind: str, title: str, **fixed: str) -> dict[str, str]:
        """The facts of this title, drawn now if new; `fixed` decides some of them."""
        if title not in self.facts:
            self.facts[title] = {relation: self.value(relation) for relation in ARTICLE_RELATIONS[kind]} | fixed
        return self.facts[title]

    def look_alike(self, kind: str, title: str) -> str:
        """The title of an article that a sentence encoder would confuse with this one; it may be far off, too."""
        draw = self.rng.random()
        if kind == "person" and draw < 0.75:  # the same first name, or the same last name
            first, last = title.split()
            other = f"{first} {self.rng.choice(LAST_NAMES)}" if draw < 0.5 else f"{self.rng.choice(FIRST_NAMES)} {last}"
            self.stated("person", other)
            return other
        fixed = {}
        if kind == "person" and draw < 0.85:
            kind, fixed = "band", {"leader": title}
        elif kind == "city" and draw < 0.5:
            kind, fixed = "person", {"birthplace": title}
        elif kind == "city" and draw < 0.6:
            kind, fixed = "band", {"home": title}
        elif draw >= 0.9:
            kind = self.rng.choice(list(ARTICLE_RELATIONS))
        other = self.subject(kind)
        self.stated(kind, other, **fixed)
        return other

    def search(self, kind: str, title: str) -> tuple[str, bool]:
        """The text between the result tags, and whether the article of this title is in it."""
        if self.rng.random() < NO_RESULTS:
            return "No results found.", False
        count = 3 if self.rng.random() < THREE_DOCUMENTS else 2
        titles: list[str] = []
        while len(titles) < count:
            other = self.look_alike(kind, title)
            if other != title and other not in titles:
                titles.append(other)
        draw = self.rng.random()
        found = draw < GOLD_FIRST + GOLD_LATER
        if found:
            titles.pop()
            titles.insert(0 if draw < GOLD_FIRST else self.rng.randint(1, count - 1), title)
        return "\n\n".join(article(each, self.facts[each]) for each in titles), found


def searches_to_do(rng: random.Random, question_type: str, perfect: bool) -> int:
    """How many hops the searcher does before it answers."""
    draw = rng.random()
    hops = len(relations_of(question_type))
    if perfect:
        return hops
    if hops == 1:
        return 0 if draw < GUESSES_ONE_HOP[question_type] else 1
    if draw < GUESSES_TWO_HOPS_AT_ONCE:
        return 0
    return 1 if draw < GUESSES_TWO_HOPS_AT_ONCE + STOPS_AFTER_FIRST_HOP else 2


def end_of_response(rng: random.Random, answer: str, perfect: bool) -> str:
    """The end of the last think block and the answer block, in the imperfect case with a flaw now and then."""
    draw = 1.0 if perfect else rng.random()
    close = "" if draw < LEAVES_THINK_OPEN else " </think>"
    unboxed = LEAVES_THINK_OPEN <= draw < LEAVES_THINK_OPEN + LEAVES_ANSWER_UNBOXED
    shown = answer if unboxed else f"\\boxed{{ {answer} }}"
    return f"{close} <answer> The final answer is \\[ {shown} \\] </answer>"


def draw_transcript(rng: random.Random, perfect: bool) -> Transcript:
    """One question and the searcher's whole response to it, over facts of its own."""
    hops = 2 if rng.random() < TWO_HOP_SHARE else 1
    question_type = rng.choice([each for each in QUESTION_TYPES if len(relations_of(each)) == hops])
    relations = relations_of(question_type)
    world = RandomWorld(rng)
    subject = current = world.subject(SUBJECT_KIND[relations[0]])
    segments: list[Segment] = []
    to_do = searches_to_do(rng, question_type, perfect)
    thought = "" if to_do else " I know the answer."
    answer = world.value(relations[-1])
    for relation in relations[:to_do]:
        kind = SUBJECT_KIND[relation]
        value = world.stated(kind, current)[relation]
        thought += f" I need to search for {current}."
        if rng.random() < EMPTY_QUERY:
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
    segments.append(Segment(f" <think>{thought}{end_of_response(rng, answer, perfect)}", True))
    return Transcript(QUESTION_TYPES[question_type].format(subject), tuple(segments))
