"""Whether a judge is there, asked once and for seconds before a run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from flashrag.generator.server import api_key
from flashrag.preflight import Finding, error, warning
from flashrag.reward.judge import KEY_VARIABLES, JudgeSettings
from flashrag.system.network import ask, detour

ANSWER_S = 5.0
OPENAI_HOST = "api.openai.com"


class JudgeReply(NamedTuple):
    """What the judge's server says to a request for its models: a status, or a problem; and the models' names."""

    status: int | None
    problem: str | None
    models: tuple[str, ...]


def ask_judge(settings: JudgeSettings) -> JudgeReply:
    headers = {"Authorization": f"Bearer {api_key(*KEY_VARIABLES) or 'EMPTY'}"}
    url = f"{settings.url}/models"
    try:
        reply = ask(url, timeout_s=ANSWER_S, headers=headers)
    except httpx.HTTPError as error:
        return JudgeReply(None, f"{type(error).__name__} {error}".strip() + detour(url), ())
    try:
        names = tuple(str(card["id"]) for card in reply.json()["data"])
    except (ValueError, KeyError, TypeError):
        names = ()
    return JudgeReply(reply.status_code, None, names)


def judge_findings(
    key: str, judge: JudgeSettings, reply: JudgeReply, absent: Callable[[str], Finding]
) -> Iterator[Finding]:
    """What is wrong with a judge; `key` is that of its settings, and `absent` how bad it is if it does not answer."""
    names = " or ".join(KEY_VARIABLES)
    if api_key(*KEY_VARIABLES) is None and urlsplit(judge.url).hostname == OPENAI_HOST:
        yield error(f"{key}.url={judge.url} needs a key; put it into {names}")
    elif reply.problem:
        yield absent(f"{key}.url={judge.url} does not answer ({reply.problem}); start it, or repeat the command later")
    elif reply.status in (401, 403):
        yield error(f"{key}.url={judge.url} answered {reply.status}; put its key into {names}")
    elif reply.models and judge.model not in reply.models:
        yield warning(
            f"{key}.model={judge.model!r} is not among the models of {judge.url}: {', '.join(reply.models[:5])}"
        )
