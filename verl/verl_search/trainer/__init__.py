"""The trainer around upstream's loop: what is trained on, advantages, alarms, stopping, checkpoints."""
