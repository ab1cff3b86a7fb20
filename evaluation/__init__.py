"""Evaluation of a served model: run_eval.py, the run it writes, its scores and the report."""
