"""What a run's answers are worth: metrics, judge, intervals and paired tests."""
