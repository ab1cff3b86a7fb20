"""A prompt's parts: filled in one pass, passages numbered, what is written at the end, for both kinds of model."""

from flashrag.document import Document
from flashrag.prompts import PromptTemplate

TEMPLATE = PromptTemplate(system="Use:\n{passages}", user="Q: {question} {{x}} {unknown}", cue="\nA:")
DOCUMENTS = (Document("1", '"Zhou"\nA dynasty of {question}.'), Document("2", "no title"))


def test_a_base_model_continues_plain_text():
    prompt = TEMPLATE.fill(DOCUMENTS, written="King", question="Who is {passages}?")
    assert prompt.text == (
        'Use:\nDoc 1(Title: "Zhou") A dynasty of {question}.\nDoc 2(Title: no title) \n\n'
        "Q: Who is {passages}? {{x}} {unknown}\nA: King"
    )
    assert TEMPLATE.fill(question="Who?").text == "Use:\n\n\nQ: Who? {{x}} {unknown}\nA:"


def test_an_instruct_model_gets_a_conversation_without_empty_parts():
    assert TEMPLATE.fill(question="Who?").messages == [
        {"role": "system", "content": "Use:\n"},
        {"role": "user", "content": "Q: Who? {{x}} {unknown}"},
    ]
    assert PromptTemplate(system="").fill(question="Who?").messages == [{"role": "user", "content": "Question: Who?"}]
