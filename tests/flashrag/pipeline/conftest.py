"""A completion server whose replies are written by hand, and an index that knows a few passages.

The server is a real one behind HTTP. It records what it is asked, with token ids turned back into text, and answers
from a script: a text, a text with the log-probability of each token, or whatever a function makes of the prompt.
"""

import copy
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fastapi import FastAPI, Request

from flashrag.config import Config, validated
from flashrag.dataset import Question
from flashrag.document import Document, Hit
from flashrag.generator import GeneratorSettings
from flashrag.generator.openai_completion import OpenAICompletionGenerator
from flashrag.pipeline import METHODS, BasicPipeline

EOS = 0
WU = Document("1", '"King Wu of Zhou"\nKing Wu was the first king of Zhou.')
ZHOU = Document("2", '"Zhou dynasty"\nThe Zhou dynasty followed the Shang.')


class Asked(NamedTuple):
    """One request to the server."""

    prompt: str
    stop: list[str] | None
    max_tokens: int
    logprobs: int | None


@dataclass
class Reply:
    """A scripted reply. Tokens with log-probabilities are only sent where the request asks for them."""

    text: str = ""
    tokens: Sequence[tuple[str, float]] = ()
    finish_reason: str = "stop"
    stop: str | None = None  # the stop string at which it ended, as vLLM tells it

    def __post_init__(self) -> None:
        self.text = self.text or "".join(token for token, _ in self.tokens)


class ScriptedServer:
    """Answers with the next reply of the script, or with what the function `replies` makes of a prompt."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.asked: list[Asked] = []
        self.chats: list[dict[str, Any]] = []
        self.replies: list[str | Reply] | Callable[[str], str | Reply] = []

    def next_reply(self, prompt: str) -> Reply:
        reply = self.replies(prompt) if callable(self.replies) else self.replies.pop(0)
        return Reply(reply) if isinstance(reply, str) else reply

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/completions")
        async def completions(request: Request) -> dict[str, Any]:
            body = await request.json()
            prompt = self.tokenizer.decode(body["prompt"])
            self.asked.append(Asked(prompt, body.get("stop"), body["max_tokens"], body.get("logprobs")))
            reply = self.next_reply(prompt)
            choice: dict[str, Any] = {
                "index": 0, "text": reply.text, "finish_reason": reply.finish_reason, "stop_reason": reply.stop,
                "logprobs": None,
            }  # fmt: skip
            if body.get("logprobs") and reply.tokens:
                tokens, values = zip(*reply.tokens, strict=True)
                choice["logprobs"] = {"tokens": tokens, "token_logprobs": values}
            if body.get("return_token_ids"):  # an episode: the end of sequence unless the text ends in a stop string
                ends = [] if reply.finish_reason == "length" or reply.text.endswith(tuple(body["stop"])) else [EOS]
                choice["token_ids"] = [*self.tokenizer.encode(reply.text, add_special_tokens=False), *ends]
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 7, "total_tokens": 0}
            return _reply("text_completion", choice, usage)

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> dict[str, Any]:
            body = await request.json()
            self.chats.append(body)
            reply = self.next_reply(body["messages"][-1]["content"])
            message = {"role": "assistant", "content": reply.text}
            logprobs = {"content": [{"token": t, "logprob": v, "top_logprobs": []} for t, v in reply.tokens]}
            choice = {
                "index": 0, "message": message, "finish_reason": reply.finish_reason,
                "logprobs": logprobs if body.get("logprobs") else None,
            }  # fmt: skip
            return _reply("chat.completion", choice, {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18})

        return app


def _reply(kind: str, choice: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    return {"id": "1", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": usage}


class Index:
    """Gives the scripted passages for a query, at most `top_n`; records the queries."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.passages: dict[str, list[Document]] = {}

    async def search_scored(self, query: str, top_n: int) -> list[Hit]:
        self.queries.append(query)
        documents = self.passages.get(query, [WU, ZHOU])[:top_n]
        return [Hit(document, 1.0 / rank) for rank, document in enumerate(documents, start=1)]


@pytest.fixture(scope="module")
def running(serve: Callable[[Any], str], tokenizer: Any) -> ScriptedServer:
    server = ScriptedServer(copy.deepcopy(tokenizer))  # its thread must not share one with the pipeline's
    server.url = serve(server.app())
    return server


@pytest.fixture
def server(running: ScriptedServer) -> ScriptedServer:
    running.reset()
    return running


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def chat_template(tokenizer: Any) -> Iterator[None]:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}<|im_start|>assistant{{{{ '\\n' }}}}"
    yield
    tokenizer.chat_template = None


MakePipeline = Callable[..., BasicPipeline]


@pytest_asyncio.fixture
async def make(server: ScriptedServer, index: Index, tokenizer: Any) -> AsyncIterator[MakePipeline]:
    """The pipeline of a method on the scripted server and the index, with these config values."""
    generators: list[OpenAICompletionGenerator] = []

    def make_pipeline(method: str, **values: Any) -> BasicPipeline:
        config = {"sgl_remote_url": server.url, "generator_model": "m", "generator_max_retries": 0, **values}
        settings = validated(GeneratorSettings, config, "config")
        chat_only = values.get("framework") == "openai_chat"
        generator = OpenAICompletionGenerator(settings, "m", None if chat_only else tokenizer, [EOS], "EMPTY")
        generators.append(generator)
        return METHODS[method].pipeline(Config(config_dict=values), index, generator)

    yield make_pipeline
    for generator in generators:
        await generator.aclose()


@pytest.fixture
def question() -> Question:
    return Question("q", "Who was the first king of Zhou?", ("King Wu",))
