"""Models that write what a test wants, on the real engine.

`WritesPrograms`: the question "Run NAME" makes it run that program, then answer. `WritesSearches`: it samples a few
tokens of its own, searches, and answers, rightly or not as the first of them says. vLLM loads these by name, in the
process that computes; whatever the weights say, they leave one token.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

PROGRAMS = json.loads(Path(__file__).with_name("programs.json").read_text(encoding="utf-8"))
ANSWER = r" <think> I know. </think> <answer> The final answer is \[ \boxed{ 42 } \] </answer>"

SEARCH = "<think> I look it up. </think>\n<search> Adam Draper </search>\n\n"


class WritesPrograms(LogitsProcessor):
    """Each request's next token is that of its program, or of the answer once there is a result."""

    free_tokens = 0  # before the script begins

    def __init__(self, vllm_config: Any, *_: Any):
        self.tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
        self.rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, (script, sampled_ids) in self.rows.items():
            written = len(sampled_ids) - self.free_tokens
            if written < 0:
                continue
            # A request that the engine computes a token too far may sample anything.
            token_id = self._token(script, sampled_ids, min(written, len(script) - 1))
            logits[index] = float("-inf")
            logits[index, token_id] = 0.0
        return logits

    def _token(self, script: list[int], sampled_ids: list[int], place: int) -> int:  # noqa: ARG002
        return script[place]

    def _row(
        self, _: SamplingParams, prompt_ids: list[int] | None, sampled_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        assert prompt_ids is not None, "a prompt is given as token ids"
        question, _, response = self.tokenizer.decode(prompt_ids).rpartition("Run ")[2].partition(" Assistant:")
        if "</result>" in response:
            script = [*self.tokenizer.encode(ANSWER), self.tokenizer.eos_token_id]
        else:
            code = PROGRAMS[question.rstrip("?")]["code"]
            script = self.tokenizer.encode(f" <think> I calculate. </think> <python>\n{code}\n</python>")
        return script, sampled_ids


class WritesSearches(WritesPrograms):
    """The search's last token begins with the end of its tag; the answer is right if the first free token is even."""

    free_tokens = 6

    def _token(self, script: list[int], sampled_ids: list[int], place: int) -> int:
        right, wrong = self.tokenizer.encode(" Oakdale"), self.tokenizer.encode(" Nowhere")
        return wrong[0] if script[place] == right[0] and sampled_ids[0] % 2 else script[place]

    def _row(
        self, _: SamplingParams, prompt_ids: list[int] | None, sampled_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        assert prompt_ids is not None, "a prompt is given as token ids"
        response = self.tokenizer.decode(prompt_ids).rpartition("assistant\n")[2]
        text = ANSWER.replace("42", "Oakdale") if "</result>" in response else SEARCH
        return [*self.tokenizer.encode(text), self.tokenizer.eos_token_id], sampled_ids
