"""What is known about a training run before it starts: its config, questions, model, server and machine.

No engine, no torch. Does not cover: judging the facts (rules.py, settings_rules.py).
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flashrag.client import ANY_QUERY, RetrievalServers, ask_servers
from flashrag.errors import UserError
from flashrag.generator import (
    ModelFacts,
    check_model_folder,
    eos_token_ids,
    load_tokenizer,
    local_folder,
    read_model_facts,
)
from flashrag.preflight import fact
from flashrag.questions import FIELDS, Question, parse_question, read_each
from flashrag.records import Record, read_records
from flashrag.reward import MADE_UP, JudgeReply, ask_judge
from verl_search.platform.ray_cluster import Node, RayChoice, check_ray, configured_ray, needs, ray_folder
from verl_search.preflight.hardware import HardwareFacts
from verl_search.preflight.memory import Memory, training_memory
from verl_search.preflight.sizes import sequence_tokens
from verl_search.settings import SearchSettings
from verl_search.trainer.wandb_mode import WandbChoice, configured_wandb

MODEL_KEY = "actor_rollout_ref.model.path"
ROW_COLUMNS = ("data_source", "reward_model", "extra_info")
REMEDY = "make it with training/data_preprocess.py"


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of one split, those with a prompt that is too long, and the tokens of the first prompt."""

    questions: list[Question]
    too_long: int
    first_prompt_ids: list[int]

    @property
    def used(self) -> int:
        return len(self.questions) - self.too_long


class TrainingFacts(HardwareFacts):
    """Facts about the run of a composed config. A `UserError` says why a fact cannot be gathered."""

    def __init__(self, config: DictConfig, config_name: str = "research") -> None:
        self.config, self.config_name = config, config_name

    @property
    def sequence_tokens(self) -> int:
        return sequence_tokens(self.config)

    @property
    def save_path(self) -> Path:
        return Path(self.config.trainer.default_local_dir)

    @fact
    def cache_folder(self) -> Path:
        """Where Hugging Face's libraries keep what they make of the questions."""
        xdg = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(os.environ.get("HF_DATASETS_CACHE") or os.environ.get("HF_HOME") or xdg / "huggingface")

    @fact
    def settings(self) -> SearchSettings:
        require(self.config, "search.url")
        return SearchSettings.from_config(self.config.search)

    @fact
    def train(self) -> Asked:
        return self._asked("data.train_files")

    @fact
    def val(self) -> Asked:
        return self._asked("data.val_files")

    @property
    def trains_here(self) -> bool:
        """Whether GPUs of this machine train: not on the head of a cluster that has none."""
        return self.config.trainer.device != "cpu" and bool(self.gpus or not self.ray.joins)

    @property
    def gpu_bytes(self) -> int | None:
        """The memory of the smallest GPU; None where none is here, or tells it."""
        return min((gpu.memory_bytes for gpu in self.gpus if gpu.memory_bytes), default=None)

    @fact
    def memory(self) -> Memory | None:
        if self.model is None:
            return None
        return training_memory(self.model, self.config, self.gpu_bytes, self.flash_attn)

    @fact
    def model_path(self) -> str:
        return str(require(self.config, MODEL_KEY))

    @fact
    def model_folder(self) -> Path | None:
        """None for a name that the hub, or its cache on this machine, must resolve."""
        folder = local_folder(self.model_path, MODEL_KEY)
        if folder is not None:
            check_model_folder(folder, MODEL_KEY)
        return folder

    @fact
    def model(self) -> ModelFacts | None:
        """None as for `model_folder`."""
        return None if self.model_folder is None else read_model_facts(self.model_folder, MODEL_KEY)

    @fact
    def tokenizer(self) -> Any:
        tokenizer = load_tokenizer(str(self.model_folder or self.model_path), MODEL_KEY)
        tokenizer.chat_template = self.config.actor_rollout_ref.model.custom_chat_template or tokenizer.chat_template
        return tokenizer

    @fact
    def eos_ids(self) -> list[int]:
        return eos_token_ids(self.tokenizer, self.model_path, MODEL_KEY)

    @fact
    def servers(self) -> RetrievalServers:
        return ask_servers(self.settings.url, ANY_QUERY, self.settings.top_n, "search_url")

    @fact
    def rewarded_question(self) -> tuple[Question, str]:
        """The first training question with its data source; made up where there is none to be read."""
        try:
            first = self.train.questions[0]
        except UserError:
            return MADE_UP, ""
        row = next(read_records(question_paths(self.config, "data.train_files")[0], {"data_source"}))
        return first, str(row.content["data_source"])

    @fact
    def judge_reply(self) -> JudgeReply:
        assert self.settings.judge is not None, "there is a judge"
        return ask_judge(self.settings.judge)

    @fact
    def ray(self) -> RayChoice:
        return configured_ray(self.config)

    @fact
    def ray_folder(self) -> Path:
        return ray_folder(os.environ)

    @fact
    def ray_nodes(self) -> list[Node]:
        """The nodes of the cluster that the run joins, which has answered and has room; none if it joins none."""
        return check_ray(self.ray, needs(self.config))

    @fact
    def wandb(self) -> WandbChoice:
        return configured_wandb(self.config)

    @fact
    def steps_per_epoch(self) -> int:
        """Upstream leaves out the questions that do not fill a last batch."""
        return self.train.used // self.config.data.train_batch_size

    @fact
    def total_steps(self) -> int:
        return self.config.trainer.total_training_steps or self.steps_per_epoch * self.config.trainer.total_epochs

    def _asked(self, key: str) -> Asked:
        paths, prompt_key = question_paths(self.config, key), self.config.data.prompt_key
        questions = [question for path in paths for question in read_questions(key, path, prompt_key)]
        texts = [question.question for question in questions]
        too_long = fits(texts, self._prompt_ids, self.config.data.max_prompt_length).count(False)
        return Asked(questions, too_long, self._prompt_ids(texts[0]))

    def _prompt_ids(self, question: str) -> list[int]:
        from flashrag.episode import prompt_token_ids

        return prompt_token_ids(self.tokenizer, question, self.settings.prompt, self.settings.apply_chat)


def require(config: DictConfig, key: str) -> Any:
    """The value of a key; raises `UserError` where it is not set."""
    if (value := OmegaConf.select(config, key)) is None:
        raise UserError(f"{key} is not set; give it as {key}=VALUE, or by its flag of training/run.sh")
    return value


def question_paths(config: DictConfig, key: str) -> list[Path]:
    """The files of this key; raises `UserError` unless it names one or more."""
    files = require(config, key)
    names = [files] if isinstance(files, str) else files
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{key}={files}: expected a parquet file, or several: {key}=[a.parquet,b.parquet]")
    return [Path(name) for name in names]


def read_questions(key: str, path: Path, prompt_key: str) -> list[Question]:
    """The questions of the parquet file of this key; raises `UserError` unless each row has one, with gold answers."""
    import pyarrow
    from pyarrow import parquet

    if not path.is_file():
        raise UserError(f"{key}={path} does not exist; {REMEDY}")
    try:
        columns = set(parquet.read_schema(path).names)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{key}={path} is not a parquet file; {REMEDY}") from error
    if lacking := {prompt_key, *ROW_COLUMNS} - columns:
        raise UserError(
            f"{key}={path} lacks the columns {sorted(lacking)}, it has {sorted(columns)}; {REMEDY}, or name the "
            "question's column with data.prompt_key"
        )
    try:
        records = read_records(path, FIELDS | {prompt_key.lower(), "data_source"})
        return read_each(records, path, partial(_question, prompt_key=prompt_key))
    except UserError as error:  # its message begins with the path
        raise UserError(f"{key}={error}; {REMEDY}") from error


def _question(record: Record, index: int, left_out: Counter[str], prompt_key: str) -> Question:
    """verl reads `extra_info` as an object, and groups its metrics by `data_source`."""
    row = record.content
    if not isinstance(row["extra_info"], Mapping | None):
        raise UserError(f"extra_info: {row['extra_info']!r} was given; expected an object, or nothing")
    if not isinstance(row["data_source"], str | int | None):
        raise UserError(f"data_source: {row['data_source']!r} was given; expected the name of a set of questions")
    return parse_question(record.content, default_id=str(index), question_key=prompt_key, left_out=left_out)


def fits(questions: Sequence[str], prompt_ids: Callable[[str], list[int]], max_tokens: int) -> list[bool]:
    """For each question, whether its prompt has at most `max_tokens`. Only those that may have more are encoded.

    A token holds at least one byte of the normalised text, to which a space is added for each control token in it: at
    most one for each sign that is no letter, digit or white space. So a question of few bytes fits for sure.
    """
    around = len(prompt_ids("")) if questions else 0
    texts = [unicodedata.normalize("NFKC", question) for question in questions]
    return [
        around + len(text.encode()) + len(re.findall(r"[^\w\s]", text)) <= max_tokens
        or len(prompt_ids(question)) <= max_tokens
        for question, text in zip(questions, texts, strict=True)
    ]
