"""The trainer around upstream's loop: training data, advantages, alarms, stopping, checkpoints."""
