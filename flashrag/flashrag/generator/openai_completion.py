"""A generator on any OpenAI-compatible completion server: token ids go in, and token ids come out where the server can.

vLLM, and SGLang in recent releases, return the sampled ids (`return_token_ids`). From a server that returns text only,
the text is encoded with the local tokenizer: `token_id_origin` says which of the two a run saw. Time-outs and retries
are the openai client's own (connection errors, 408, 409, 429 and 5xx are tried again).
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import openai

from flashrag.episode import Generation
from flashrag.errors import ReSearchError
from flashrag.generator.settings import GeneratorSettings, SamplingSettings
from flashrag.protocol import SEARCH_CLOSE, SEARCH_OPEN


class GeneratorError(ReSearchError):
    """A request that the model server did not answer, after every allowed attempt."""


class TokenIdOrigin(StrEnum):
    """Where the ids of a response come from."""

    SERVER = "server"
    RE_TOKENISED = "re-tokenised"


class OpenAICompletionGenerator:
    """Samples from one served model; safe for any number of coroutines of one event loop."""

    def __init__(
        self, settings: GeneratorSettings, served_name: str, tokenizer: Any, eos_token_ids: Sequence[int], api_key: str
    ):
        self.settings = settings
        self.served_name = served_name
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.token_id_origin: TokenIdOrigin | None = None
        self._client = openai.AsyncOpenAI(
            base_url=settings.api_base_url,
            api_key=api_key,
            timeout=settings.generator_timeout_s,
            max_retries=settings.generator_max_retries,
        )

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int, stop: Sequence[str] = (SEARCH_CLOSE,)
    ) -> Generation:
        """Sample at most `max_tokens` tokens after `token_ids`, ending after a stop string. Raises `GeneratorError`."""
        params = self.settings.generation_params
        if params.max_tokens is not None:
            max_tokens = min(max_tokens, params.max_tokens)
        try:
            completion = await self._client.completions.create(
                model=self.served_name,
                prompt=list(token_ids),
                max_tokens=max_tokens,
                stop=list(stop),
                temperature=params.temperature,
                top_p=params.top_p,
                seed=params.seed,
                extra_body=_extra_body(params, self.eos_token_ids),
            )
        except openai.OpenAIError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise GeneratorError(f"{self.settings.api_base_url}/completions: {error}{cause}") from error
        choices = completion.choices
        if not choices:
            raise GeneratorError(f"{self.settings.api_base_url}/completions answered without a choice")
        return Generation(self._sampled_ids(choices[0], stop), aborted=choices[0].finish_reason == "abort")

    def _sampled_ids(self, choice: Any, stop: Sequence[str]) -> list[int]:
        ids = getattr(choice, "token_ids", None)
        if ids is not None:
            if self.token_id_origin is None:
                self.token_id_origin = TokenIdOrigin.SERVER
            return list(ids)
        self.token_id_origin = TokenIdOrigin.RE_TOKENISED
        # vLLM calls it stop_reason, SGLang matched_stop; other servers say nothing.
        matched = getattr(choice, "stop_reason", None)
        if matched is None:
            matched = getattr(choice, "matched_stop", None)
        return self._encode_response(choice.text, choice.finish_reason, matched, stop)

    def _encode_response(
        self, text: str, finish_reason: str | None, matched: str | int | None, stop: Sequence[str]
    ) -> list[int]:
        """The ids of a response known as text, with the stop string or the end of sequence that the server cut off."""
        if finish_reason != "stop":
            return self._encode(text)
        if matched is None and (SEARCH_CLOSE in stop and _has_open_search(text)):
            matched = SEARCH_CLOSE
        if isinstance(matched, str) and matched in stop:
            return self._encode(text if matched in text else text + matched)
        if matched is None and any(text.endswith(string) for string in stop):
            return self._encode(text)
        eos_id = matched if isinstance(matched, int) else self.eos_token_ids[0]
        for token_id in self.eos_token_ids:
            text = text.removesuffix(self.tokenizer.decode([token_id], skip_special_tokens=False))
        return [*self._encode(text), eos_id]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    async def aclose(self) -> None:
        await self._client.close()


def _has_open_search(text: str) -> bool:
    return text.rfind(SEARCH_OPEN) > text.rfind(SEARCH_CLOSE)


def _extra_body(params: SamplingSettings, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    return {
        # What ends a sequence for the episode must end it for the server, whatever config the server reads.
        "stop_token_ids": list(eos_token_ids),
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "return_token_ids": True,
        # Keep the stop string and special tokens in `text`: vLLM's name for the former, then SGLang's.
        "include_stop_str_in_output": True,
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }
