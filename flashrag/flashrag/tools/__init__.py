"""What a model can call in an episode."""
