"""Where the judge of `llm_judge` is: any OpenAI-compatible chat endpoint, apart from the model that is evaluated."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flashrag.client import check_search_url
from flashrag.errors import UserError

KEY_VARIABLES = ("JUDGE_API_KEY", "OPENAI_API_KEY")


class JudgeSettings(BaseModel):
    """`metric_setting.judge`; its key comes from the environment (JUDGE_API_KEY, else OPENAI_API_KEY)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field("https://api.openai.com/v1", description="base address of the chat completions route")
    model: str = Field(min_length=1, description="name of the judging model")
    concurrency: int = Field(16, ge=1, description="requests to the judge at a time")
    timeout_s: float = Field(60.0, gt=0, description="of one request to the judge")
    max_retries: int = Field(5, ge=0, description="of a request to the judge that failed")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        try:
            return check_search_url(url, "url")
        except UserError as error:
            raise ValueError(str(error)) from error
