"""The python tool: runs code and returns its output. Off unless a run asks for it.

A model's own mistakes (an exception, a run that does not end, too much output) are results like any other; only a
sandbox that does not run is a failure.
"""

import textwrap

from flashrag.document import Passage
from flashrag.episode import PYTHON, Tool, ToolResult
from flashrag.tools.sandbox import Ended, PythonSandbox, Run

MAX_CODE_CHARS = 10_000
PYTHON_LIMIT_REACHED = "The limit of tool calls is reached. No further code is run."


def python_tool(sandbox: PythonSandbox) -> Tool:
    """Code between `<python>` and `</python>`, run in the sandbox."""

    async def run(code: str) -> ToolResult:
        return ToolResult((Passage("output", told(await sandbox.run(code), sandbox)),))

    return Tool("python", "code", PYTHON, parse_code, run, MAX_CODE_CHARS, PYTHON_LIMIT_REACHED)


def parse_code(body: str) -> str:
    r"""The code between the tags, without the fence that many models write around it, and its common indentation.

    >>> parse_code("\n```python\n  print(1)\n```\n")
    'print(1)'
    """
    lines = body.strip("\n").rstrip().split("\n")
    if len(lines) > 1 and lines[0].strip().startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    return textwrap.dedent("\n".join(lines)).strip()


def told(run: Run, sandbox: PythonSandbox) -> str:
    """The text that the model reads: first how the run ended, because a result that is too long is cut at its end."""
    output = run.output.strip("\n")
    match run.ended:
        case Ended.SUCCEEDED:
            return output if output.strip() else "The code printed nothing."
        case Ended.FAILED:
            before, _, error = output.rpartition("\n")  # the last line of a traceback names the error
            parts = (f"The code failed: {error}" if error.strip() else "The code failed.", before)
        case Ended.TIMED_OUT:
            parts = (f"The code was stopped after {sandbox.limits.timeout_s:g} s.", output)
        case Ended.FLOODED:
            parts = (f"The output was cut after {sandbox.limits.max_output_bytes} bytes.", output)
    return "\n".join(filter(None, parts))
