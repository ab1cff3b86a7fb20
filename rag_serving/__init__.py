"""The retrieval server: one copy of an index and a corpus behind HTTP, for training and evaluation."""
