"""The transcripts of a warm start, from one of two sources: rules over questions, or the good trajectories of runs.

A transcript is a trajectory that is right: it ended by itself, its format is valid, and its answer is a gold answer.
Its token ids are trained on as they are, so they must come from the tokenizer of the model that is trained.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from flashrag.episode import EndReason, EpisodeCodec, Source, Trajectory
from flashrag.errors import UserError
from flashrag.questions import Question, same_question_key
from flashrag.system.files import staged
from training.warm_start.rules import Rules, write_transcript
from verl_search.rollout.trajectories import read_file, read_run

AT_ONCE = 16  # questions that search at the same time
ENDED = (EndReason.EOS, EndReason.ANSWERED)


def is_good(trajectory: Trajectory) -> bool:
    """Whether a trajectory is worth imitating."""
    return (
        trajectory.end_reason in ENDED
        and trajectory.format_valid is True
        and trajectory.metrics.get("em") == 1.0
        and bool(trajectory.prompt_ids)
    )


def write_by_rules(
    questions: Sequence[Question], rules: Rules, count: int, direct_share: float, seed: int
) -> list[Trajectory]:
    """Up to `count` transcripts, one for a question, of questions in a seeded order.

    At most `direct_share` of them answer at once; those are questions whose answer no search finds.
    Raises `SearchError` if the server does not answer.
    """
    shuffled = random.Random(seed).sample(questions, len(questions))

    async def write() -> list[Trajectory]:
        async with rules.client:
            return await _write_by_rules(shuffled, rules, count, round(count * direct_share))

    transcripts = asyncio.run(write())
    # Where there were fewer questions than wanted, too many of them may answer at once.
    surplus = _surplus(sum(not one.calls for one in transcripts), len(transcripts), direct_share)
    direct = [one.question_id for one in transcripts if not one.calls]
    left_out = set(direct[len(direct) - surplus :])
    return [one for one in transcripts if one.question_id not in left_out]


def _surplus(direct: int, total: int, share: float) -> int:
    """How many of `direct` must go, so that they are at most `share` of what is left of `total`."""
    return next(fewer for fewer in range(direct + 1) if direct - fewer <= share * (total - fewer))


async def _write_by_rules(
    questions: Sequence[Question], rules: Rules, count: int, direct_count: int
) -> list[Trajectory]:
    kept: list[Trajectory] = []
    direct = 0
    with tqdm(total=count, desc="transcripts", unit="") as progress:
        for start in range(0, len(questions), AT_ONCE):
            some = questions[start : start + AT_ONCE]
            searched = await asyncio.gather(*(write_transcript(question, rules) for question in some))
            for question, transcript in zip(some, searched, strict=True):
                if not is_good(transcript):
                    if direct == direct_count:
                        continue
                    transcript = await write_transcript(question, rules, knows=True)
                    if not is_good(transcript):
                        continue
                    direct += 1
                kept.append(transcript)
                progress.update()
                if len(kept) == count:
                    return kept
    return kept


def read_sources(paths: Iterable[Path]) -> Iterator[Trajectory]:
    """The trajectories of training runs' and evaluations' folders, and of files of JSON lines."""
    for path in paths:
        yield from read_file(path) if path.is_file() else read_run(path)


def asked(trajectory: Trajectory) -> str:
    """The question, by its words: ids repeat from one data set to the next."""
    return same_question_key(trajectory.question)


def choose_good(trajectories: Iterable[Trajectory], count: int, each: int, seed: int) -> list[Trajectory]:
    """Up to `count` good trajectories, at most `each` of a question, no text twice; a seeded choice among them."""
    good = {(asked(one), "".join(part.text for part in one.segments)): one for one in trajectories if is_good(one)}
    chosen, of_question = [], Counter()
    for trajectory in random.Random(seed).sample(list(good.values()), len(good)):
        if of_question[asked(trajectory)] < each and len(chosen) < count:
            of_question[asked(trajectory)] += 1
            chosen.append(trajectory)
    return chosen


def check_ids(transcripts: Iterable[Trajectory], codec: EpisodeCodec) -> None:
    """Raise `UserError` unless the ids of every sampled segment decode to its text with this tokenizer."""
    for transcript in transcripts:
        for segment in transcript.segments:
            if segment.source is Source.MODEL and codec.decode_sampled(segment.token_ids) != segment.text:
                raise UserError(
                    f"--trajectories: the token ids of question {transcript.question_id} are another tokenizer's; give "
                    "trajectories of the model that is trained, or one with the same tokenizer"
                )


def held_out_count(count: int, share: float, batch: int) -> int:
    """How many of `count` transcripts are held out: whole batches, as upstream measures no others, and never the last.

    >>> held_out_count(800, 0.05, 8), held_out_count(14, 0.3, 8), held_out_count(20, 0.0, 8)
    (40, 0, 0)
    """
    return max(0, min(round(count * share / batch), count // batch - 1)) * batch


def parted(
    transcripts: Sequence[Trajectory], share: float, batch: int, most_tokens: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """The transcripts to train on, and those to measure the loss on; no question is in both.

    Raises `UserError` for fewer than a batch, and for one that is longer than a micro-batch may be.
    """
    if too_long := next((one for one in transcripts if token_count(one) > most_tokens), None):
        raise UserError(
            f"the transcript of question {too_long.question_id} has {token_count(too_long)} tokens, more than "
            f"data.max_token_len_per_gpu={most_tokens}; raise that, or lower --max_result_tokens or --top_n"
        )
    held_out = list(transcripts[: held_out_count(len(transcripts), share, batch)])
    measured = {asked(one) for one in held_out}
    train = [one for one in transcripts[len(held_out) :] if asked(one) not in measured]
    if len(train) < batch:
        raise UserError(
            f"{len(train)} transcripts were made to train on, fewer than data.train_batch_size={batch}; lower it, or "
            "give more questions or trajectories"
        )
    return train, held_out


def token_count(transcript: Trajectory) -> int:
    """Tokens of prompt and response."""
    return len(transcript.prompt_ids) + sum(len(segment.token_ids) for segment in transcript.segments)


def write_transcripts(path: Path, transcripts: Iterable[Trajectory]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    with staged(path) as unfinished:
        unfinished.write_bytes(b"".join(transcript.to_json() + b"\n" for transcript in transcripts))


def describe(transcripts: Sequence[Trajectory]) -> str:
    """The transcripts in a line: how many, and by how many searches."""
    searches = Counter(transcript.usage.searches for transcript in transcripts)
    shares = ", ".join(f"{number} with {count} searches" for count, number in sorted(searches.items()))
    return f"{len(transcripts)} transcripts: {shares}" if transcripts else "no transcripts"
