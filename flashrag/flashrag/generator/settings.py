"""The configuration keys of a generator, under FlashRAG's and the published evaluation's names."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flashrag.client import check_address


class Framework(StrEnum):
    """How the model is served: by the OpenAI completion route (two names, both kept for existing configs), or by the
    chat route alone. There the server makes the prompt's tokens, and no tokenizer is needed here."""

    SGL_REMOTE = "sgl_remote"
    OPENAI = "openai"
    OPENAI_CHAT = "openai_chat"


class SamplingSettings(BaseModel):
    """`generation_params`: greedy unless a temperature is given.

    Every value is sent with each request: a server would otherwise fill gaps from the model's own
    generation_config.json (a repetition penalty, a top_p) and evaluate another policy than the trained one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(0.0, ge=0.0, le=10.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="sample from the likeliest tokens of this mass")
    top_k: int = Field(-1, ge=-1, description="sample from the k likeliest tokens; -1: from all")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="least probability, as a share of the likeliest token's")
    repetition_penalty: float = Field(1.0, gt=0.0, description="1 is none")
    seed: int | None = Field(None, description="seed of the server's sampling; null: the server's choice")
    do_sample: bool | None = Field(None, description="FlashRAG's switch: false is temperature 0")
    max_tokens: int | None = Field(None, ge=1, description="token limit of one request; null: the rest of the budget")

    @model_validator(mode="after")
    def _check_do_sample(self) -> "SamplingSettings":
        if self.do_sample is False and self.temperature > 0:
            raise ValueError(f"do_sample is false, but temperature is {self.temperature}; drop one of them")
        if self.do_sample is True and self.temperature == 0:
            raise ValueError("do_sample is true, but temperature is 0; give a temperature above 0")
        return self


class GeneratorSettings(BaseModel):
    """The keys of a generator; `generator_model` is the path of the model, for its tokenizer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    framework: Framework = Field(Framework.SGL_REMOTE, description=f"how the model is served: {', '.join(Framework)}")
    sgl_remote_url: str = Field(description="the model server: SGLang, vLLM, or another with OpenAI's routes")
    generator_model: str = Field(min_length=1, description="the model's folder or hub name; its tokenizer is read")
    generator_max_input_len: int = Field(8192, ge=1, description="prompt and response together, in tokens")
    generation_params: SamplingSettings = Field(SamplingSettings(), description="how tokens are sampled")
    generator_timeout_s: float = Field(600.0, gt=0, description="time limit of one request to the model server")
    generator_max_retries: int = Field(3, ge=0, description="retries of a failed request to the model server")

    @field_validator("sgl_remote_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        return check_address(url, "sgl_remote_url").removesuffix("/v1")

    @property
    def api_base_url(self) -> str:
        return f"{self.sgl_remote_url}/v1"
