"""Evaluation of a served model: the command run_eval.py, the folder of a run, its scores and the report."""
