"""What the model gets of the code that it wrote."""

import asyncio

import pytest

from flashrag.episode import PYTHON
from flashrag.tools.python import parse_code, python_tool, told
from flashrag.tools.sandbox import Ended, PythonSandbox, Run, SandboxLimits


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("print(1)", "print(1)"),
        ("\n  if x:\n    y\n", "if x:\n  y"),
        ("\n```python\nprint(1)\n```\n", "print(1)"),
        ("```\n  a\n  b\n```", "a\nb"),
        (" \n ", ""),
        ("```python\nnot closed", "```python\nnot closed"),
    ],
)
def test_code_is_what_stands_between_the_tags(body: str, code: str):
    assert parse_code(body) == code


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (Run("42\n", Ended.SUCCEEDED), "42"),
        (Run("", Ended.SUCCEEDED), "The code printed nothing."),
        (
            Run("1\nTraceback\n  line 2\nError: no\n", Ended.FAILED),
            "The code failed: Error: no\n1\nTraceback\n  line 2",
        ),
        (Run("no\n", Ended.FAILED), "The code failed: no"),
        (Run("", Ended.FAILED), "The code failed."),
        (Run("on\n", Ended.TIMED_OUT), "The code was stopped after 10 s.\non"),
        (Run("xx", Ended.FLOODED), "The output was cut after 2 bytes.\nxx"),
    ],
)
def test_what_the_model_reads(run: Run, text: str):
    assert told(run, PythonSandbox(SandboxLimits(max_output_bytes=2))) == text


def test_a_call_is_answered_by_its_output():
    tool = python_tool(PythonSandbox())
    assert (tool.name, tool.tag) == ("python", PYTHON)
    result = asyncio.run(tool.call("print(6 * 7)"))
    assert [(document.id, document.contents) for document in result.passages] == [("output", "42")]
    assert [passage.score for passage in result.passages] == [None]
