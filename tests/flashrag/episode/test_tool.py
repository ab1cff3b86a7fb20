"""Calls on texts written by hand: the called tool, its argument, and the message for a call that cannot be made."""

import asyncio

import pytest

from flashrag.document import Document, Hit, Passage
from flashrag.episode import MAX_QUERY_CHARS, PYTHON, RESEARCH, SEARCH_O1, Tool, ToolResult
from flashrag.episode.tool import Call, CallFault, find_call, search_tool


async def nothing(argument: str) -> ToolResult:
    return ToolResult((Passage("echo", argument),))


SEARCH = search_tool(RESEARCH, nothing)
OTHER = Tool("python", "code", PYTHON, str.upper, nothing, max_chars=5, limit_reached="no more")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("<search> King Wu </search>", "King Wu"),
        ('<think> x </think>\n<search> "longest chinese dynasty" </search>', '"longest chinese dynasty"'),
        ("<search>a\nb</search>\n\n", "a\nb"),  # a stop string inside the token ">\n\n"
        ("<search> a <search> b </search>", "b"),
        ("<search> a </search> <search> b </search>", "a"),  # the first closed one counts
        (f"<search>{'x' * MAX_QUERY_CHARS}</search>", "x" * MAX_QUERY_CHARS),
        ("<python> a </python> <search> b </search>", "b"),  # a tool that cannot be called is text
    ],
)
def test_the_argument_is_the_text_between_the_tags(text: str, query: str):
    assert find_call(text, [SEARCH]) == Call(SEARCH, query, None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("</search>", CallFault.UNOPENED),
        ("<think> x </think> King Wu </search>", CallFault.UNOPENED),
        ("</search> <search> too late </search>", CallFault.UNOPENED),
        ("<search></search>", CallFault.EMPTY),
        ("<search> \n\t </search>", CallFault.EMPTY),
        (f"<search>{'x' * (MAX_QUERY_CHARS + 1)}</search>", CallFault.TOO_LONG),
    ],
)
def test_a_closed_call_without_a_usable_argument_says_why(text: str, fault: CallFault):
    call = find_call(text, [SEARCH])
    assert call is not None
    assert call.fault is fault


@pytest.mark.parametrize("text", ["", "<search> open", "< /search>", "</Search>", "<search> a </search", "</ search>"])
def test_no_closed_call_is_no_call(text: str):
    assert find_call(text, [SEARCH]) is None


@pytest.mark.parametrize(
    ("text", "name", "argument"),
    [
        ("<search> a </search> <python>b</python>", "search", "a"),
        ("<python>b</python> <search> a </search>", "python", "B"),
        ("<search> a <python>b</python>", "python", "B"),
        ("<python>b <search> a </search>", "search", "a"),
    ],
)
def test_of_several_tools_the_first_closed_is_called(text: str, name: str, argument: str):
    for tools in ([SEARCH, OTHER], [OTHER, SEARCH]):
        call = find_call(text, tools)
        assert call is not None
        assert (call.tool.name, call.argument, call.fault) == (name, argument, None)


def test_the_message_for_a_fault_names_the_tool_and_its_tags():
    search_o1 = search_tool(SEARCH_O1, nothing)
    call = find_call("<search> no </search> <|begin_search_query|> first king <|end_search_query|>", [search_o1])
    assert call == Call(search_o1, "first king", None)
    assert CallFault.UNOPENED.message_for(search_o1) == (
        "The search was closed without being opened. Write <|begin_search_query|> query <|end_search_query|>."
    )
    assert CallFault.EMPTY.message_for(OTHER) == "The python code was empty."
    assert CallFault.TOO_LONG.message_for(OTHER) == "The python code was longer than 5 characters."


def test_a_ranked_result_has_a_score_for_each_document():
    first, second = Document("1", "a"), Document("2", "b")
    passages = (Passage("1", "a", 0.5), Passage("2", "b", 0.25))
    assert ToolResult.ranked([Hit(first, 0.5), Hit(second, 0.25)]) == ToolResult(passages)
    assert ToolResult.ranked([]) == ToolResult(())
    assert asyncio.run(SEARCH.call("x")).shown[0].contents == "x"
