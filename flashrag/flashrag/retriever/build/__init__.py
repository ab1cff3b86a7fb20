"""Building indexes: encode the corpus, choose the index type, write index and card. The command: index_builder."""
