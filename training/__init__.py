"""Training: run.sh, the launcher, data preparation and the demo."""
