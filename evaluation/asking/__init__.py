"""One question to a model that searches, answered before your eyes; `evaluation/ask.py` is the command.

options.py     the flags: those of run_eval.py about model, method and search, and the demo's folder
preflight.py   what there is to know before it starts, what must hold, and what `--check` prints
asker.py       the servers, and the one way to an answer: asked, watched, kept
page.py        the page in the browser; static/ is its code
"""

from evaluation.asking.asker import Asker, figures, started
from evaluation.asking.options import AskOptions, parse_options
from evaluation.asking.preflight import PLAN, RULES, AskFacts, checked

__all__ = ["PLAN", "RULES", "AskFacts", "AskOptions", "Asker", "checked", "figures", "parse_options", "started"]
