"""The warm start: supervised fine-tuning of a model that never searches by itself, before training with search."""
