"""The prompts of the methods that ReSearch is compared with.

Sources, each word for word where the text is published:
- WITH_PASSAGES, WITHOUT_PASSAGES: FlashRAG (Jin et al., 2024, arXiv 2405.13576), `PromptTemplate`. The missing space
  after "document." is theirs: published baseline figures were measured with it. The cue for base models is ours.
- REASONING: our own words. IRCoT and FLARE continue a chain of thought sentence by sentence; their papers show one by
  examples drawn from the training set of each data set. Here one example of our own serves every data set.
- SELF_ASK: Press et al., 2023, "Measuring and Narrowing the Compositionality Gap in Language Models", arXiv 2210.03350
  (the examples are its published prompt). The passages before the question are FlashRAG's addition: the paper asks a
  search engine that answers in a few words, a retriever answers in passages.
- AGENT, REASON_IN_DOCUMENTS: Search-o1 (Li et al., 2025, arXiv 2501.05366), appendix A: the instructions for Search-o1,
  for Reason-in-Documents, and for open-domain question answering.
- SEARCH_R1_PROMPT: Search-R1 (Jin et al., 2025, arXiv 2503.09516), table 1 and the project's data preparation.
"""

from flashrag.document import Document, whole
from flashrag.prompts.template import PromptTemplate

WITH_PASSAGES = PromptTemplate(
    system="Answer the question based on the given document."
    "Only give me the answer and do not output any other words."
    "\nThe following are given documents.\n\n{passages}"
)
WITHOUT_PASSAGES = PromptTemplate(
    system="Answer the question based on your own knowledge. Only give me the answer and do not output any other words."
)

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

AGENT = PromptTemplate(
    system="",
    user="You are a reasoning assistant with the ability to perform web searches to help you answer the user's "
    "question accurately. You have special tools:\n\n"
    "- To perform a search: write <|begin_search_query|> your query here <|end_search_query|>.\n"
    "Then, the system will search and analyze relevant web pages, then provide you with helpful information in the "
    "format <|begin_search_result|> ...search results... <|end_search_result|>.\n\n"
    "You can repeat the search process multiple times if necessary. "
    "The maximum number of search attempts is limited to {max_searches}.\n\n"
    "Once you have all the information you need, continue your reasoning.\n\n"
    'Example:\nQuestion: "..."\nAssistant thinking steps:\n- I might need to look up details about ...\n\n'
    "Assistant:\n<|begin_search_query|>...<|end_search_query|>\n\n"
    "(System returns processed information from relevant web pages)\n\n"
    "Assistant continues reasoning with the new information...\n\n"
    "Remember:\n"
    "- Use <|begin_search_query|> to request a web search and end with <|end_search_query|>.\n"
    "- When done searching, continue your reasoning.\n\n"
    "Please answer the following question. You should think step by step to solve it.\n\n"
    "Provide your final answer in the format \\boxed{YOUR_ANSWER}.\n\n"
    "Question:\n{question}\n\n",
    cue="Assistant:",
)

FINAL_INFORMATION = "**Final Information**"

REASON_IN_DOCUMENTS = PromptTemplate(
    system="",
    user="**Task Instruction:**\n\n"
    "You are tasked with reading and analyzing web pages based on the following inputs: **Previous Reasoning Steps**, "
    "**Current Search Query**, and **Searched Web Pages**. Your objective is to extract relevant and helpful "
    "information for **Current Search Query** from the **Searched Web Pages** and seamlessly integrate this "
    "information into the **Previous Reasoning Steps** to continue reasoning for the original question.\n\n"
    "**Guidelines:**\n\n"
    "1. **Analyze the Searched Web Pages:**\n"
    "- Carefully review the content of each searched web page.\n"
    "- Identify factual information that is relevant to the **Current Search Query** and can aid in the reasoning "
    "process for the original question.\n\n"
    "2. **Extract Relevant Information:**\n"
    "- Select the information from the Searched Web Pages that directly contributes to advancing the **Previous "
    "Reasoning Steps**.\n"
    "- Ensure that the extracted information is accurate and relevant.\n\n"
    "3. **Output Format:**\n"
    "- **If the web pages provide helpful information for current search query:** Present the information beginning "
    f"with `{FINAL_INFORMATION}` as shown below.\n{FINAL_INFORMATION}\n\n[Helpful information]\n\n"
    "- **If the web pages do not provide any helpful information for current search query:** Output the following "
    f"text.\n{FINAL_INFORMATION}\n\nNo helpful information found.\n\n"
    "**Inputs:**\n"
    "- **Previous Reasoning Steps:**\n{reasoning}\n\n"
    "- **Current Search Query:**\n{query}\n\n"
    "- **Searched Web Pages:**\n{passages}\n\n"
    'Now you should analyze each web page and find helpful information based on the current search query "{query}" '
    "and previous reasoning steps.",
    cue="\n\n",
    passage=whole,
    separator="\n\n",
)

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
