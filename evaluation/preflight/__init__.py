"""The preflight of an evaluation: what it would do, and what is wrong with it, before anything is started or written.

facts.py     what there is to know: settings, questions, the run's folder, the model's folder, a local retriever
request.py   the first request of a method, made by the method itself and sent to nobody
servers.py   what the model server, the retrieval servers and the judge say, asked once and for seconds
rules.py     what must hold, by id
plan.py      what `--check` prints
"""

from evaluation.preflight.facts import PACKAGES, EvalFacts
from evaluation.preflight.plan import PLAN
from evaluation.preflight.rules import RULES

__all__ = ["PACKAGES", "PLAN", "RULES", "EvalFacts"]
