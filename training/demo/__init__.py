"""The embedded demo: a synthetic world, its base model, and the run from nothing to a report."""
