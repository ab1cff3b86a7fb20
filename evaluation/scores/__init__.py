"""The scores of a run: metrics, judge, intervals and paired tests."""
