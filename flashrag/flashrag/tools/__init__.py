"""The tools that a model can call in an episode beside search.

python.py   the python tool: runs code and returns its output
sandbox.py  runs the code of a model within limits
confine.py  the inside of the sandbox: a program of its own
"""

from flashrag.tools.python import python_tool
from flashrag.tools.sandbox import PythonSandbox, check_sandbox

__all__ = ["PythonSandbox", "check_sandbox", "python_tool"]
