r"""Agentic search by an instruct model that was never trained to search (Search-o1).

Source: Li et al., 2025, "Search-o1: Agentic Search-Enhanced Large Reasoning Models", arXiv 2501.05366. The model writes
a query between its tags. A separate request to the same model then reads the passages (Reason-in-Documents), and only
its summary enters the chain. Here, passages take the place of the paper's web pages.
"""

from flashrag.document import Document
from flashrag.episode import SEARCH_O1, ToolResult, encode_prompt
from flashrag.pipeline.episode_pipeline import EpisodePipeline, Finding
from flashrag.pipeline.trace import Trace
from flashrag.prompts import AGENT, FINAL_INFORMATION, REASON_IN_DOCUMENTS

NOTHING_HELPFUL = "No helpful information found."
MAX_REASONING_CHARS = 8000  # counted from the end, which tells most about the current query


class SearchO1Pipeline(EpisodePipeline):
    """Runs one episode in Search-o1's tags; the model summarises each result before it is spliced in."""

    dialect = SEARCH_O1

    def prompt_ids(self, question: str) -> list[int]:
        prompt = AGENT.fill(question=question, max_searches=str(self.settings.max_searches))
        return encode_prompt(self.generator.tokenizer, prompt, self.settings.apply_chat)

    async def read(self, finding: Finding, trace: Trace) -> ToolResult:
        prompt = REASON_IN_DOCUMENTS.fill(
            finding.passages, reasoning=finding.reasoning[-MAX_REASONING_CHARS:], query=finding.query
        )
        completion = await trace.generate(prompt, max_tokens=self.settings.max_result_tokens)
        information = completion.text.rpartition(FINAL_INFORMATION)[2].strip()
        return ToolResult(finding.passages, (Document("reason-in-documents", information or NOTHING_HELPFUL),))
