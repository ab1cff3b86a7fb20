"""LLM-as-a-judge: a chat model decides whether each answer means the same as a gold answer.

Exact rule: the judge sees question, gold answers and answer, but no passages, at temperature 0, and ends its reply
with "correct" or "incorrect"; an empty answer is wrong without asking. The paper (arXiv 2503.19470) judges final
answers in this way; the prompt here is our own. Replies are kept in a file under the hash of model and messages, so
that no answer is paid for twice. Does not cover: asking before a run whether the judge is there (judge_check.py).
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flashrag.client import check_address
from flashrag.episode import Trajectory
from flashrag.errors import GenerationError, ReSearchError
from flashrag.generator.server import api_key
from flashrag.system.json_lines import KeyedLog, encode_object
from flashrag.system.network import client_settings

INSTRUCTIONS = " ".join(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split())
KEY_VARIABLES = ("JUDGE_API_KEY", "OPENAI_API_KEY")
JUDGE = "llm_judge"  # the name of a verdict among the metrics of a trajectory: 1.0 or 0.0
_VERDICT = re.compile(r"\b(in)?correct\b", re.IGNORECASE)


class JudgeSettings(BaseModel):
    """An endpoint and its limits; its key comes from the environment (JUDGE_API_KEY, else OPENAI_API_KEY)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(partial(check_address, key="judge.url"))] = Field(
        "https://api.openai.com/v1", description="base address of the chat completions route"
    )
    model: str = Field(min_length=1, description="name of the judging model")
    concurrency: int = Field(16, ge=1, description="requests to the judge at once")
    requests_per_minute: float | None = Field(None, gt=0, description="limit of requests to the judge; null: none")
    timeout_s: float = Field(60.0, gt=0, description="limit of one request to the judge")
    max_retries: int = Field(5, ge=0, description="retries of a failed request to the judge")

    def share(self, processes: int) -> Self:
        """The limits of one of several processes that ask at once."""
        per_minute = self.requests_per_minute and self.requests_per_minute / processes
        update = {"concurrency": max(1, self.concurrency // processes), "requests_per_minute": per_minute}
        return self.model_copy(update=update)


def _replies(path: Path) -> KeyedLog[dict[str, Any]]:
    return KeyedLog(path, itemgetter("key"), encode_object, json.loads)


class JudgeError(ReSearchError):
    """The judge gave no usable verdict within the allowed attempts."""


def judge_messages(trajectory: Trajectory) -> list[dict[str, str]]:
    """The messages to the judge. All texts are JSON strings, so that an answer cannot pass for an instruction."""
    t = trajectory
    case = {"question": t.question, "reference_answers": list(t.gold_answers), "submitted_answer": t.answer}
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": json.dumps(case, ensure_ascii=False, indent=1)},
    ]


def parse_verdict(reply: str) -> bool | None:
    """The last verdict in a reply, None if there is none.

    >>> parse_verdict("Incorrect."), parse_verdict("It is **correct**"), parse_verdict("Maybe")
    (False, True, None)
    """
    found = list(_VERDICT.finditer(reply))
    return found[-1][1] is None if found else None


class Judge:
    """Asks one endpoint, and saves its replies in `path`; safe for coroutines of one event loop.

    `earlier` are files of replies that other processes have written.
    """

    def __init__(self, settings: JudgeSettings, path: Path, earlier: Iterable[Path] = ()) -> None:
        self.settings = settings
        self._log = _replies(path)
        self._earlier = [_replies(other) for other in earlier]
        self._gate = asyncio.Semaphore(settings.concurrency)
        self._next_request = 0.0  # monotonic seconds
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._client: Any = None

    def known_verdict(self, trajectory: Trajectory) -> bool | None:
        """The verdict on an answer that is empty or was judged before; None for any other answer."""
        if not trajectory.answer.strip():
            return False
        key = [self._key(trajectory)]
        for line in chain.from_iterable(log.read(key) for log in (self._log, *self._earlier)):
            return line["verdict"]
        return None

    async def verdict(self, trajectory: Trajectory) -> bool:
        """The verdict on an answer; asks the judge unless the verdict is known. Raises `JudgeError`.

        Who asks while the same answer is being judged gets the same verdict.
        """
        known = self.known_verdict(trajectory)
        if known is not None:
            return known
        key = self._key(trajectory)
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._judged(trajectory))
            self._asked[key].add_done_callback(lambda _: self._asked.pop(key))
        return await self._asked[key]

    async def _judged(self, trajectory: Trajectory) -> bool:
        async with self._gate:
            reply = await self._ask(judge_messages(trajectory))
        verdict = parse_verdict(reply)
        if verdict is None:
            raise JudgeError(f"{self.settings.model} replied {reply[:200]!r}; expected correct or incorrect")
        asked = {"key": self._key(trajectory), "id": trajectory.question_id, "model": self.settings.model}
        self._log.append({**asked, "reply": reply, "verdict": verdict})
        return verdict

    async def verdicts(
        self, trajectories: Sequence[Trajectory], on_done: Callable[[], object]
    ) -> dict[str, JudgeError]:
        """Ask for a verdict on each answer; returns the failures by question id. A later run asks for those again."""
        failures: dict[str, JudgeError] = {}

        async def ask(trajectory: Trajectory) -> None:
            try:
                await self.verdict(trajectory)
            except JudgeError as error:
                failures[trajectory.question_id] = error
            on_done()

        try:
            async with asyncio.TaskGroup() as group:
                for trajectory in trajectories:
                    group.create_task(ask(trajectory))
        finally:
            if self._client is not None:
                await self._client.close()
        return failures

    async def _ask(self, messages: list[dict[str, str]]) -> str:
        import openai

        from flashrag.generator import with_retries

        settings = self.settings
        if self._client is None:
            key = api_key(*KEY_VARIABLES) or "EMPTY"
            self._client = openai.AsyncOpenAI(
                base_url=settings.url,
                api_key=key,
                timeout=settings.timeout_s,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(**client_settings(settings.url)),
            )

        async def request() -> str:
            await self._turn()
            completion = await self._client.chat.completions.create(
                model=settings.model, messages=messages, temperature=0.0
            )
            if not getattr(completion, "choices", None):
                raise ValueError("the reply holds no choice")
            return completion.choices[0].message.content or ""

        try:
            return await with_retries(request, f"{settings.url}/chat/completions", settings.max_retries)
        except GenerationError as error:
            raise JudgeError(str(error)) from error

    async def _turn(self) -> None:
        """Wait so that the requests keep their distance."""
        per_minute = self.settings.requests_per_minute
        if per_minute is not None:
            now = time.monotonic()
            turn = max(now, self._next_request)
            self._next_request = turn + 60.0 / per_minute
            await asyncio.sleep(turn - now)

    def _key(self, trajectory: Trajectory) -> str:
        content = json.dumps([self.settings.model, judge_messages(trajectory)], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", errors="replace")).hexdigest()
