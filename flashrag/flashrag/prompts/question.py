"""A question alone, or with passages: FlashRAG's default prompts, word for word.

Source: FlashRAG (Jin et al., 2024, arXiv 2405.13576), its `PromptTemplate`. The missing space after "document." is
theirs, and is kept: published baseline figures were measured with it. The cue for base models is ours.
"""

from flashrag.prompts.template import PromptTemplate

WITH_PASSAGES = PromptTemplate(
    system="Answer the question based on the given document."
    "Only give me the answer and do not output any other words."
    "\nThe following are given documents.\n\n{passages}"
)
WITHOUT_PASSAGES = PromptTemplate(
    system="Answer the question based on your own knowledge. Only give me the answer and do not output any other words."
)
