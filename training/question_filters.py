"""Which train questions a preparation leaves out, and how many of each set.

The client and the trajectories are imported where they are needed: the command starts a second sooner without them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from flashrag.errors import UserError
from flashrag.metrics import answer_in_top_k, exact_match
from flashrag.preflight import Finding, error, note
from flashrag.questions import Question, same_question_key
from flashrag.system.arguments import flag, in_range
from training.question_sets import QuestionSet, set_name

Keeps = Callable[[Question], bool]
FILTERS = "train questions to keep"  # flags
SEARCHED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """The flags that leave out train questions."""

    max_question_words: int | None = flag(
        "(default: any; training leaves out what exceeds its --max_prompt_length)",
        None, type=in_range(int, 1), group=FILTERS,
    )  # fmt: skip
    max_answer_words: int | None = flag(
        "of the shortest gold answer (default: any)", None, type=in_range(int, 1), group=FILTERS
    )
    pass_rate_from: Path | None = flag(
        "folder of a training run or an evaluation; a question that it did not answer is left out (default: none)",
        None, group=FILTERS,
    )  # fmt: skip
    min_pass_rate: float = flag("share of right answers there", 0.0, type=in_range(float, 0, 1), group=FILTERS)
    max_pass_rate: float = flag("share of right answers there", 1.0, type=in_range(float, 0, 1), group=FILTERS)
    search_url: str | None = flag(
        "retrieval server that must find a passage with a gold answer for the question as it stands; yes/no questions "
        "stay (default: none)",
        None, metavar="URL", group=FILTERS,
    )  # fmt: skip
    search_top_n: int = flag("passages to find", 5, type=in_range(int, 1), group=FILTERS)

    def filters(self) -> dict[str, Keeps]:
        """All but the search, by the reason for which they leave out a question."""
        filters: dict[str, Keeps] = {}
        if (most := self.max_question_words) is not None:
            filters[f"longer than {most} words"] = lambda question: len(question.question.split()) <= most
        if (longest := self.max_answer_words) is not None:
            filters[f"without a gold answer of at most {longest} words"] = lambda question: any(
                0 < len(answer.split()) <= longest for answer in question.golden_answers
            )
        if (run := self.pass_rate_from) is not None:
            rates, low, high = pass_rates(run), self.min_pass_rate, self.max_pass_rate
            filters[f"not answered in {run}"] = lambda question: same_question_key(question.question) in rates
            filters[f"right there less than {low:g} or more than {high:g} of the time"] = lambda question: (
                low <= rates[same_question_key(question.question)] <= high
            )
        return filters


def not_among(others: Iterable[Question]) -> Keeps:
    keys = {same_question_key(question.question) for question in others}
    return lambda question: same_question_key(question.question) not in keys


class Selection(NamedTuple):
    """The questions that were kept, and how many were left out, by reason and set."""

    kept: list[Question]
    left_out: Mapping[str, Counter[str]]

    def findings(self, sets: Iterable[QuestionSet]) -> Iterator[Finding]:
        """A note on each reason, and an error for each set of which no question is left."""
        for reason, counts in self.left_out.items():
            yield note(f"left out {counts.total()} train questions that are {reason} ({in_words(counts)})")
        left = Counter(map(set_name, self.kept))
        for name in dict.fromkeys(one.name for one in sets if not left[one.name]):
            reasons = [f"{counts[name]} are {reason}" for reason, counts in self.left_out.items() if counts[name]]
            why = ", ".join(reasons) or "--hold_out takes all"
            yield error(f"no train question of {name} is left: {why}; leave out fewer, or give another set")


def in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def select(questions: Sequence[Question], filters: Mapping[str, Keeps]) -> Selection:
    """The questions that every filter keeps. The name of a filter is the reason for which it leaves out the others."""
    kept, left_out = [], defaultdict(Counter)
    for question in questions:
        reason = next((reason for reason, keeps in filters.items() if not keeps(question)), None)
        if reason is None:
            kept.append(question)
        else:
            left_out[reason][set_name(question)] += 1
    return Selection(kept, left_out)


def pass_rates(run: Path) -> dict[str, float]:
    """The share of right answers among the trajectories of each question of a run, by `same_question_key`.

    The run is a training's or an evaluation's; right is an exact match. A trajectory that ended by an error, a failed
    search or the engine's abort is no attempt. Raises `UserError` for a folder without attempts.
    """
    from flashrag.episode import EndReason
    from verl_search.rollout.trajectories import read_run

    attempts: dict[str, list[float]] = defaultdict(list)
    no_attempt = (EndReason.SEARCH_FAILED, EndReason.ABORTED)
    for trajectory in tqdm(read_run(run), unit=" trajectories", delay=1):
        if not trajectory.failed and trajectory.end_reason not in no_attempt:
            right = exact_match(trajectory.answer, trajectory.gold_answers)
            attempts[same_question_key(trajectory.question)].append(right)
    if not attempts:
        raise UserError(
            f"--pass_rate_from {run} holds no answered question; expected the folder of a training run (trajectories/) "
            "or of an evaluation (items.jsonl)"
        )
    return {key: sum(right) / len(right) for key, right in attempts.items()}


async def answers_found(questions: Sequence[Question], url: str, top_n: int) -> dict[int, float | None]:
    """Whether a search with each question finds a passage that holds a gold answer, by the question's `id()`.

    None for a yes/no question. Raises `SearchError` where a search gets no answer.
    """
    from flashrag.client import RetrievalClient

    found: dict[int, float | None] = {}
    async with RetrievalClient(url, top_n=top_n) as client:
        with tqdm(total=len(questions), unit=" questions", desc="search") as bar:
            for start in range(0, len(questions), SEARCHED_AT_ONCE):
                part = questions[start : start + SEARCHED_AT_ONCE]
                for question, hits in zip(part, await client.batch_search([q.question for q in part]), strict=True):
                    passages = [hit.document.contents for hit in hits]
                    found[id(question)] = answer_in_top_k([passages], question.golden_answers)
                bar.update(len(part))
    return found
