"""Follow-up questions and intermediate answers, by the four examples of the Self-Ask paper.

Source: Press et al., 2023, "Measuring and Narrowing the Compositionality Gap in Language Models", arXiv 2210.03350
(the examples are its published prompt). The passages before the question are FlashRAG's addition: the paper asks a
search engine that answers in a few words, a retriever answers in passages.
"""

from flashrag.document import Document
from flashrag.prompts.template import PromptTemplate

FOLLOW_UP = "Follow up:"
INTERMEDIATE_ANSWER = "Intermediate answer:"
FINAL_ANSWER = "So the final answer is:"

EXAMPLES = """\
Question: Who lived longer, Muhammad Ali or Alan Turing?
Are follow up questions needed here: Yes.
Follow up: How old was Muhammad Ali when he died?
Intermediate answer: Muhammad Ali was 74 years old when he died.
Follow up: How old was Alan Turing when he died?
Intermediate answer: Alan Turing was 41 years old when he died.
So the final answer is: Muhammad Ali

Question: When was the founder of craigslist born?
Are follow up questions needed here: Yes.
Follow up: Who was the founder of craigslist?
Intermediate answer: Craigslist was founded by Craig Newmark.
Follow up: When was Craig Newmark born?
Intermediate answer: Craig Newmark was born on December 6, 1952.
So the final answer is: December 6, 1952

Question: Who was the maternal grandfather of George Washington?
Are follow up questions needed here: Yes.
Follow up: Who was the mother of George Washington?
Intermediate answer: The mother of George Washington was Mary Ball Washington.
Follow up: Who was the father of Mary Ball Washington?
Intermediate answer: The father of Mary Ball Washington was Joseph Ball.
So the final answer is: Joseph Ball

Question: Are both the directors of Jaws and Casino Royale from the same country?
Are follow up questions needed here: Yes.
Follow up: Who is the director of Jaws?
Intermediate answer: The director of Jaws is Steven Spielberg.
Follow up: Where is Steven Spielberg from?
Intermediate answer: The United States.
Follow up: Who is the director of Casino Royale?
Intermediate answer: The director of Casino Royale is Martin Campbell.
Follow up: Where is Martin Campbell from?
Intermediate answer: New Zealand.
So the final answer is: No"""


def _context(number: int, document: Document) -> str:
    return f"Context{number}: {document.title}: {document.text}"


SELF_ASK = PromptTemplate(
    system="Given the following question, answer it by providing follow up questions and intermediate answers, "
    f"in the form of these examples.\n\n{EXAMPLES}",
    user="{passages}\nQuestion: {question}",
    cue="\nAre follow up questions needed here:",
    passage=_context,
)
