"""The search episode, token-exact: prompt + [model segment | result segment]*, for training and evaluation alike.

    dialect.py      the tags of a family of models, and how a result looks to them
    episode.py      the episode: segments with the source of every token, ids, loss mask, invariants
    run.py          how an episode comes about: sample, call a tool, splice its result, go on
    tool.py         what a model can call, and how a call is found in what it wrote
    result.py       foreign text made harmless and fitted into a token budget
    format_rule.py  the answer, and what breaks the format
    prompt_ids.py   the token ids that a model starts from
    record.py       what happened for one question, as it is kept

Light to import: no torch, no transformers.
"""

from flashrag.episode.dialect import PYTHON, RESEARCH, SEARCH_O1, SEARCH_R1, Dialect
from flashrag.episode.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    Generation,
    InvariantViolation,
    Limits,
    SearchRecord,
    Segment,
    Source,
    check_invariants,
)
from flashrag.episode.format_rule import FormatFault, answer_block, boxed_answer
from flashrag.episode.prompt_ids import check_chat_template, encode_prompt, prompt_token_ids
from flashrag.episode.record import ITERATIONS, Outcome, Passage, Step, StepKind, Usage, end_reason_of
from flashrag.episode.result import fit_result, neutralize
from flashrag.episode.run import run_episode
from flashrag.episode.tool import MAX_QUERY_CHARS, Tool, ToolResult

__all__ = [
    "ITERATIONS",
    "MAX_QUERY_CHARS",
    "PYTHON",
    "RESEARCH",
    "SEARCH_O1",
    "SEARCH_R1",
    "Dialect",
    "EndReason",
    "Episode",
    "EpisodeCodec",
    "FormatFault",
    "Generation",
    "InvariantViolation",
    "Limits",
    "Outcome",
    "Passage",
    "SearchRecord",
    "Segment",
    "Source",
    "Step",
    "StepKind",
    "Tool",
    "ToolResult",
    "Usage",
    "answer_block",
    "boxed_answer",
    "check_chat_template",
    "check_invariants",
    "encode_prompt",
    "end_reason_of",
    "fit_result",
    "neutralize",
    "prompt_token_ids",
    "run_episode",
]
