"""The search episode, token-exact: prompt + [model segment | result segment]*, for training and evaluation alike.

    dialect.py      the tags of a family of models, and the format of a result
    episode.py      the episode: segments with the source of every token, ids, loss mask, invariants
    run.py          the loop that runs an episode: sample, call a tool, splice in its result, repeat
    tool.py         the tools that a model can call, and the parser of its calls
    foreign.py      texts from outside: no control token comes out of them
    result.py       fits foreign text into a token budget
    format_rule.py  finds the answer and checks the format
    prompt_ids.py   the token ids that a model starts from
    record.py       the trajectory: the saved record of one question
    watch.py        an answer as it comes, for people; terminal.py shows it in a terminal

Light to import: no torch, no transformers.
"""

from flashrag.episode.dialect import DIALECTS, PYTHON, RESEARCH, SEARCH_O1, SEARCH_R1, Dialect
from flashrag.episode.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    Generation,
    InvariantViolation,
    Limits,
    Segment,
    Source,
    ToolCall,
    check_invariants,
    loss_mask,
)
from flashrag.episode.foreign import neutralize
from flashrag.episode.format_rule import FormatFault, find_answer, find_format_fault
from flashrag.episode.prompt_ids import encode_prompt, prompt_note, prompt_rule, prompt_token_ids
from flashrag.episode.record import FAILED, ITERATIONS, Failure, Step, StepKind, Trajectory, Usage, steps
from flashrag.episode.result import fit_result
from flashrag.episode.run import run_episode
from flashrag.episode.tool import MAX_QUERY_CHARS, Tool, ToolResult, calls_left
from flashrag.episode.watch import LiveSteps, Piece, Watcher

__all__ = [
    "DIALECTS",
    "FAILED",
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
    "Failure",
    "FormatFault",
    "Generation",
    "InvariantViolation",
    "Limits",
    "LiveSteps",
    "Piece",
    "Segment",
    "Source",
    "Step",
    "StepKind",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Trajectory",
    "Usage",
    "Watcher",
    "calls_left",
    "check_invariants",
    "encode_prompt",
    "find_answer",
    "find_format_fault",
    "fit_result",
    "loss_mask",
    "neutralize",
    "prompt_note",
    "prompt_rule",
    "prompt_token_ids",
    "run_episode",
    "steps",
]
