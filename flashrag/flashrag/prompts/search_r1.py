"""The prompt that Search-R1's models are trained with, word for word.

Source: Search-R1 (Jin et al., 2025, arXiv 2503.09516), table 1 and the project's data preparation.
"""

from flashrag.prompts.template import PromptTemplate

SEARCH_R1_PROMPT = PromptTemplate(
    system="",
    user="Answer the given question. "
    "You must conduct reasoning inside <think> and </think> first every time you get new information. "
    "After reasoning, if you find you lack some knowledge, you can call a search engine by <search> query </search> "
    "and it will return the top searched results between <information> and </information>. "
    "You can search as many times as your want. "
    "If you find no further external knowledge needed, you can directly provide the answer inside <answer> and "
    "</answer>, without detailed illustrations. For example, <answer> Beijing </answer>. Question: {question}\n",
    cue="",
)
