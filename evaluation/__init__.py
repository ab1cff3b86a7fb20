"""Evaluation of a served model: run_eval.py, its preflight, the folder of a run, its scores and the report."""
