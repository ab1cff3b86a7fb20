"""The settings of an evaluation: the keys of eval_config.yaml, each checked alone and against the others.

Does not cover: checking that servers and files exist (preflight/), reading a file and flags (command_line.py).
"""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from evaluation.scores.scoring import METRICS, MetricSettings
from flashrag.client import SearchControl, check_addresses
from flashrag.config import validated
from flashrag.dataset import DatasetSettings, is_dataset_file
from flashrag.errors import did_you_mean
from flashrag.generator import GeneratorSettings
from flashrag.generator.settings import Framework
from flashrag.pipeline import METHODS, PipelineSettings
from flashrag.records import EXPECTED_FILE, record_file_stem
from flashrag.retriever import RetrieverSettings
from flashrag.reward import JUDGE, RewardSetting, needs_judge

METHOD_NAMES = tuple(METHODS)
# Keys that may differ between a run and its continuation: they set addresses, speed, and scores, which are always
# computed again from the saved answers. A hash checks that the questions in `data_dir` are the same.
MAY_CHANGE = frozenset(
    {
        *("data_dir", "save_dir", "remote_retriever_url", "sgl_remote_url", "concurrency"),
        *("generator_timeout_s", "generator_max_retries", "retriever_timeout_s", "retriever_deadline_s"),
        *("metrics", "metric_setting", "reward", "save_metric_score", "save_intermediate_data"),
    }
)


class EvalSettings(DatasetSettings, GeneratorSettings, PipelineSettings):
    """Every key of eval_config.yaml and the flags."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method_name: str = Field(description=f"one of {', '.join(METHOD_NAMES)}")
    split: str | None = Field(None, min_length=1, description="not used if dataset_name is a file")
    num_samples: int = Field(1, ge=1, description="answers to each question; more than 1 need a temperature above 0")
    save_dir: Path = Field(description="folder of all runs; each run gets its own subfolder")
    save_note: str | None = Field(None, pattern=r"^[\w.-]+$", description="suffix of the name of the run's folder")
    save_metric_score: bool = Field(True, description="write metric_score.txt")
    save_intermediate_data: bool = Field(True, description="write intermediate_data.json, as FlashRAG does")
    use_remote_retriever: bool = Field(True, description="false: search in this process, with a local retriever")
    remote_retriever_url: str | None = Field(None, description="the retrieval server; several, separated by commas")
    retriever_timeout_s: float = Field(30.0, gt=0, description="limit of one request to the retrieval server")
    retriever_deadline_s: float = Field(120.0, gt=0, description="limit of one search with all its attempts")
    search_control: SearchControl = Field(
        SearchControl.NONE, description=f"what a search gives, other than its own result: {', '.join(SearchControl)}"
    )
    search_control_delay_s: float = Field(10.0, gt=0, description="longest delay of a search, if they are delayed")
    retriever: dict[str, Any] = Field(default_factory=dict, description="the keys of a local retriever, in one mapping")
    metrics: tuple[str, ...] = Field(("em", "f1", "acc"), description=", ".join(METRICS))
    metric_setting: MetricSettings = Field(MetricSettings(), description="settings of single metrics")
    reward: RewardSetting = Field(
        None, description="adds the metric reward: a function of your own, FILE:FUNCTION, or weights of terms"
    )

    @model_validator(mode="before")
    @classmethod
    def _forbid_searches(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "max_searches": 0} if values.get("search_control") == SearchControl.FORBIDDEN else values

    @field_validator("method_name")
    @classmethod
    def _check_method(cls, name: str) -> str:
        if name not in METHOD_NAMES:
            raise ValueError(f"no method has this name{_nearest(name, METHOD_NAMES)}")
        return name

    @field_validator("dataset_name")
    @classmethod
    def _check_dataset_name(cls, name: str) -> str:
        if not is_dataset_file(name) and ("/" in name or name in (".", "..")):
            raise ValueError(f"expected the name of a folder in data_dir, or the path of {EXPECTED_FILE}")
        return name

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in METRICS:
                raise ValueError(f"{name!r} is not a metric{_nearest(name, METRICS)}")
        if not names:
            raise ValueError(f"choose at least one of {', '.join(METRICS)}")
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _check_questions(self) -> "EvalSettings":
        if self.split is None and not is_dataset_file(self.dataset_name):
            raise ValueError("split is not set; give it a value, e.g. dev")
        if self.random_sample and self.test_sample_num is None:
            raise ValueError("random_sample is true, but test_sample_num is not set; give the number of questions")
        return self

    @model_validator(mode="after")
    def _check_samples(self) -> "EvalSettings":
        """Several answers to a question must be able to differ."""
        params, several = self.generation_params, f"num_samples={self.num_samples}, but "
        if self.num_samples == 1:
            return self
        if not METHODS[self.method_name].pipeline.needs_generator:
            raise ValueError(f"{several}{self.method_name} always gives the same answer; set num_samples=1")
        if params.temperature == 0:
            raise ValueError(
                f"{several}generation_params.temperature is 0, which gives the same answer each time; give a "
                "temperature above 0"
            )
        if params.seed is not None:
            raise ValueError(
                f"{several}generation_params.seed={params.seed} gives the same answer each time; leave the seed null"
            )
        return self

    @model_validator(mode="after")
    def _check_judge(self) -> "EvalSettings":
        judge = self.metric_setting.judge
        if JUDGE in self.metrics and judge is None:
            raise ValueError(f"metrics has {JUDGE}, but metric_setting.judge is not set; give it a model and a url")
        if needs_judge(self.reward) and judge is None:
            raise ValueError(f"reward has the term judge, but metrics lacks {JUDGE}; add it, and metric_setting.judge")
        if judge is not None and JUDGE not in self.metrics:
            raise ValueError(f"metric_setting.judge is set, but metrics lacks {JUDGE}; add it, or drop the judge")
        return self

    @model_validator(mode="after")
    def _check_retriever(self) -> "EvalSettings":
        if not self.use_remote_retriever:
            validated(RetrieverSettings, {**self.retriever, "retrieval_topk": self.retrieval_topk}, "local retriever")
            return self
        if self.retriever:
            raise ValueError(
                f"{min(self.retriever)} is a local retriever's key, but use_remote_retriever is true; "
                "remove the key, or set use_remote_retriever: false"
            )
        if self.remote_retriever_url is None:
            raise ValueError("use_remote_retriever is true, but remote_retriever_url is not set; give an address")
        check_addresses(self.remote_retriever_url, "remote_retriever_url")
        return self

    @property
    def asks_in_chat(self) -> bool:
        """Whether the model gets messages: with its own chat template, or on a server's chat route."""
        return self.apply_chat or self.framework is Framework.OPENAI_CHAT

    @property
    def dataset_title(self) -> str:
        """The name of the data set; for a file, its name without folder and ending."""
        return record_file_stem(self.dataset_name) or self.dataset_name

    @property
    def dataset_label(self) -> str:
        """Data set and split, e.g. `hotpotqa_dev`; a file has no split."""
        return self.dataset_title if is_dataset_file(self.dataset_name) else f"{self.dataset_name}_{self.split}"

    @property
    def run_folder(self) -> Path:
        """The folder of the run. The same command gives the same folder, so that a run can be continued."""
        note = f"_{self.save_note}" if self.save_note else ""
        return self.save_dir / f"{self.dataset_label}_{self.method_name}{note}"

    def as_config(self) -> dict[str, Any]:
        """All keys with their values, in the format of a configuration file."""
        return {**self.model_dump(mode="json", exclude={"retriever"}), **self.retriever}


# Keys that only a local retriever has.
RETRIEVER_KEYS = frozenset(RetrieverSettings.model_fields) - frozenset(EvalSettings.model_fields)


def _nearest(name: str, known: tuple[str, ...]) -> str:
    return did_you_mean(name, known) or f"; choose from {', '.join(known)}"
