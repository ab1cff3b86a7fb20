"""Models that write what a test wants, on the real engine.

`WritesPrograms`: the question "Run NAME" makes it run that program, then answer. `WritesSearches`: it searches twice,
then answers; a part of each thought is its own, and by that of the last one the answer is right or wrong. vLLM loads
these by name, in the process that computes; whatever the weights say, they leave one token where a script has one.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from flashrag.episode import RESEARCH, SEARCH_R1

PROGRAMS = json.loads(Path(__file__).with_name("programs.json").read_text(encoding="utf-8"))
ANSWER = r" <think> I know. </think> <answer> The final answer is \[ \boxed{ 42 } \] </answer>"

QUERIES = ("Adam Draper", "Wildford")
FREE_TOKENS = 6  # of each thought
REPLY = re.compile(r"<\|im_start\|>assistant\n| Assistant:")
Script = list[int | None]  # the tokens to write, None for one that is left to the model


class WritesPrograms(LogitsProcessor):
    """Each request's next token is that of its program, or of the answer once there is a result."""

    def __init__(self, vllm_config: Any, *_: Any):
        self.tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
        self.control_ids = sorted(self.tokenizer.added_tokens_decoder)
        self.rows: dict[int, tuple[Script, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, (script, sampled_ids) in self.rows.items():
            token_id = self._token(script, sampled_ids)
            if token_id is None:
                logits[index, self.control_ids] = float("-inf")
            else:
                logits[index] = float("-inf")
                logits[index, token_id] = 0.0
        return logits

    def _token(self, script: Script, sampled_ids: list[int]) -> int | None:
        # A request that the engine computes a token too far may sample anything.
        return script[min(len(sampled_ids), len(script) - 1)]

    def _row(self, _: SamplingParams, prompt_ids: list[int] | None, sampled_ids: list[int]) -> tuple[Script, list[int]]:
        assert prompt_ids is not None, "a prompt is given as token ids"
        question, _, response = self.tokenizer.decode(prompt_ids).rpartition("Run ")[2].partition(" Assistant:")
        if "</result>" in response:
            script = [*self.tokenizer.encode(ANSWER), self.tokenizer.eos_token_id]
        else:
            code = PROGRAMS[question.rstrip("?")]["code"]
            script = self.tokenizer.encode(f" <think> I calculate. </think> <python>\n{code}\n</python>")
        return script, sampled_ids


class WritesSearches(WritesPrograms):
    """In the tags that the prompt tells; a search's last token begins with the end of its tag.

    The answer is right if the first free token before it is even. The file that RESEARCH_TEST_REQUESTS names gets the
    ids of all prompts that reach the engine.
    """

    def _token(self, script: Script, sampled_ids: list[int]) -> int | None:
        token_id = super()._token(script, sampled_ids)
        right, wrong = self.tokenizer.encode(" Oakdale"), self.tokenizer.encode(" Nowhere")
        is_wrong = token_id == right[0] and sampled_ids[script.index(None)] % 2
        return wrong[0] if is_wrong else token_id

    def _row(self, _: SamplingParams, prompt_ids: list[int] | None, sampled_ids: list[int]) -> tuple[Script, list[int]]:
        assert prompt_ids is not None, "a prompt is given as token ids"
        if path := os.environ.get("RESEARCH_TEST_REQUESTS"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(prompt_ids)}\n")
        text = self.tokenizer.decode(prompt_ids)
        dialect = SEARCH_R1 if SEARCH_R1.result.open in text else RESEARCH
        results = REPLY.split(text)[-1].count(dialect.result.close)
        if results < len(QUERIES):
            step = f"{dialect.render_search(QUERIES[results])}\n\n"
        else:
            step = f"<answer>{dialect.shown_answer(' Oakdale ')}</answer>"
        script = [*self._ids("<think>"), *[None] * FREE_TOKENS, *self._ids(f" so I go on. </think>\n{step}")]
        return [*script, self.tokenizer.eos_token_id], sampled_ids

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
