"""A prompt's parts: filled in one pass, passages numbered, what is written at the end, for both kinds of model."""

from flashrag.document import Document
from flashrag.prompts import PromptTemplate

TEMPLATE = PromptTemplate(system="Use:\n{passages}", user="Q: {question} {{x}}", cue="\nA:")
DOCUMENTS = (Document("1", '"Zhou"\nA dynasty of {question}.'), Document("2", "no title"))


def test_a_base_model_continues_plain_text():
    prompt = TEMPLATE.fill(DOCUMENTS, written="King", question="Who is {passages}?")
    assert prompt.text == (
        "Use:\n[1] Zhou: A dynasty of {question}.\n[2] no title: \n\nQ: Who is {passages}? {x}\nA: King"
    )
    assert TEMPLATE.fill(question="Who?").text == "Use:\n\n\nQ: Who? {x}\nA:"


def test_an_instruct_model_gets_a_conversation_without_empty_parts():
    assert TEMPLATE.fill(question="Who?").messages == [
        {"role": "system", "content": "Use:\n"},
        {"role": "user", "content": "Q: Who? {x}"},
    ]
    no_passage = PromptTemplate(system="{passages}", user="{question}").fill(question="Who?")
    assert no_passage.messages == [{"role": "user", "content": "Who?"}]


def test_an_empty_question_is_a_message_too():
    """Without one, chat templates would open the answer after the system message, or refuse the conversation."""
    assert PromptTemplate(system="Think.", user="{question}").fill(question="").messages == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": ""},
    ]
