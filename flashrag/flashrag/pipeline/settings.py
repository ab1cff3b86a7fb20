"""The configuration keys of a pipeline."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flashrag.prompts import check_template_name


class PipelineSettings(BaseModel):
    """The configuration of a pipeline. The budgets are those of the full training run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    apply_chat: bool = Field(False, description="true for instruct models: their own chat template")
    prompt_template_name: Annotated[str, AfterValidator(check_template_name)] = Field(
        "qa_template", description="research: the prompt template"
    )
    prompt_file: str | None = Field(
        None, min_length=1, description="a prompt of yours, or a fetched one, in place of the method's own"
    )
    retrieval_topk: int = Field(5, ge=1, description="passages per search")
    generator_max_input_len: int = Field(8192, ge=1, description="prompt and response together, in tokens")
    max_response_tokens: int = Field(8192, ge=1, description="sampled and spliced tokens together")
    max_result_tokens: int = Field(2048, ge=1, description="tokens of one spliced result")
    max_searches: int = Field(16, ge=0, description="calls of all tools together")
    tell_budget: bool = Field(False, description="each result tells the model how many searches it has left")
    python_tool: bool = Field(False, description="research: whether the model can run code (flashrag/tools/python.py)")
    iter_num: int = Field(3, ge=1, description="turns of iterretgen")
    max_iterations: int = Field(8, ge=1, description="rounds of ircot, self-ask and flare")
    flare_threshold: float = Field(0.8, ge=0.0, le=1.0, description="a token less likely than this starts a search")
    flare_mask_threshold: float = Field(0.4, ge=0.0, le=1.0, description="a token less likely is not in the query")
    flare_look_ahead_tokens: int = Field(64, ge=1, description="how far flare looks ahead, in tokens")
    seed: int = Field(2024, description="seed of a method's random draws")
    concurrency: int = Field(64, ge=1, description="questions in flight at once")

    @property
    def answer_stops(self) -> tuple[str, ...]:
        """Stop strings for an answer: a base model goes on in a new line after it, an instruct model ends its turn."""
        return () if self.apply_chat else ("\n",)
