"""The completion generator against a real HTTP server whose replies are written by hand, in the shapes of real servers.

vLLM itself, with a model whose every token is known, is in tests/evaluation (slow).
"""

import asyncio
import functools
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI, Request, Response

from flashrag.config import Config, validated
from flashrag.episode import SEARCH_O1
from flashrag.errors import GenerationError, UserError
from flashrag.generator import Completion, GeneratorSettings, ScoredToken, eos_token_ids, load_tokenizer
from flashrag.generator.openai_completion import OpenAICompletionGenerator, TokenIdOrigin
from flashrag.generator.server import NO_LIMITS, ServerLimits, find_served_card, server_limits
from flashrag.utils import get_generator

EOS = 0


class Server:
    """Completes every prompt with the same choice, lists the given models, remembers the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.parts: list[str] = []  # whole bodies of streamed replies
        self.choice: dict[str, Any] = {}
        self.usage: dict[str, int] | None = None
        self.cards: list[dict[str, Any]] = [{"id": "research-7b", "object": "model", "max_model_len": 8192}]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/completions")
        @app.post("/v1/chat/completions")
        async def completions(request: Request) -> Response:
            self.requests.append(await request.json())
            status = self.statuses.pop(0) if self.statuses else 200
            if self.requests[-1].get("stream") and status == 200:
                return Response(self.parts.pop(0), media_type="text/event-stream")
            choice = {"index": 0, "logprobs": None, **self.choice}
            body = {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
            body["usage"] = self.usage
            return Response(json.dumps(body), status_code=status, media_type="application/json")

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": self.cards}

        return app


class FaultyServer:
    """A bare server that does what its script says with each request, and then answers."""

    REPLY = json.dumps(
        {
            "choices": [
                {
                    "index": 0, "text": "Wu", "message": {"role": "assistant", "content": "Wu"},
                    "finish_reason": "length", "token_ids": [1], "logprobs": None,
                }
            ]
        }
    ).encode()  # fmt: skip

    def __init__(self) -> None:
        self.url = ""
        self.script: list[str] = []
        self.seen = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
            await reader.readexactly(length)
            self.seen += 1
            await self.answer(self.script.pop(0) if self.script else "", writer)
        finally:
            writer.close()

    async def answer(self, fault: str, writer: asyncio.StreamWriter) -> None:
        if fault == "drop":
            return
        if fault == "stall":
            await asyncio.sleep(1.0)
            return
        status = {"500": b"500 Internal Server Error", "busy": b"429 Too Many Requests\r\nRetry-After: 1"}
        body = {"cut off": self.REPLY[:40], "no choice": b"{}"}.get(fault, self.REPLY)
        lines = (
            b"HTTP/1.1 " + status.get(fault, b"200 OK"), b"Content-Type: application/json",
            b"Content-Length: %d" % len(body), b"Connection: close",
        )  # fmt: skip
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        await writer.drain()


@pytest_asyncio.fixture
async def faulty() -> AsyncIterator[FaultyServer]:
    faulty = FaultyServer()
    server = await asyncio.start_server(faulty.handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    faulty.url = f"http://{host}:{port}"
    async with server:
        yield faulty


@pytest.fixture(scope="module")
def running(serve: Callable[[Any], str]) -> Server:
    server = Server()
    server.url = serve(server.app())
    return server


@pytest.fixture
def server(running: Server) -> Server:
    running.reset()
    return running


def settings(url: str, **values: Any) -> GeneratorSettings:
    return validated(GeneratorSettings, {"sgl_remote_url": url, "generator_model": "m", **values}, "config")


def generator_for(
    server: Server, tokenizer: Any, limits: ServerLimits = NO_LIMITS, **values: Any
) -> OpenAICompletionGenerator:
    chosen = settings(server.url, generator_max_retries=2, **values)
    return OpenAICompletionGenerator(chosen, "research-7b", tokenizer, [EOS, 2], "EMPTY", limits)


def served_name(settings: GeneratorSettings) -> str:
    return find_served_card(settings, "k")["id"]


@pytest.mark.asyncio
async def test_ids_go_in_and_the_servers_ids_come_out(server: Server, tokenizer: Any):
    # No tokenizer would give these ids for the text: they are kept all the same.
    server.choice = {"text": "x", "finish_reason": "stop", "stop_reason": "</search>", "token_ids": [9, 9, 9]}
    generator = generator_for(server, tokenizer)
    generation = await generator.generate([5, 6], 77)
    await generator.aclose()
    assert generation.token_ids == [9, 9, 9]
    assert not generation.aborted
    assert generator.token_id_origin is TokenIdOrigin.SERVER
    assert server.requests == [
        {
            "model": "research-7b",
            "prompt": [5, 6],
            "max_tokens": 77,
            "stop": ["</search>"],
            "stop_token_ids": [EOS, 2],
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "include_stop_str_in_output": True,
            "no_stop_trim": True,
            "skip_special_tokens": False,
        }
    ]


class Seen:
    """A watcher that remembers: a list of texts for each request."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []

    def begins(self) -> None:
        self.requests.append([])

    def writes(self, text: str) -> None:
        self.requests[-1].append(text)

    def ends(self, *_: object) -> None:
        raise AssertionError("a generator ends no segment")


def streamed(*choices: dict[str, Any], done: bool = True) -> str:
    events = [{"choices": [{"index": 0, "finish_reason": None, **choice}]} for choice in choices]
    events.append({"choices": [], "usage": {}})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")


@pytest.mark.asyncio
async def test_a_watched_reply_comes_in_parts_and_counts_as_a_whole(server: Server, tokenizer: Any):
    server.parts = [
        streamed(
            {"text": "<search> a", "token_ids": [9, 9]},
            {"text": "", "token_ids": [7]},  # a part of a character
            {"text": " </search>", "token_ids": [8], "finish_reason": "stop", "stop_reason": "</search>"},
        ),
        streamed(
            {"text": "b", "token_ids": [5]},
            {"text": "<|endoftext|>", "token_ids": [EOS], "finish_reason": "stop"},
        ),
        # no ids, and the stop string cut off
        streamed({"text": "<search> "}, {"text": "c"}, {"text": "", "finish_reason": "stop"}),
        streamed({"text": "d", "token_ids": [5]}, {"text": "e", "finish_reason": "length"}),
    ]
    generator, seen = generator_for(server, tokenizer), Seen()
    replies = [await generator.generate([5, 6], 77, watcher=seen) for _ in range(2)]
    assert generator.token_id_origin is TokenIdOrigin.SERVER
    replies += [await generator.generate([5, 6], 77, watcher=seen) for _ in range(2)]
    assert generator.token_id_origin is TokenIdOrigin.RE_TOKENISED
    server.choice = {"text": "x", "finish_reason": "length", "token_ids": [1]}
    await generator.generate([5, 6], 77)
    await generator.aclose()
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    expected = [[9, 9, 7, 8], [5, EOS], encode("<search> c</search>"), encode("de")]
    assert [reply.token_ids for reply in replies] == expected
    assert seen.requests == [["<search> a", " </search>"], ["b", ""], ["<search> ", "c"], ["d", "e"]]
    *watched, unwatched = server.requests
    assert watched == [{**unwatched, "stream": True}] * 4


@pytest.mark.asyncio
async def test_a_watcher_sees_nothing_after_a_stop_that_the_server_missed(server: Server, tokenizer: Any):
    server.parts = [
        streamed({"text": "a </sea"}, {"text": "rch> b"}, {"text": " c"}, {"text": " d", "finish_reason": "length"})
    ]
    generator, seen = generator_for(server, tokenizer), Seen()
    reply = await generator.generate([5], 77, watcher=seen)
    await generator.aclose()
    assert reply.token_ids == tokenizer.encode("a </search>", add_special_tokens=False)
    assert seen.requests == [["a </sea", "rch>", "", ""]]


@pytest.mark.asyncio
async def test_a_streamed_reply_that_breaks_off_is_asked_for_again(server: Server, tokenizer: Any):
    server.statuses = [503]
    server.parts = [
        streamed({"text": "a", "token_ids": [4]}, done=False),
        streamed({"text": "b", "token_ids": [5], "finish_reason": "length"}),
        *[streamed({"text": "c", "token_ids": [6]})] * 3,
    ]
    generator, seen = generator_for(server, tokenizer), Seen()
    assert (await generator.generate([1], 9, watcher=seen)).token_ids == [5]
    assert seen.requests == [[], ["a"], ["b"]]
    with pytest.raises(GenerationError, match=r"the streamed reply broke off before its end \(attempt 3 of 3\)"):
        await generator.generate([1], 9, watcher=seen)
    server.parts = ['data: {"error": {"message": "the engine is dead"}}\n\n']
    with pytest.raises(GenerationError, match="the engine is dead"):
        await generator.generate([1], 9, watcher=seen)
    await generator.aclose()


@pytest.mark.asyncio
async def test_generation_params_are_sent(server: Server, tokenizer: Any):
    server.choice = {"text": "", "finish_reason": "length", "token_ids": []}
    params = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 5, "max_tokens": 64}
    generator = generator_for(server, tokenizer, generation_params=params)
    await generator.generate([1], 100, SEARCH_O1)
    await generator.generate([1], 10)
    await generator.aclose()
    generator = generator_for(server, tokenizer, generation_params={"top_k": 0})
    await generator.complete([1], 10)
    await generator.aclose()
    first, second, third = server.requests
    assert third["top_k"] == -1  # SGLang refuses 0
    assert {key: first[key] for key in params} == params
    assert first["stop"] == ["<|end_search_query|>"]
    assert second["max_tokens"] == 10


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("choice", "text", "ends"),
    [
        # vLLM and SGLang, told to keep the stop string
        ({"text": "<search> a </search>", "finish_reason": "stop", "stop_reason": "</search>"}, None, False),
        ({"text": "<search> a </search>\n\n", "finish_reason": "stop", "matched_stop": "</search>"}, None, False),
        # the stop string cut off, and named
        ({"text": "<search> a ", "finish_reason": "stop", "matched_stop": "</search>"}, "<search> a </search>", False),
        ({"text": "a ", "finish_reason": "stop", "stop_reason": "</search>"}, "a </search>", False),
        # cut off and not named: an open search says what stopped it
        ({"text": "<search> a ", "finish_reason": "stop"}, "<search> a </search>", False),
        ({"text": "<search> a </search>", "finish_reason": "stop"}, "<search> a </search>", False),
        # the end of sequence, cut off or not, named or not
        ({"text": "<answer> a </answer>", "finish_reason": "stop"}, "<answer> a </answer>", True),
        ({"text": "<answer> a </answer>", "finish_reason": "stop", "matched_stop": EOS}, "<answer> a </answer>", True),
        ({"text": "a<|endoftext|>", "finish_reason": "stop", "stop_reason": None}, "a", True),
        ({"text": "<search> a ", "finish_reason": "stop", "stop_reason": EOS}, "<search> a ", True),
        ({"text": "", "finish_reason": "stop"}, "", True),
        # the budget
        ({"text": "<search> a ", "finish_reason": "length"}, "<search> a ", False),
        ({"text": "<search> a </search>", "finish_reason": "length"}, "<search> a </search>", False),
        # SGLang missed a stop string that was spelled in unusual tokens
        ({"text": "a </search> b", "finish_reason": "length"}, "a </search>", False),
        ({"text": "a </search> b", "finish_reason": "stop", "matched_stop": EOS}, "a </search>", False),
        ({"text": "a </search> b </search>", "finish_reason": "stop"}, "a </search>", False),
    ],
)  # fmt: skip
async def test_a_reply_of_text_only_is_encoded(
    server: Server, tokenizer: Any, choice: dict[str, Any], text: str | None, ends: bool
):
    server.choice = choice
    generator = generator_for(server, tokenizer)
    token_ids = (await generator.generate([1], 50)).token_ids
    await generator.aclose()
    expected = tokenizer.encode(choice["text"] if text is None else text, add_special_tokens=False)
    assert token_ids == [*expected, EOS] if ends else token_ids == expected
    assert generator.token_id_origin is TokenIdOrigin.RE_TOKENISED


@pytest.mark.asyncio
async def test_the_second_end_of_sequence_is_kept_as_the_server_names_it(server: Server, tokenizer: Any):
    server.choice = {"text": "a<|im_end|>", "finish_reason": "stop", "matched_stop": 2}
    generator = generator_for(server, tokenizer)
    token_ids = (await generator.generate([1], 50)).token_ids
    await generator.aclose()
    assert token_ids == [*tokenizer.encode("a", add_special_tokens=False), 2]


@pytest.mark.asyncio
async def test_one_reply_without_ids_makes_the_run_re_tokenised(server: Server, tokenizer: Any):
    generator = generator_for(server, tokenizer)
    for choice in ({"token_ids": [1]}, {}, {"token_ids": [1]}):
        server.choice = {"text": "x", "finish_reason": "length", **choice}
        await generator.generate([1], 50)
    await generator.aclose()
    assert generator.token_id_origin is TokenIdOrigin.RE_TOKENISED


@pytest.mark.asyncio
@pytest.mark.parametrize("ask", ["generate", "complete", "chat"])
@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_request_that_the_server_broke_off_is_sent_again(
    server: Server, tokenizer: Any, ask: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flashrag.generator.completion._jitter", lambda _: 0.0)
    server.choice = {"text": "a", "finish_reason": reason, "token_ids": [4], "message": {"content": "a"}}
    generator = generator_for(server, tokenizer)
    argument = [{"role": "user", "content": "?"}] if ask == "chat" else [1]
    with pytest.raises(GenerationError, match=rf"finish_reason: {reason}\) \(attempt 3 of 3\)"):
        await getattr(generator, ask)(argument, 50)
    await generator.aclose()
    assert len(server.requests) == 3


@pytest.mark.asyncio
async def test_ids_after_a_stop_that_the_server_missed_are_cut_off(server: Server, tokenizer: Any):
    def ids(*words: str) -> list[int]:
        return [token for word in words for token in tokenizer.encode(word, add_special_tokens=False)]

    spelled = ids("a ", *"</search>")
    assert spelled != ids("a </search>")  # not as the tokenizer writes it
    whole, past = ids("a", "</search>", "\n\n"), [*spelled, *ids(" and more", *"</search>"), EOS]
    generator = generator_for(server, tokenizer)
    for given, finish_reason, kept in (
        (past, "stop", spelled),
        (past, "length", spelled),
        (spelled, "length", spelled),
        (ids("no stop"), "length", ids("no stop")),
        (whole[: -len(ids("\n\n"))], "stop", whole[: -len(ids("\n\n"))]),
    ):
        text = tokenizer.decode(given, skip_special_tokens=False)
        for shown in (text, None):
            server.choice = {"text": shown, "finish_reason": finish_reason, "token_ids": given}
            assert (await generator.generate([1], 50)).token_ids == kept
    await generator.aclose()


@pytest.mark.asyncio
async def test_a_text_ends_before_a_stop_that_the_server_missed(server: Server, tokenizer: Any):
    generator = generator_for(server, tokenizer)
    lists = {"tokens": ["King", " W", "u</", "a", "> b"], "token_logprobs": [-1.0, -2.0, -3.0, -4.0, -5.0]}
    server.choice = {"text": "King Wu</a> b", "finish_reason": "length", "logprobs": lists}
    completion = await generator.complete([1], 20, ["</a>", "b"], log_probs=True)
    expected = (ScoredToken("King", -1.0), ScoredToken(" W", -2.0), ScoredToken("u</", -3.0))
    assert (completion.text, completion.finish_reason, completion.tokens) == ("King Wu", "stop", expected)
    assert completion.stop == "</a>"
    server.choice = {"message": {"content": "Wu</a>"}, "finish_reason": "length"}
    completion = await generator.chat([{"role": "user", "content": "?"}], 20, ["</a>"])
    assert (completion.text, completion.finish_reason) == ("Wu", "stop")
    await generator.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("told", "stop"),
    [({"stop_reason": "\n"}, "\n"), ({"matched_stop": "\n"}, "\n"), ({"stop_reason": EOS}, None), ({}, None)],
)
async def test_the_stop_that_ended_a_text_is_the_one_that_the_server_tells(
    server: Server, tokenizer: Any, told: dict[str, Any], stop: str | None
):
    generator = generator_for(server, tokenizer)
    server.choice = {"text": "", "finish_reason": "stop", **told}
    assert (await generator.complete([1], 20, ["\n"])).stop == stop
    await generator.aclose()


@pytest.mark.asyncio
async def test_where_the_server_has_no_room_a_reply_ends_for_its_length(server: Server, tokenizer: Any):
    server.choice = {"text": "x", "finish_reason": "length", "token_ids": [1]}
    generator = generator_for(server, tokenizer, ServerLimits(max_tokens=10))
    await generator.generate([1] * 7, 5)
    await generator.complete([1] * 7, 2)
    assert [request["max_tokens"] for request in server.requests] == [3, 2]
    for prompt in ([1] * 10, [1] * 11):
        assert (await generator.generate(prompt, 5)).token_ids == ()
        assert await generator.complete(prompt, 5) == Completion("", "length", len(prompt), 0)
    await generator.aclose()
    assert len(server.requests) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("ask", ["generate", "complete"])
async def test_an_id_that_the_model_does_not_have_is_not_sent(server: Server, tokenizer: Any, ask: str):
    server.choice = {"text": "x", "finish_reason": "length", "token_ids": [1]}
    generator = generator_for(server, tokenizer, ServerLimits(vocabulary=100))
    await getattr(generator, ask)([99], 5)
    with pytest.raises(GenerationError, match=r"token 100, and the model at .* has 100; generator_model=m must be"):
        await getattr(generator, ask)([1, 100, 2], 5)
    await generator.aclose()
    assert len(server.requests) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("statuses", "requests", "fails"), [([503, 429], 3, False), ([500] * 9, 3, True), ([400], 1, True)]
)
async def test_attempts_are_bounded_and_mistakes_final(
    server: Server, tokenizer: Any, statuses: list[int], requests: int, fails: bool
):
    server.choice, server.statuses = {"text": "x", "finish_reason": "length", "token_ids": [1]}, list(statuses)
    generator = generator_for(server, tokenizer)
    if fails:
        with pytest.raises(GenerationError, match=f"/v1/completions: .*{statuses[0]}"):
            await generator.generate([1], 50)
    else:
        assert (await generator.generate([1], 50)).token_ids == [1]
    await generator.aclose()
    assert len(server.requests) == requests


@pytest.mark.asyncio
async def test_a_server_that_went_away_is_a_typed_error(closed_url: str, tokenizer: Any):
    chosen = settings(closed_url, generator_max_retries=0)
    generator = OpenAICompletionGenerator(chosen, "m", tokenizer, [EOS], "EMPTY")
    with pytest.raises(GenerationError, match="Connection error"):
        await generator.generate([1], 5)
    await generator.aclose()


@pytest.mark.asyncio
async def test_text_is_completed_before_a_stop_with_log_probabilities_where_asked(server: Server, tokenizer: Any):
    logprobs = {"tokens": [" King", " Wu"], "token_logprobs": [-0.5, -0.25], "text_offset": [0, 5], "top_logprobs": []}
    server.choice = {"text": " King Wu", "finish_reason": "stop", "logprobs": logprobs}
    server.usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    generator = generator_for(server, tokenizer)
    completion = await generator.complete([5, 6, 7], 20, ["\n"], log_probs=True)
    server.choice, server.usage = {"text": "x", "finish_reason": "length"}, None
    bare = await generator.complete("a prompt as text", 20)
    await generator.aclose()
    assert completion == Completion(" King Wu", "stop", 3, 2, (ScoredToken(" King", -0.5), ScoredToken(" Wu", -0.25)))
    assert bare == Completion("x", "length", 0, 0, None)
    first, second = server.requests
    assert (first["prompt"], first["stop"], first["max_tokens"], first["logprobs"]) == ([5, 6, 7], ["\n"], 20, 1)
    assert (first["stop_token_ids"], first["temperature"]) == ([EOS, 2], 0.0)
    assert second["prompt"] == "a prompt as text"
    assert second.keys().isdisjoint({"stop", "logprobs", "seed"})  # SGLang refuses some null values


@pytest.mark.asyncio
async def test_a_conversation_is_answered_and_an_unfinished_message_continued(server: Server):
    server.choice = {"message": {"role": "assistant", "content": "Wu"}, "finish_reason": "stop"}
    generator = generator_for(server, None)
    asked, begun = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "King"}
    assert (await generator.chat([asked], 9, ["."])).text == "Wu"
    await generator.chat([asked, begun])
    await generator.aclose()
    first, second = server.requests
    assert (first["messages"], first["max_tokens"], first["stop"]) == ([asked], 9, ["."])
    assert "continue_final_message" not in first
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert second.keys().isdisjoint({"max_tokens", "stop", "logprobs", "seed"})


@pytest.mark.asyncio
async def test_a_conversation_that_leaves_less_room_than_allowed_gets_what_is_left(server: Server):
    # Engines refuse a number that does not fit beside the conversation, which they alone count.
    server.choice = {"message": {"content": "Wu: its maximum context length is 640"}, "finish_reason": "length"}
    generator = generator_for(server, None)
    server.statuses = [400]
    completion = await generator.chat([{"role": "user", "content": "Who?"}], 600)
    assert completion.text.startswith("Wu")
    assert [request.get("max_tokens") for request in server.requests] == [600, None]
    server.statuses = [400, 400]
    with pytest.raises(GenerationError, match="400"):  # not even the conversation fits
        await generator.chat([{"role": "user", "content": "Who?"}], 600)
    server.statuses, server.choice = [400], {"message": {"content": "no such model"}}
    with pytest.raises(GenerationError, match="400"):
        await generator.chat([{"role": "user", "content": "Who?"}], 600)
    await generator.aclose()
    assert len(server.requests) == 5


@pytest.mark.asyncio
@pytest.mark.parametrize("ask", ["generate", "complete", "chat"])
@pytest.mark.parametrize("fault", ["drop", "stall", "500", "cut off", "no choice"])
async def test_a_fault_is_tried_again_and_one_that_stays_is_a_typed_error(
    faulty: FaultyServer, tokenizer: Any, ask: str, fault: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flashrag.generator.completion._jitter", lambda _: 0.0)  # no wait between the attempts
    timeout_s = 0.25 if fault == "stall" else 5.0  # a good reply takes 10 ms
    chosen = settings(faulty.url, generator_max_retries=2, generator_timeout_s=timeout_s)
    generator = OpenAICompletionGenerator(chosen, "m", tokenizer, [EOS], "EMPTY")

    async def request() -> Any:
        argument = [{"role": "user", "content": "?"}] if ask == "chat" else [1]
        return await getattr(generator, ask)(argument, 5)

    faulty.script = [fault, fault]
    reply = await request()
    assert faulty.seen == 3
    assert reply.token_ids == [1] if ask == "generate" else reply.text == "Wu"
    faulty.script, faulty.seen = [fault] * 9, 0
    with pytest.raises(GenerationError, match=rf"{faulty.url}/v1/.*completions: .* \(attempt 3 of 3\)"):
        await request()
    assert faulty.seen == 3
    await generator.aclose()


@pytest.mark.asyncio
async def test_a_busy_server_is_given_the_time_it_asks_for(faulty: FaultyServer, tokenizer: Any):
    faulty.script = ["busy"]
    generator = OpenAICompletionGenerator(settings(faulty.url), "m", tokenizer, [EOS], "EMPTY")
    started = time.perf_counter()
    assert (await generator.complete([1], 5)).text == "Wu"
    await generator.aclose()
    assert time.perf_counter() - started >= 1.0


def test_a_chat_server_needs_no_tokenizer_here(server: Server):
    config = {"sgl_remote_url": server.url, "generator_model": "research-7b", "framework": "openai_chat"}
    generator = get_generator(Config(config_dict=config))
    assert (generator.served_name, generator.tokenizer) == ("research-7b", None)


def test_the_served_model_is_found_by_name_path_or_being_the_only_one(server: Server, closed_url: str):
    assert served_name(settings(server.url + "/v1")) == "research-7b"
    server.cards = [{"id": "a", "root": "/models/x"}, {"id": "b", "root": "/models/y"}]
    assert served_name(settings(server.url, generator_model="/models/y")) == "b"
    assert served_name(settings(server.url, generator_model="/elsewhere/a")) == "a"
    with pytest.raises(UserError, match="serves these models: a, b; generator_model='c'"):
        served_name(settings(server.url, generator_model="c"))
    server.cards = []
    with pytest.raises(UserError, match="serves these models: none"):
        served_name(settings(server.url))
    with pytest.raises(UserError, match=f"no model server answers at sgl_remote_url={closed_url}"):
        served_name(settings(closed_url))


def test_a_context_that_is_too_short_is_refused(server: Server):
    server.cards = [{"id": "m", "max_model_len": 4096}]
    with pytest.raises(UserError, match=r"generator_max_input_len=8192, but the server at .* takes 4096 tokens"):
        served_name(settings(server.url))
    assert served_name(settings(server.url, generator_max_input_len=4096)) == "m"


def test_what_an_engine_takes_is_known(server: Server):
    server.cards = [{"id": "m", "root": "m", "max_model_len": 8192, "owned_by": "sglang"}]
    assert served_name(settings(server.url)) == "m"  # as published: the same number for both

    def refusal(engine: str, **params: float) -> str:
        server.cards[0]["owned_by"] = engine
        with pytest.raises(UserError) as raised:
            served_name(settings(server.url, generation_params=params))
        return str(raised.value)

    at = f"which serves the model at {server.url}, takes at most 2; lower it"
    assert refusal("sglang", repetition_penalty=2.5) == f"generation_params.repetition_penalty=2.5, but sglang, {at}"
    assert refusal("vllm", temperature=2.5) == f"generation_params.temperature=2.5, but vllm, {at}"
    for engine, params in (
        ("sglang", {"repetition_penalty": 2.0, "temperature": 10.0}),
        ("vllm", {"repetition_penalty": 9.0, "temperature": 2.0}),
        ("somebody", {"repetition_penalty": 9.0, "temperature": 10.0}),
    ):
        server.cards[0]["owned_by"] = engine
        assert served_name(settings(server.url, generation_params=params)) == "m"


@pytest.mark.parametrize(
    ("card", "limits"),
    [
        ({}, ServerLimits(None, None)),
        ({"max_model_len": 640, "owned_by": "vllm", "root": "{served}"}, ServerLimits(640, 50)),
        ({"max_model_len": 640, "owned_by": "sglang", "root": "m"}, ServerLimits(634, 60)),  # the given folder's
        ({"id": "{served}", "max_model_len": None, "owned_by": "sglang"}, ServerLimits(None, 50)),
        ({"root": "n" * 300}, ServerLimits(None, 60)),  # no folder of this machine can have the name
    ],
)
def test_limits_are_the_servers(card: dict[str, Any], limits: ServerLimits, tmp_path: Path):
    for name, config in (("served", {"vocab_size": 50}), ("given", {"text_config": {"vocab_size": 60}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    given = tmp_path / "given" if card else "a/hub-name"
    card = {
        key: value.format(served=tmp_path / "served") if isinstance(value, str) else value
        for key, value in card.items()
    }
    assert server_limits({"id": "m", **card}, str(given)) == limits


def test_another_kind_of_server_is_refused(serve: Callable[[Any], str]):
    url = serve(FastAPI())
    with pytest.raises(UserError, match=r"answered 404.*must be an OpenAI-compatible model server"):
        served_name(settings(url))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sgl_remote_url": "localhost:80"}, "sgl_remote_url"),
        ({"framework": "hf"}, "framework: 'hf' was given"),
        ({"generation_params": {"temprature": 1}}, "generation_params.temprature"),
        ({"generation_params": {"temperature": -1}}, "generation_params.temperature: -1"),
        ({"generation_params": {"do_sample": False, "temperature": 1.0}}, "do_sample is false, but temperature is 1.0"),
        ({"generation_params": {"do_sample": True}}, "do_sample is true, but temperature is 0"),
        ({"generator_max_input_len": 0}, "generator_max_input_len: 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        settings(values.pop("sgl_remote_url", "http://127.0.0.1:1"), **values)


def test_end_of_sequence_tokens_come_from_tokenizer_and_generation_config(tmp_path: Path, tokenizer: Any):
    assert eos_token_ids(tokenizer, str(tmp_path)) == [EOS]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert eos_token_ids(tokenizer, str(tmp_path)) == [EOS, 2]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert eos_token_ids(tokenizer, str(tmp_path)) == [EOS, 2]
    for bad in ('""', '[""]', "-1", "1.5", "true", "[[1]]"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {bad}}}')
        with pytest.raises(
            UserError, match=r"--model: .*eos_token_id is .*; expected the number of a token, or a list"
        ):
            eos_token_ids(tokenizer, str(tmp_path), "--model")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"generation_config\.json cannot be read"):
        eos_token_ids(tokenizer, str(tmp_path))


def test_flashrags_factory_checks_then_loads(server: Server, tmp_path: Path, tokenizer: Any):
    config = {"sgl_remote_url": server.url, "generator_model": str(tmp_path / "model")}
    with pytest.raises(UserError, match="model does not exist"):
        get_generator(Config(config_dict=config))
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"holds no tokenizer; expected one of tokenizer\.json"):
        get_generator(Config(config_dict=config))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path / "model"))
    tokenizer.save_pretrained(tmp_path / "model")
    generator = get_generator(Config(config_dict=config))
    assert generator.served_name == "research-7b"
    assert generator.eos_token_ids == (EOS,)


def test_a_tokenizer_that_fails_at_its_first_use_is_told_when_it_is_loaded(tmp_path: Path):
    folder = Path(__file__).parents[3] / "training" / "demo" / "base_model"
    for file in folder.glob("tokenizer*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": "x"}))
    with pytest.raises(UserError, match=r"its tokenizer cannot be loaded \(TypeError: "):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "LlamaTokenizer"])
def test_a_tokenizer_that_transformers_makes_otherwise_than_its_file_is_refused(
    tmp_path: Path, tokenizer: Any, named: str
):
    """Llama 3's and its kin are byte-level; as the class of Llama 2's they lose every space."""
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": named}))
    with pytest.raises(UserError, match="loads its tokenizer as a LlamaTokenizer, which makes other tokens of a text"):
        load_tokenizer(str(tmp_path))
    repaired = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}  # as the message says
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(repaired))
    text = "the first king of Zhou"
    assert load_tokenizer(str(tmp_path)).encode(text) == tokenizer.encode(text)
