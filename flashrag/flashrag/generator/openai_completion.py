"""A generator on any OpenAI-compatible server: token ids in and out for episodes, text for every other method.

vLLM, and SGLang in recent releases, return the sampled ids (`return_token_ids`). From a server that returns text only,
the text is encoded with the local tokenizer: `token_id_origin` says which of the two a run saw. A failure that may pass
is tried again (completion.py). Requests go through the client's own `post`: its typed `create` walks over every token
id of a prompt, which costs six times the rest of a request. What servers do differently is evened out here:
SGLang misses a stop string that is spelled in unusual tokens, refuses null values, and dies of an id outside the
vocabulary. Does not cover: rendering a prompt (prompt_ids.py).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import openai

from flashrag.episode import RESEARCH, Dialect, Generation, Watcher
from flashrag.errors import GenerationError
from flashrag.generator.completion import (
    Completion,
    JoinedChoice,
    Reply,
    end_of_stop,
    first_choice,
    matched_stop,
    read_completion,
    with_retries,
)
from flashrag.generator.server import NO_LIMITS, ServerLimits
from flashrag.generator.settings import GeneratorSettings
from flashrag.system.network import client_settings


class TokenIdOrigin(StrEnum):
    """Where the ids of a response come from."""

    SERVER = "server"
    RE_TOKENISED = "re-tokenised"


class OpenAICompletionGenerator:
    """Samples from one served model; safe for any number of coroutines of one event loop.

    `tokenizer` is None for a server that has the chat route only.
    """

    def __init__(
        self,
        settings: GeneratorSettings,
        served_name: str,
        tokenizer: Any,
        eos_token_ids: Sequence[int],
        api_key: str,
        limits: ServerLimits = NO_LIMITS,
    ):
        self.settings = settings
        self.served_name = served_name
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.limits = limits
        self.token_id_origin: TokenIdOrigin | None = None
        self._client = openai.AsyncOpenAI(
            base_url=settings.api_base_url,
            api_key=api_key,
            timeout=settings.generator_timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(**client_settings(settings.api_base_url)),
            max_retries=0,  # the client would not try a cut-off reply again
        )

    async def generate(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        dialect: Dialect = RESEARCH,
        watcher: Watcher | None = None,
    ) -> Generation:
        """Sample at most `max_tokens` tokens after `token_ids`, ending after one of the dialect's stops.

        No token is sampled if the server has no room for one. The reply comes in parts if there is a watcher of its
        text. Raises `GenerationError`.
        """
        if not (allowed := self._allowed_tokens(token_ids, max_tokens)):
            return Generation(())
        body = {
            **self._sampling(allowed),
            **self._beyond_openai(),
            "prompt": list(token_ids),
            "stop": list(dialect.stops),
            "return_token_ids": True,
            # Keep the stop string and special tokens in `text`: vLLM's name for the former, then SGLang's.
            "include_stop_str_in_output": True,
            "no_stop_trim": True,
            "skip_special_tokens": False,
        }
        choice = await self._ask("completions", body, first_choice, watcher)
        return Generation(self._sampled_ids(choice, dialect))

    async def complete(
        self, prompt: str | Sequence[int], max_tokens: int, stop: Sequence[str] = (), *, log_probs: bool = False
    ) -> Completion:
        """The text that continues a prompt, ending before a stop string. Raises `GenerationError`."""
        allowed = max_tokens if isinstance(prompt, str) else self._allowed_tokens(prompt, max_tokens)
        if not allowed:
            return Completion("", "length", len(prompt), 0)
        body = {
            **self._sampling(allowed),
            **self._beyond_openai(),
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "stop": list(stop) or None,
            "logprobs": 1 if log_probs else None,
        }
        return await self._ask("completions", body, partial(read_completion, stops=stop))

    async def chat(
        self,
        messages: Sequence[dict[str, str]],
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        *,
        log_probs: bool = False,
    ) -> Completion:
        """The assistant's next message, ending before a stop string. Raises `GenerationError`.

        A last message of the assistant is continued, where the server can (vLLM, SGLang).
        """
        body = {
            **self._sampling(max_tokens),
            "messages": list(messages),
            "stop": list(stop) or None,
            "logprobs": log_probs or None,
        }
        if messages and messages[-1]["role"] == "assistant":
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        read = partial(read_completion, stops=stop)
        try:
            return await self._ask("chat/completions", body, read)
        except GenerationError as error:
            refusal = error.__cause__
            if not isinstance(refusal, openai.BadRequestError) or "context length" not in refusal.response.text:
                raise
        # Fewer tokens are left than were allowed; where no number is given, a server takes what is left.
        return await self._ask("chat/completions", {**body, "max_tokens": None}, read)

    async def _ask(
        self, route: str, body: dict[str, Any], read: Callable[[Any], Reply], watcher: Watcher | None = None
    ) -> Reply:
        """The result of `read` on the reply; a reply that `read` refuses with `ValueError` is requested again.

        What is None is left out of the request, because SGLang refuses some null values.
        """
        body = {key: value for key, value in body.items() if value is not None}

        async def request() -> Reply:
            if watcher is not None:
                return read(await self._streamed(route, body, watcher))
            return read(await self._client.post(f"/{route}", cast_to=object, body=body))

        return await with_retries(request, f"{self.settings.api_base_url}/{route}", self.settings.generator_max_retries)

    async def _streamed(self, route: str, body: dict[str, Any], watcher: Watcher) -> dict[str, Any]:
        """The reply that the parts of a streamed one make; the watcher sees it up to its first stop string.

        Raises `ValueError` if it breaks off.
        """
        watcher.begins()
        joined, written = JoinedChoice(), ""
        async with await self._client.post(
            f"/{route}", cast_to=object, body={**body, "stream": True}, stream=True, stream_cls=openai.AsyncStream[Any]
        ) as parts:
            async for part in parts:
                if text := joined.add(part):
                    whole = written + (self._without_eos(text) if joined.ended else text)
                    watcher.writes(whole[len(written) : end_of_stop(whole, body["stop"])])
                    written = whole
        return joined.payload()

    def _allowed_tokens(self, prompt_ids: Sequence[int], max_tokens: int) -> int:
        """How many tokens the server may sample; raises `GenerationError` for a prompt that is not for its model."""
        vocabulary, room = self.limits.vocabulary, self.limits.max_tokens
        if vocabulary is not None and (largest := max(prompt_ids, default=0)) >= vocabulary:
            raise GenerationError(
                f"the prompt holds token {largest}, and the model at {self.settings.sgl_remote_url} has {vocabulary}; "
                f"generator_model={self.settings.generator_model} must be the folder of the served model"
            )
        return max_tokens if room is None else max(0, min(max_tokens, room - len(prompt_ids)))

    def _sampling(self, max_tokens: int | None) -> dict[str, Any]:
        """The parameters that every OpenAI-compatible route takes."""
        params = self.settings.generation_params
        limits = [limit for limit in (max_tokens, params.max_tokens) if limit is not None]
        return {
            "model": self.served_name,
            "max_tokens": min(limits, default=None),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": params.seed,
        }

    def _beyond_openai(self) -> dict[str, Any]:
        """The parameters that the completion route of vLLM and SGLang takes beyond OpenAI's."""
        params = self.settings.generation_params
        return {
            # The server must end a sequence where the episode does, whatever configuration it reads.
            "stop_token_ids": list(self.eos_token_ids),
            "top_k": params.top_k or -1,  # SGLang refuses 0, which is vLLM's other word for all tokens
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
        }

    def _sampled_ids(self, choice: dict[str, Any], dialect: Dialect) -> list[int]:
        ids = choice.get("token_ids")
        if ids is not None:
            if self.token_id_origin is None:
                self.token_id_origin = TokenIdOrigin.SERVER
            return self._until_stop(ids, choice.get("text"), dialect)
        self.token_id_origin = TokenIdOrigin.RE_TOKENISED
        return self._encode_response(choice["text"], choice.get("finish_reason"), matched_stop(choice), dialect)

    def _until_stop(self, ids: Sequence[int], text: str | None, dialect: Dialect) -> list[int]:
        """The ids up to the one that completes a stop string, for servers that went on after it."""

        def holds_stop(count: int) -> bool:
            decoded = self.tokenizer.decode(list(ids[:count]), skip_special_tokens=False)
            return end_of_stop(decoded, dialect.stops) is not None

        may_hold = text is None or end_of_stop(text, dialect.stops) is not None
        if not may_hold or not holds_stop(len(ids) - 1):
            return list(ids)
        return list(ids[: bisect_left(range(len(ids)), True, key=holds_stop)])

    def _encode_response(
        self, text: str, finish_reason: str | None, matched: str | int | None, dialect: Dialect
    ) -> list[int]:
        """The ids of a response known as text, with the stop string or the end of sequence that the server cut off."""
        if matched not in dialect.stops and (end := end_of_stop(text, dialect.stops)) is not None:
            return self._encode(text[:end])
        if finish_reason != "stop":
            return self._encode(text)
        if matched is None:
            matched = _open_block_end(text, dialect)
        if isinstance(matched, str) and matched in dialect.stops:
            return self._encode(text if matched in text else text + matched)
        eos_id = matched if isinstance(matched, int) else self.eos_token_ids[0]
        return [*self._encode(self._without_eos(text)), eos_id]

    def _without_eos(self, text: str) -> str:
        for token_id in self.eos_token_ids:
            text = text.removesuffix(self.tokenizer.decode([token_id], skip_special_tokens=False))
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    async def aclose(self) -> None:
        await self._client.close()


def _open_block_end(text: str, dialect: Dialect) -> str | None:
    """The stop string that an unclosed block of the text was waiting for."""
    blocks = (*dialect.calls, dialect.answer) if dialect.stops_at_answer else dialect.calls
    return next((tag.close for tag in blocks if tag and text.rfind(tag.open) > text.rfind(tag.close)), None)
