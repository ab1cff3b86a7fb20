"""One contract, two real servers: vLLM and SGLang on a CPU do the same for our client, with the demo's base model.

Each engine starts once. A request may script the ids that the engine samples (scripted_vllm.py, scripted_sglang.py), so
that every end of a reply can be had on the real server. Without SGLang its tests are skipped.
"""

import asyncio
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.command_line import load_settings, parse_command_line
from evaluation.preflight.servers import ask_model_server
from flashrag.document import Document, Hit
from flashrag.episode import Dialect, Generation, Trajectory
from flashrag.errors import GenerationError, UserError
from flashrag.generator import GeneratorSettings, load_generator
from flashrag.generator.openai_completion import OpenAICompletionGenerator, TokenIdOrigin
from flashrag.generator.server import MOST, find_served_card
from flashrag.pipeline import ReSearchPipeline
from flashrag.system.engine import SGLANG_PYTHON, Engine
from flashrag.system.model_server import model_server, parse_args
from flashrag.system.network import ask
from tests.docs.pages import printed
from training.demo.world import DEMO_SEED, article, make_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
CONTEXT, VOCABULARY, EOS = 640, 2345, 0
AT_ONCE, QUESTIONS = 4, 20
STOP = "</search>"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
SGLANG_CLASS = json.dumps({"callable": b"cscripted_sglang\nWritesScript\n.".hex()})  # a pickle: import it by its name
EXTRA = {
    Engine.VLLM: ("--logits-processors", "scripted_vllm:WritesScript", "--max-num-seqs", str(AT_ONCE)),
    Engine.SGLANG: (
        *("--enable-custom-logit-processor", "--max-running-requests", str(AT_ONCE)),
        *("--max-queued-requests", "2"),
    ),
}
SCRIPTED: dict[Engine, Callable[[list[int]], dict[str, Any]]] = {
    Engine.VLLM: lambda ids: {"vllm_xargs": {"script": ids}},
    Engine.SGLANG: lambda ids: {"custom_logit_processor": SGLANG_CLASS, "custom_params": {"script": ids}},
}


@dataclass(frozen=True)
class Served:
    engine: Engine
    url: str
    log: Path

    def settings(self, **values: Any) -> GeneratorSettings:
        given = {"generator_max_input_len": CONTEXT, "generator_max_retries": 8, **values}
        return GeneratorSettings(sgl_remote_url=self.url, generator_model=str(BASE_MODEL), **given)

    def use(
        self,
        work: Callable[[OpenAICompletionGenerator], Coroutine[Any, Any, Any]],
        script: Sequence[int] | None = None,
        **values: Any,
    ) -> Any:
        """The result of work with a generator on this server, whose replies are the script, if there is one."""

        async def run() -> Any:
            generator = load_generator(self.settings(**values))
            if script is not None:
                usual, more = generator._beyond_openai(), SCRIPTED[self.engine](list(script))
                generator._beyond_openai = lambda: {**usual, **more}  # type: ignore[method-assign]
            try:
                return await work(generator)
            finally:
                await generator.aclose()

        return asyncio.run(run())


def skip_without_sglang() -> None:
    if not (os.environ.get("RESEARCH_SGLANG_PYTHON") or SGLANG_PYTHON.is_file()):
        pytest.skip(
            f"SGLang is not installed; run {printed('docs/evaluation.md', 'bash scripts/setup.sh --sglang').text}"
        )


@pytest.fixture(scope="module", params=list(Engine))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of either engine; when the tests are done, it must end by itself after a SIGTERM."""
    engine = request.param
    if engine is Engine.SGLANG:
        skip_without_sglang()
    folder = tmp_path_factory.mktemp(engine)
    template, log = folder / "template.jinja", folder / "log"
    template.write_text(TEMPLATE)
    extra = ("--api-key", "secret", "--chat-template", str(template), *EXTRA[engine])
    shown = printed("docs/evaluation.md", "scripts/serve_model.sh --engine sglang").text
    options = replace(
        parse_args(shlex.split(shown)[1:]), model_path=BASE_MODEL, engine=engine, served_model_name="demo",
        context_length=CONTEXT, port=0, log_path=log, extra=extra,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FOLDER), prepend=os.pathsep)
        patch.setenv("OPENAI_API_KEY", "secret")
        with model_server(options) as (url, process):
            yield Served(engine, url, log)
    assert process.returncode not in (None, -signal.SIGKILL), log.read_text()[-3000:]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="module")
def encode(tokenizer: Any) -> Callable[..., list[int]]:
    """The ids of texts, each encoded by itself."""
    return lambda *texts: [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False)]


class Titles:
    """A retriever: the articles of the demo's world whose titles have most words of the query, in their order."""

    def __init__(self) -> None:
        facts = make_world(DEMO_SEED).facts
        self.documents = [Document(title, article(title, stated)) for title, stated in facts.items()]

    async def search_scored(self, query: str, top_n: int) -> list[Hit]:
        words = set(query.lower().split())
        ranked = sorted(self.documents, key=lambda document: -len(words & set(document.title.lower().split())))
        return [Hit(document, 0.0) for document in ranked[:top_n]]


class Transformers:
    """A generator in this process: greedy, a token at a time, with no engine between."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.tokenizer, self.eos_token_ids = tokenizer, (EOS,)
        self.model = AutoModelForCausalLM.from_pretrained(BASE_MODEL)

    async def generate(self, token_ids: list[int], max_tokens: int, dialect: Dialect) -> Generation:
        import torch

        sampled: list[int] = []
        given, cache = torch.tensor([token_ids]), None
        while len(sampled) < max_tokens:
            with torch.inference_mode():
                output = self.model(given, past_key_values=cache, use_cache=True)
            sampled.append(int(output.logits[0, -1].argmax()))
            text = self.tokenizer.decode(sampled, skip_special_tokens=False)
            if sampled[-1] == EOS or any(stop in text for stop in dialect.stops):
                break
            given, cache = torch.tensor([sampled[-1:]]), output.past_key_values
        return Generation(sampled)


async def answers(generator: Any) -> list[Trajectory]:
    settings = {"generator_max_input_len": CONTEXT, "max_response_tokens": 400, "max_result_tokens": 120}
    settings |= {"retrieval_topk": 2, "max_searches": 4, "concurrency": AT_ONCE}
    questions = make_world(DEMO_SEED).questions_by_split["dev"]
    pipeline = ReSearchPipeline(settings, Titles(), generator)
    every = len(questions) // QUESTIONS
    return await pipeline.run(questions[::every][:QUESTIONS])


@pytest.fixture(scope="module")
def reference(tokenizer: Any) -> list[Trajectory]:
    return asyncio.run(answers(Transformers(tokenizer)))


def test_the_demos_questions_get_the_ids_that_the_model_writes(served: Served, reference: list[Trajectory]) -> None:
    given = served.use(answers)
    assert len(given) == QUESTIONS
    assert {trajectory.end_reason for trajectory in reference} >= {"eos"}
    assert sum(trajectory.usage.searches for trajectory in reference) >= QUESTIONS // 2
    for ours, expected in zip(given, reference, strict=True):
        assert (ours.error, ours.end_reason, ours.answer) == (None, expected.end_reason, expected.answer)
        assert [segment.token_ids for segment in ours.segments] == [each.token_ids for each in expected.segments]
        assert [segment.text for segment in ours.segments] == [each.text for each in expected.segments]
        assert ours.usage.completion_tokens == expected.usage.completion_tokens


def test_a_conversation_is_answered_with_and_without_log_probabilities(served: Served) -> None:
    async def talk(generator: OpenAICompletionGenerator) -> list[Any]:
        asked, begun = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I think"}
        plain = await generator.chat([asked], 8)
        scored = await generator.chat([asked], 8, log_probs=True)
        continued = await generator.chat([asked, begun], 8)
        return [plain, scored, continued, *[await generator.chat([asked], most, ["e"]) for most in (None, CONTEXT)]]

    plain, scored, continued, unlimited, longest = served.use(talk, framework="openai_chat")
    assert (plain.finish_reason, plain.completion_tokens, plain.tokens) == ("length", 8, None)
    assert scored.text == plain.text
    assert "".join(token.text for token in scored.tokens) == plain.text
    assert continued.text
    assert "e" not in unlimited.text
    assert longest == unlimited


def test_a_text_comes_with_its_log_probabilities(served: Served) -> None:
    completion = served.use(lambda generator: generator.complete([5, 6, 7], 8, log_probs=True))
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 8)
    assert "".join(token.text for token in completion.tokens) == completion.text
    assert all(token.log_prob <= 0 for token in completion.tokens)


def test_every_token_of_the_context_is_used_and_then_the_reply_ends_for_its_length(
    served: Served, encode: Callable[..., list[int]]
) -> None:
    (word,) = encode("a")

    async def fill(generator: OpenAICompletionGenerator) -> None:
        assert generator.limits.max_tokens == CONTEXT
        for room in (8, 7, 6, 5, 2, 1):
            prompt = [word] * (CONTEXT - room)
            assert (await generator.generate(prompt, 100)).token_ids == [word] * room
            completion = await generator.complete(prompt, 100)
            assert (completion.finish_reason, completion.completion_tokens) == ("length", room)
        for prompt in ([word] * CONTEXT, [word] * (CONTEXT + 60)):
            assert (await generator.generate(prompt, 100)).token_ids == ()
            assert (await generator.complete(prompt, 100)).finish_reason == "length"

    served.use(fill, [word])


class Seen:
    """A watcher that keeps what it is shown."""

    def __init__(self) -> None:
        self.text = ""

    def begins(self) -> None:
        self.text = ""

    def writes(self, text: str) -> None:
        self.text += text

    def ends(self, *_: object) -> None: ...


@pytest.mark.parametrize("spelled", [[STOP], [*STOP], ["</", "sea", "rch", ">"]], ids=["whole", "letters", "pieces"])
def test_a_reply_ends_at_its_stop_however_it_is_spelled(
    served: Served, spelled: list[str], encode: Callable[..., list[int]]
) -> None:
    kept = encode("I need", *spelled)
    script = [*kept, *encode(" and then more words"), EOS]

    async def reply(generator: OpenAICompletionGenerator) -> None:
        assert (await generator.generate([5], 50)).token_ids == kept
        seen = Seen()
        assert (await generator.generate([5], 50, watcher=seen)).token_ids == kept
        assert seen.text.startswith("I need</search>")
        assert generator.token_id_origin is TokenIdOrigin.SERVER
        last = await generator.generate([5], len(kept))  # the stop is on the last token that is allowed
        assert last.token_ids == kept
        for max_tokens in (len(kept), 50):
            completion = await generator.complete([5], max_tokens, [STOP])
            assert (completion.text, completion.finish_reason) == ("I need", "stop")

    served.use(reply, script)


def test_a_reply_keeps_its_end_of_sequence(served: Served, encode: Callable[..., list[int]]) -> None:
    script = [*encode("Wu"), EOS]

    async def reply(generator: OpenAICompletionGenerator) -> None:
        for max_tokens in (50, len(script)):
            assert (await generator.generate([5], max_tokens)).token_ids == script
            completion = await generator.complete([5], max_tokens)
            assert (completion.text, completion.finish_reason) == ("Wu", "stop")
        assert (await generator.generate([5], len(script) - 1)).token_ids == script[:-1]

    served.use(reply, script)


def test_a_seed_repeats_a_sample_or_is_known_to_be_ignored(served: Served) -> None:
    params = {"temperature": 1.0, "seed": 7}

    async def sample(generator: OpenAICompletionGenerator) -> list[Any]:
        return [(await generator.generate([5, 6], 30)).token_ids for _ in range(2)]

    first, second = served.use(sample, generation_params=params)
    assert first == second or ask_model_server(evaluation(served)).ignores_seed
    assert ask_model_server(evaluation(served)).ignores_seed == (served.engine is Engine.SGLANG)


def evaluation(served: Served) -> Any:
    config = ["--config_path", str(REPOSITORY / "evaluation" / "eval_config.yaml"), "--method_name", "research"]
    config += ["--dataset_name", "q.jsonl", "--generator_model", str(BASE_MODEL), "--sgl_remote_url", served.url]
    return load_settings(parse_command_line([*config, "--generator_max_input_len", str(CONTEXT)]))


def test_the_server_says_what_it_serves(served: Served) -> None:
    said = ask_model_server(evaluation(served))
    assert (said.name, said.limits, said.root) == ("demo", (CONTEXT, VOCABULARY), str(BASE_MODEL))
    assert said.version
    assert said.sample_ids


@pytest.mark.parametrize("served", [Engine.SGLANG], indirect=True)
def test_an_aborted_request_is_sent_again(served: Served, encode: Callable[..., list[int]]) -> None:
    (word,) = encode("a")
    headers = {"Authorization": "Bearer secret"}

    async def abort_once(generator: OpenAICompletionGenerator) -> list[int]:
        asked = asyncio.create_task(generator.generate([5], 600))
        await asyncio.sleep(0.5)
        body = {"rid": "", "abort_all": True}
        await asyncio.to_thread(ask, f"{served.url}/abort_request", timeout_s=10, headers=headers, body=body)
        return [*(await asked).token_ids]

    sent = '"POST /v1/completions'
    before = served.log.read_text().count(sent)
    assert served.use(abort_once, [word]) == [word] * 600
    assert served.log.read_text().count(sent) == before + 2


def test_more_requests_than_the_server_queues_are_all_answered(
    served: Served, encode: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashrag.generator.completion._jitter", lambda _: 0.3)
    (word,) = encode("a")

    async def crowd(generator: OpenAICompletionGenerator) -> None:
        replies = await asyncio.gather(*(generator.generate([5, number], 40) for number in range(4 * AT_ONCE)))
        assert [reply.token_ids for reply in replies] == [[word] * 40] * (4 * AT_ONCE)

    served.use(crowd, [word], generator_max_retries=60)
    if served.engine is Engine.SGLANG:
        assert " 503 " in served.log.read_text()


def test_an_id_outside_the_vocabulary_is_refused_and_the_server_lives(served: Served) -> None:
    async def send(generator: OpenAICompletionGenerator) -> None:
        assert (await generator.generate([VOCABULARY - 1], 2)).token_ids
        with pytest.raises(GenerationError, match=rf"token {VOCABULARY}, and the model at .* has {VOCABULARY};"):
            await generator.generate([VOCABULARY], 2)
        assert (await generator.generate([5], 2)).token_ids

    served.use(send)


def test_sampling_parameters_are_taken_or_refused_at_the_start(served: Served) -> None:
    def sample(**params: float) -> Sequence[int]:
        return served.use(lambda generator: generator.generate([5], 5), generation_params=params).token_ids

    assert sample(top_k=0)
    assert sample(top_k=3, min_p=0.1, top_p=0.5, temperature=2.0, repetition_penalty=2.0)
    for name, value in (("repetition_penalty", 9.0), ("temperature", 10.0)):
        if name in MOST[served.engine]:
            with pytest.raises(UserError, match=rf"generation_params\.{name}={value:g}, but {served.engine}, which"):
                sample(**{name: value})
        else:
            assert sample(**{name: value})


def test_a_key_is_needed_for_all_but_the_health(served: Served) -> None:
    with pytest.raises(UserError, match="put the server's key into OPENAI_API_KEY"):
        find_served_card(served.settings(), "wrong")
    assert ask(f"{served.url}/health", timeout_s=10).status_code == 200


@pytest.mark.parametrize("served", [Engine.SGLANG], indirect=True)
def test_a_look_at_the_health_generates_nothing(served: Served) -> None:
    before = served.log.read_text().count("Prefill batch")
    assert before > 0
    for _ in range(5):
        assert ask(f"{served.url}/health", timeout_s=10).status_code == 200
    assert served.log.read_text().count("Prefill batch") == before


@pytest.mark.parametrize("served", [Engine.SGLANG], indirect=True)
@pytest.mark.usefixtures("served")
def test_the_stand_in_for_the_kernels_says_so_if_it_is_called() -> None:
    call = "import sgl_kernel; sgl_kernel.topk_softmax_cpu(1)"
    python = os.environ.get("RESEARCH_SGLANG_PYTHON") or str(SGLANG_PYTHON)
    done = subprocess.run([python, "-I", "-c", call], capture_output=True, text=True, check=False)
    assert "SGLang called sgl_kernel.topk_softmax_cpu, which has no build for CPUs on PyPI; serve this" in done.stderr
