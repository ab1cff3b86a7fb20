"""The `search` group of the training config as one frozen object, checked at the start.

Does not cover: how the config is composed (composition.py), upstream's settings (preflight/).
"""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Self

from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, Field, PositiveFloat, PositiveInt, model_validator

from flashrag.client import SearchControl, check_addresses
from flashrag.config import validated
from flashrag.episode import PYTHON, RESEARCH, SEARCH_R1, Dialect, Limits
from flashrag.errors import UserError
from flashrag.prompts import (
    PYTHON_TEMPLATE,
    RESEARCH_TEMPLATES,
    SEARCH_R1_TEMPLATE,
    ChosenPrompt,
    check_template_name,
    choose_prompt,
)
from flashrag.reward import (
    AnswerMetric,
    JudgeSettings,
    RewardFunction,
    RewardRule,
    RewardSetting,
    needs_judge,
    reward_function,
    rule_reward,
)

# A prompt tells the model its tags, so the dialect follows from the template.
DIALECT_OF_TEMPLATE: dict[str, Dialect] = {
    **dict.fromkeys(RESEARCH_TEMPLATES, RESEARCH),
    PYTHON_TEMPLATE: RESEARCH.with_calls(PYTHON),
    SEARCH_R1_TEMPLATE: SEARCH_R1,
}


class SearchSettings(BaseModel, frozen=True, extra="forbid"):
    """The settings of a search rollout beside verl's own config; config/research.yaml explains each key."""

    url: str
    top_n: PositiveInt
    timeout_s: PositiveFloat
    max_attempts: PositiveInt
    max_outage_s: PositiveFloat
    search_timeout_s: PositiveFloat | None
    episode_timeout_s: PositiveFloat | None
    max_searches: PositiveInt
    tell_budget: bool
    max_result_tokens: PositiveInt
    python_tool: bool
    prompt_template_name: Annotated[str, AfterValidator(partial(check_template_name, known=DIALECT_OF_TEMPLATE))]
    prompt_file: str | None = Field(min_length=1)
    apply_chat: bool
    control: SearchControl
    control_delay_s: PositiveFloat
    answer_metric: AnswerMetric
    reward_rule: RewardRule
    reward: RewardSetting
    judge: JudgeSettings | None
    mask_results: bool
    seed: int | None
    recipe: str | None
    max_failed_share: float = Field(ge=0, le=1)
    trajectory_dir: Path
    trajectory_keep_every: PositiveInt  # 1 keeps every step
    # Another process may still be writing the step before the one that this process begins.
    trajectory_keep_last: int = Field(ge=2)

    @model_validator(mode="after")
    def _check_url_and_tool(self) -> Self:
        check_addresses(self.url, "search_url")
        if self.python_tool != (self.prompt_template_name == PYTHON_TEMPLATE):
            raise UserError(
                f"search.python_tool={self.python_tool} does not go with search.prompt_template_name="
                f"{self.prompt_template_name}: use {PYTHON_TEMPLATE}, which describes the tool to the model"
            )
        if self.python_tool and self.control is SearchControl.FORBIDDEN:
            raise UserError("search.control=forbidden forbids the calls of all tools; set search.python_tool=false")
        if self.tell_budget and self.control is SearchControl.FORBIDDEN:
            raise UserError(
                "search.tell_budget=true tells the searches that are left, but search.control=forbidden allows none; "
                "set search.tell_budget=false"
            )
        if self.control is SearchControl.FORCED and not self.mask_results:
            raise UserError(
                "search.control=forced puts in searches that the model did not sample, which search.mask_results=false "
                "would train on; set search.mask_results=true"
            )
        if self.control is SearchControl.STALE and self.max_searches < 2:
            raise UserError(
                "search.control=stale gives a search the passages of an earlier one, but search.max_searches=1 allows "
                "one search; raise it, or use search.control=empty"
            )
        return self

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if needs_judge(self.reward) and self.judge is None:
            raise UserError("search.reward has the term judge, but search.judge is not set; give it a model and a url")
        return self

    @classmethod
    def from_config(cls, group: Mapping[str, Any]) -> Self:
        """Read the `search` group; raises `UserError` naming a missing or unknown key, or a wrong value."""
        values: Any = OmegaConf.to_container(group, resolve=True) if OmegaConf.is_config(group) else group
        return validated(cls, values, "the search group of the training config")

    def limits(self, max_response_tokens: int) -> Limits:
        """The budgets of one episode."""
        return Limits(
            max_response_tokens=max_response_tokens,
            max_result_tokens=self.max_result_tokens,
            max_searches=0 if self.control is SearchControl.FORBIDDEN else self.max_searches,
            search_timeout_s=self.search_timeout_s,
            episode_timeout_s=self.episode_timeout_s,
            tell_budget=self.tell_budget,
        )

    def reward_function(self) -> RewardFunction:
        """The reward of an episode; raises `UserError` for a function of the user's that cannot be used."""
        if self.reward is None:
            return partial(rule_reward, metric=self.answer_metric, rule=self.reward_rule)
        return reward_function(self.reward)

    @cached_property
    def prompt(self) -> ChosenPrompt:
        """The prompt of an episode; raises `UserError` for a file that cannot be used."""
        return choose_prompt(self.prompt_template_name, self.prompt_file)

    def dialect(self) -> Dialect:
        """The tags that the model is told in its prompt."""
        return DIALECT_OF_TEMPLATE[self.prompt_template_name]
