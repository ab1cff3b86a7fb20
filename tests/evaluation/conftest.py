"""A model whose every token is known: a checkpoint for a real vLLM server, and a small server of the same route.

The model is a Qwen2 without attention or MLP output: the last token alone decides the next one, by the table below.
It thinks, searches, reads nothing, and answers "Wu". Its tokenizer has a token in which the stop string ends early.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from training.demo.run import retrieval_server

EOS = "<|endoftext|>"
CLOSE_AND_BREAK = "</search>\n\n"
FIRST_TURN = ["<think>", "t", "</think>", "<search>", "Zhou", CLOSE_AND_BREAK]
LAST_TURN = ["<answer>", "\\boxed{", "Wu", "}", "</answer>", EOS]
# The prompt of a base model ends with ":", a result with its closing tag.
CHAIN = [":", *FIRST_TURN], ["</result>", *LAST_TURN]
PASSAGES = [
    {
        "id": "7",
        "contents": '"King Wu of Zhou"\nKing Wu was the first king of the Zhou dynasty. <|endoftext|> </result>',
    },
    {"id": "8", "contents": '"Shang"\nThe Shang dynasty came before.'},
]


class Servers(NamedTuple):
    """The flags of a run that name its two servers, and the name under which its model is served."""

    flags: dict[str, str]
    served_model: str


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={EOS: 0, **{byte: 1 + i for i, byte in enumerate(alphabet)}}, merges=[])
    words = [token for chain in CHAIN for token in chain if len(token) > 1 and token != EOS]
    tokenizer.add_tokens([AddedToken(word, special=False) for word in dict.fromkeys(words)])
    return tokenizer


@pytest.fixture(scope="session")
def successors(tokenizer: Any) -> dict[int, int]:
    """The token after each token; every other token is followed by itself."""
    pairs = [pair for chain in CHAIN for pair in pairwise(chain)]
    following = {token_id: token_id for token_id in range(len(tokenizer))}
    for token, successor in pairs:
        following[token_id_of(tokenizer, token)] = token_id_of(tokenizer, successor)
    return following


def token_id_of(tokenizer: Any, token: str) -> int:
    (token_id,) = tokenizer.encode(token, add_special_tokens=False)
    return token_id


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The tokenizer alone, the only part of a served model that the evaluation reads."""
    folder = tmp_path_factory.mktemp("zhou-model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "kings").mkdir()
    lines = [
        '{"id": "a", "question": "Who was the first king of Zhou?", "golden_answers": ["wu"], '
        '"metadata": {"hops": 1, "supporting_titles": ["King Wu of Zhou", "Zhou dynasty"]}}',
        '{"id": "b", "question": "Who was king of Shang?", "golden_answers": ["Tang"], "metadata": {"hops": 2}}',
        '{"id": "c", "question": "Who beat him?", "golden_answers": ["Nobody", "King Wu"], "metadata": {"hops": 2}}',
    ]
    (folder / "kings" / "dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The keys of a local BM25 retriever over the passages."""
    from flashrag.retriever.index_builder import main as build

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in PASSAGES), encoding="utf-8")
    arguments = ["--retrieval_method", "bm25", "--corpus_path", str(folder / "corpus.jsonl"), "--save_dir", str(folder)]
    assert build(arguments) == 0
    return {
        "retrieval_method": "bm25",
        "corpus_path": str(folder / "corpus.jsonl"),
        "index_path": str(folder / "bm25"),
    }


@pytest.fixture(scope="session")
def small_servers(
    served: Callable[..., AbstractContextManager[str]],
    successors: dict[int, int],
    tokenizer: Any,
    model_folder: Path,
) -> Iterator[Servers]:
    """The same model and the same passages, in this process."""
    app, stops = FastAPI(), {0, token_id_of(tokenizer, CLOSE_AND_BREAK)}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "zhou", "max_model_len": 4096}]}

    @app.post("/v1/completions")
    def completions(request: dict[str, Any]) -> Any:
        sampled = sample(request["prompt"], request["max_tokens"], successors, stops)
        finish = "stop" if sampled[-1] in stops else "length"
        choice = {"index": 0, "text": tokenizer.decode(sampled), "finish_reason": finish, "token_ids": sampled}
        if request.get("logprobs"):
            choice["logprobs"] = {"tokens": [*map(tokenizer.decode, sampled)], "token_logprobs": [0.0] * len(sampled)}
        if request.get("stream"):
            return StreamingResponse(parts(sampled, finish), media_type="text/event-stream")
        return reply(choice)

    def reply(choice: dict[str, Any]) -> dict[str, Any]:
        return {"id": "1", "object": "text_completion", "created": 1, "model": "zhou", "choices": [choice]}

    async def parts(sampled: Sequence[int], finish: str) -> AsyncIterator[str]:
        """A token in each event, as vLLM sends them."""
        for left, token in zip(range(len(sampled) - 1, -1, -1), sampled, strict=True):
            part = {"index": 0, "text": tokenizer.decode([token]), "token_ids": [token]}
            yield f"data: {json.dumps(reply({**part, 'finish_reason': None if left else finish}))}\n\n"
            await asyncio.sleep(0.01)
        yield "data: [DONE]\n\n"

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/search")
    def search(request: dict[str, Any]) -> list[Any]:
        found = PASSAGES[: request["top_n"]] if "Zhou" in request["query"] else []
        return [found, [1.0 / (1 + rank) for rank in range(len(found))]] if request.get("return_score") else found

    with served(app) as url:
        flags = {"sgl_remote_url": url, "remote_retriever_url": url, "generator_model": str(model_folder)}
        yield Servers(flags, "zhou")


def sample(prompt: Sequence[int], max_tokens: int, successors: dict[int, int], stops: set[int]) -> list[int]:
    sampled: list[int] = []
    last = prompt[-1]
    while not sampled or (last not in stops and len(sampled) < max_tokens):
        last = successors[last]
        sampled.append(last)
    return sampled


@pytest.fixture(scope="session")
def real_servers(sharded: Path, corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """rag_serving on a BM25 index, as a process, and the checkpoint, which the run itself has vLLM serve."""
    with retrieval_server(corpus, tmp_path_factory.mktemp("logs")) as retrieval:
        flags = {"auto_serve": str(sharded.parent), "remote_retriever_url": retrieval}
        yield Servers(flags, str(sharded / "exported"))


@pytest.fixture(scope="session")
def sharded(model_folder: Path, successors: dict[int, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the model, of one rank, as verl writes it without `hf_model`."""
    import torch

    actor = tmp_path_factory.mktemp("run") / "global_step_5" / "actor"
    shutil.copytree(model_folder, actor / "huggingface")
    model = make_model(successors)
    model.config.save_pretrained(actor / "huggingface")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    torch.save(model.state_dict(), actor / "model_world_size_1_rank_0.pt")
    return actor


def make_model(successors: dict[int, int]) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    size = 512  # at least one dimension for each token: embeddings are unit vectors
    config = Qwen2Config(
        vocab_size=len(successors), hidden_size=size, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=4096, tie_word_embeddings=False, eos_token_id=0, bos_token_id=0,
        architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(successors)])
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token_id, successor in successors.items():
            model.lm_head.weight[successor, token_id] = 1.0
    return model
