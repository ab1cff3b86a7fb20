"""The `search` group of the training config, as one frozen object, checked once before anything starts."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from flashrag.client import check_search_url
from flashrag.episode import PYTHON, RESEARCH, Dialect, Limits
from flashrag.errors import UserError
from flashrag.prompts import PYTHON_TEMPLATE, check_template_name
from verl_search.rollout.reward import AnswerMetric, RewardRule

DURATIONS = ("timeout_s", "max_outage_s", "search_timeout_s", "episode_timeout_s")


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What a search rollout needs beside verl's own config; see config/research.yaml for each key's meaning."""

    url: str
    top_n: int
    timeout_s: float
    max_attempts: int
    max_outage_s: float
    search_timeout_s: float | None
    episode_timeout_s: float | None
    max_searches: int
    max_result_tokens: int
    python_tool: bool
    prompt_template_name: str
    apply_chat: bool
    answer_metric: AnswerMetric
    reward_rule: RewardRule
    mask_results: bool
    seed: int | None
    max_failed_share: float
    trajectory_dir: str
    trajectory_keep_every: int
    trajectory_keep_last: int

    def __post_init__(self) -> None:
        check_search_url(self.url)
        check_template_name(self.prompt_template_name)
        if self.python_tool != (self.prompt_template_name == PYTHON_TEMPLATE):
            raise UserError(
                f"search.python_tool={self.python_tool} does not go with search.prompt_template_name="
                f"{self.prompt_template_name}: {PYTHON_TEMPLATE} is the template that tells the model of that tool"
            )
        for key in ("top_n", "max_attempts", "max_searches", "max_result_tokens", *DURATIONS):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"search.{key}={value} must be greater than 0")
        # Another process may still be writing the step before the one that this process begins.
        if self.trajectory_keep_every < 1 or self.trajectory_keep_last < 2:
            raise UserError(
                f"search.trajectory_keep_every={self.trajectory_keep_every} must be at least 1 (1 keeps every step), "
                f"and search.trajectory_keep_last={self.trajectory_keep_last} at least 2"
            )
        for key, choices in (("answer_metric", get_args(AnswerMetric)), ("reward_rule", get_args(RewardRule))):
            if getattr(self, key) not in choices:
                raise UserError(f"search.{key}={getattr(self, key)!r} is not one of {choices}")
        if not 0 <= self.max_failed_share <= 1:
            raise UserError(f"search.max_failed_share={self.max_failed_share} must lie in [0, 1]")

    @classmethod
    def from_config(cls, group: Any) -> "SearchSettings":
        """Read the `search` group (a mapping); raises `UserError` naming a missing or unknown key."""
        known = {field.name for field in fields(cls)}
        given = set(group)
        if given - known or known - given:
            raise UserError(
                f"the search group of the training config has unknown keys {sorted(given - known)} "
                f"and lacks {sorted(known - given)}; see verl/verl_search/config/research.yaml"
            )
        return cls(**{name: group[name] for name in known})

    def limits(self, max_response_tokens: int) -> Limits:
        """The budgets of one episode."""
        return Limits(
            max_response_tokens=max_response_tokens,
            max_result_tokens=self.max_result_tokens,
            max_searches=self.max_searches,
            search_timeout_s=self.search_timeout_s,
            episode_timeout_s=self.episode_timeout_s,
        )

    def dialect(self) -> Dialect:
        """What the model may call."""
        return RESEARCH.with_calls(PYTHON) if self.python_tool else RESEARCH

    def trajectory_path(self) -> Path:
        return Path(self.trajectory_dir)
