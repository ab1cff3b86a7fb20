r"""Agentic search by an instruct model, and the reading of what a search found.

Source: Search-o1 (Li et al., 2025, arXiv 2501.05366), appendix A: the instructions for Search-o1, for
Reason-in-Documents, and for open-domain question answering.
"""

from flashrag.document import whole
from flashrag.prompts.template import PromptTemplate

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
