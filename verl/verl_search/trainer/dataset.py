"""The question dataset: verl's parquet dataset, keyed by question, with prompts measured as the rollout builds them.

The agent loop turns a question into prompt ids (`flashrag.episode.prompt_ids`). The dataset only passes it on.
It leaves out and counts questions whose prompt exceeds the budget, and never truncates a prompt.
"""

from functools import cached_property
from typing import Any

import datasets
from verl.utils.dataset.rl_dataset import RLHFDataset

from flashrag.episode import prompt_token_ids
from flashrag.errors import UserError
from flashrag.prompts import ChosenPrompt, choose_prompt
from flashrag.questions import question_text
from verl_search.preflight.facts import fits


class QuestionDataset(RLHFDataset):
    """Rows of `training/data_preprocess_hpqa.py`: question, data_source, reward_model, extra_info.

    `split` is "train" or "val", which the trainer sets. The agent loop files trajectories under it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.split: str | None = None

    def maybe_filter_out_long_prompts(self, dataframe: datasets.Dataset) -> datasets.Dataset:
        """Leave out questions whose prompt exceeds `max_prompt_length` tokens, and say how many."""
        if not self.filter_overlong_prompts:
            return dataframe
        questions = [question_text(question) for question in dataframe[self.prompt_key]]
        kept = [i for i, fit in enumerate(fits(questions, self._prompt_ids, self.max_prompt_length)) if fit]
        left_out = len(dataframe) - len(kept)
        if not kept:
            raise UserError(
                f"no question of {self.data_files} fits max_prompt_length={self.max_prompt_length} tokens; raise it"
            )
        if left_out:
            print(f"left out {left_out} of {len(dataframe)} questions: longer than {self.max_prompt_length} tokens")
        return dataframe.select(kept)

    @cached_property
    def _prompt(self) -> ChosenPrompt:
        return choose_prompt(self.config.prompt_template_name, self.config.prompt_file)

    def _prompt_ids(self, question: str) -> list[int]:
        return prompt_token_ids(self.tokenizer, question, self._prompt, self.config.apply_chat)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = {**super().__getitem__(item), "split": self.split}
        row.pop("agent_name", None)  # verl's tool data sets name another agent loop here, one that does not search
        return row

    def _build_messages(self, example: dict[str, Any], key: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question_text(example[key])}]
