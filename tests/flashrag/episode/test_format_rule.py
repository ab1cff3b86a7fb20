"""The protocol on texts written by hand: finding the answer, and judging the format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.episode import (
    PYTHON,
    RESEARCH,
    SEARCH_O1,
    SEARCH_R1,
    Dialect,
    FormatFault,
    find_answer,
    find_format_fault,
)

THINK = "<think> t </think>"
SEARCH = "<search> q </search>"
ANSWER = r"<answer> The final answer is \[ \boxed{King Wu} \] </answer>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (ANSWER, "King Wu"),
        (r"<answer> \boxed{} </answer>", ""),
        (r"<answer> \boxed{a{b}c} </answer>", "a{b}c"),
        (r"<answer> \boxed{\text{King Wu}} </answer>", "King Wu"),
        (r"<answer> \boxed{\mathrm{x} and \textbf{y}} </answer>", "x and y"),
        (r"<answer> \boxed{first} or \boxed{second} </answer>", "second"),
        (r"<answer> \boxed{one} </answer> <answer> \boxed{two} </answer>", "two"),
        (r"<answer> \boxed{King Wu", ""),  # cut off inside the box
        (r"<answer> \boxed{King Wu}", "King Wu"),  # cut off after it
        (r"<answer> King Wu </answer>", ""),
        (r"\boxed{outside}", ""),
        (r"<answer> x </answer> \boxed{after}", ""),
        (r"Assistant: <answer> \boxed{ 42 } </answer>", "42"),
        ("", ""),
    ],
)
def test_the_answer_is_the_last_box_of_the_last_answer_block(text: str, answer: str):
    assert find_answer([text], RESEARCH) == answer


@pytest.mark.parametrize(
    "texts",
    [
        [THINK + ANSWER],
        [THINK + "\n" + SEARCH, THINK + ANSWER],
        [THINK + SEARCH + "\n\n", SEARCH, ANSWER + " \n"],  # think once, a stop inside ">\n\n", trailing white space
        [THINK + THINK + SEARCH, THINK + ANSWER],  # the published case thinks twice before it searches
    ],
)
def test_valid_responses_have_no_fault(texts: list[str]):
    assert find_format_fault(texts, RESEARCH, ended_by_itself=True) is None


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ([], FormatFault.NO_THINK),
        ([""], FormatFault.NO_THINK),
        ([ANSWER], FormatFault.NO_THINK),
        (["<think> t " + ANSWER], FormatFault.UNPAIRED_TAG),
        ([" t </think>" + ANSWER], FormatFault.UNPAIRED_TAG),
        (["<think> <think> t </think> </think>" + ANSWER], FormatFault.UNPAIRED_TAG),
        (["<think> t </answer>" + ANSWER], FormatFault.UNPAIRED_TAG),
        ([THINK + "<think>" + SEARCH + "</think>", ANSWER], FormatFault.UNPAIRED_TAG),
        ([THINK + "q </search>", THINK + ANSWER], FormatFault.UNPAIRED_TAG),
        ([THINK + "<think>" + SEARCH, "</think>" + ANSWER], FormatFault.UNPAIRED_TAG),  # crosses a result
        ([THINK + SEARCH + " <result> made up </result>" + ANSWER], FormatFault.WRITTEN_RESULT),
        ([THINK + "</result>" + ANSWER], FormatFault.WRITTEN_RESULT),
        ([THINK + SEARCH], FormatFault.SEARCH_WITHOUT_RESULT),  # an end of sequence instead of a result
        ([THINK + SEARCH + ANSWER], FormatFault.SEARCH_WITHOUT_RESULT),
        ([THINK + SEARCH + SEARCH, ANSWER], FormatFault.SEARCH_WITHOUT_RESULT),
        ([SEARCH + THINK, ANSWER], FormatFault.SEARCH_WITHOUT_RESULT),
        ([THINK, ANSWER], FormatFault.SEARCH_WITHOUT_RESULT),  # a result that nobody asked for
        ([THINK], FormatFault.NO_ANSWER),
        ([THINK + SEARCH, r"\boxed{King Wu}"], FormatFault.NO_ANSWER),
        ([THINK + ANSWER + "."], FormatFault.ANSWER_NOT_LAST),
        ([THINK + ANSWER + THINK], FormatFault.ANSWER_NOT_LAST),
        ([THINK + ANSWER + ANSWER], FormatFault.ANSWER_NOT_LAST),
        ([THINK + ANSWER + SEARCH, ANSWER], FormatFault.ANSWER_NOT_LAST),
        ([THINK + "<answer> King Wu </answer>"], FormatFault.NO_BOXED_ANSWER),
        ([THINK + r"<answer> \boxed{King </answer>"], FormatFault.NO_BOXED_ANSWER),
        ([THINK + r"\boxed{King Wu} <answer> see above </answer>"], FormatFault.NO_BOXED_ANSWER),
    ],
)
def test_each_fault_is_found(texts: list[str], fault: FormatFault):
    assert find_format_fault(texts, RESEARCH, ended_by_itself=True) is fault


CODE = "<python> print(1) </python>"


@pytest.mark.parametrize(
    ("texts", "fault", "without_tool"),
    [
        ([THINK + CODE, THINK + SEARCH, ANSWER], None, FormatFault.SEARCH_WITHOUT_RESULT),
        ([THINK + CODE + ANSWER], FormatFault.SEARCH_WITHOUT_RESULT, None),
        ([THINK + CODE + SEARCH, ANSWER], FormatFault.SEARCH_WITHOUT_RESULT, None),
        ([THINK + "<python>" + ANSWER], FormatFault.UNPAIRED_TAG, None),
    ],
)
def test_a_tools_tags_count_where_it_can_be_called(
    texts: list[str], fault: FormatFault | None, without_tool: FormatFault | None
):
    assert find_format_fault(texts, RESEARCH.with_calls(PYTHON), ended_by_itself=True) is fault
    assert find_format_fault(texts, RESEARCH, ended_by_itself=True) is without_tool


def test_a_response_that_was_cut_off_is_never_valid():
    assert find_format_fault([THINK + ANSWER], RESEARCH, ended_by_itself=False) is FormatFault.NOT_ENDED


@pytest.mark.parametrize(
    ("dialect", "texts", "answer", "fault"),
    [
        (SEARCH_R1, [THINK + SEARCH, THINK + "<answer> King Wu </answer>"], "King Wu", None),
        (SEARCH_R1, [THINK + "<answer>King Wu</answer>."], "King Wu", None),  # the engine's last token is ">."
        (SEARCH_R1, [THINK + SEARCH], "", FormatFault.SEARCH_WITHOUT_RESULT),
        (SEARCH_R1, [THINK + "<information> x </information><answer> Wu </answer>"], "Wu", FormatFault.WRITTEN_RESULT),
        (SEARCH_R1, [THINK + "King Wu"], "", FormatFault.NO_ANSWER),
        (SEARCH_O1, [r"so \boxed{Wu} or", r" rather \boxed{\text{King Wu}}"], "King Wu", None),
        (RESEARCH, [THINK + "<answer> King Wu </answer>"], "", FormatFault.NO_BOXED_ANSWER),
        (RESEARCH, [], "", FormatFault.NO_THINK),
        (SEARCH_R1, [], "", FormatFault.NO_THINK),
    ],
)
def test_answer_and_format_follow_from_the_dialect(
    dialect: Dialect, texts: list[str], answer: str, fault: FormatFault | None
):
    assert find_answer(texts, dialect) == answer
    assert find_format_fault(texts, dialect, ended_by_itself=True) is fault


R1_ANSWER = "<answer> King Wu </answer>"


@pytest.mark.parametrize(
    ("texts", "is_one_step"),
    [
        (["\n" + THINK + "\n\n" + SEARCH + "\n", THINK + R1_ANSWER], True),
        (
            [THINK + SEARCH + " more", THINK + R1_ANSWER + " more"],
            True,
        ),  # the rest of the token that the engine stops in
        ([THINK + SEARCH, R1_ANSWER], False),  # no thought about what was found
        ([SEARCH, THINK + R1_ANSWER], False),
        ([THINK + THINK + R1_ANSWER], False),
        (["So: " + THINK + R1_ANSWER], False),
        ([THINK + " So: " + R1_ANSWER], False),
    ],
)
def test_a_turn_of_search_r1_is_one_thought_and_one_step(texts: list[str], is_one_step: bool):
    fault = find_format_fault(texts, SEARCH_R1, ended_by_itself=True)
    assert fault is (None if is_one_step else FormatFault.NOT_ONE_STEP)


PIECES = st.lists(
    st.sampled_from(
        [THINK, SEARCH, ANSWER, "<think>", "</think>", "<answer>", "</search>", "<result>", r"\boxed{", " x"]
    )
)


@given(st.lists(PIECES.map("".join), max_size=4))
def test_a_valid_response_has_what_the_rule_asks_for(texts: list[str]):
    """An independent reading of the rule, in counts: a response without a fault fulfils each of them."""
    if find_format_fault(texts, RESEARCH, ended_by_itself=True) is not None:
        return
    text = "".join(texts)
    assert text.count("<answer>") == text.count("</answer>") == 1
    assert text.count("<think>") == text.count("</think>") >= 1
    assert text.count("<search>") == text.count("</search>") == len(texts) - 1
    assert "<result>" not in text
    assert text.rstrip().endswith("</answer>")
    assert "\\boxed{" in text.partition("<answer>")[2]
