"""A chain of thought of short sentences that ends in "So the answer is: …", with or without passages.

IRCoT and FLARE both continue such a chain sentence by sentence; their papers show it to the model by examples drawn
from the training set of each data set. Here one example of our own serves every data set.
"""

from flashrag.document import Document
from flashrag.prompts.template import PromptTemplate

ANSWER_CUE = "So the answer is:"

_INSTRUCTION = (
    "Answer the question by reasoning in short sentences, each of which states one fact. "
    f'End with a sentence that starts with "{ANSWER_CUE}" and holds nothing but the answer.'
)
_EXAMPLE = (
    "Question: In which present-day country was the composer of the opera Bluebeard's Castle born?\n"
    "Answer: The opera Bluebeard's Castle was composed by Béla Bartók. Béla Bartók was born in Nagyszentmiklós. "
    f"Nagyszentmiklós is today the town of Sânnicolau Mare in Romania. {ANSWER_CUE} Romania."
)


def _wikipedia(_: int, document: Document) -> str:
    return f"Wikipedia Title: {document.title}\n{document.text}"


REASONING = PromptTemplate(system=f"{_INSTRUCTION}\n\n{_EXAMPLE}")
REASONING_WITH_PASSAGES = PromptTemplate(
    system=f"{_INSTRUCTION} Use the passages where they help.\n\n{_EXAMPLE}",
    user="{passages}\n\nQuestion: {question}",
    passage=_wikipedia,
    separator="\n\n",
)
