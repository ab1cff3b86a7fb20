"""Retrieval, the search protocol, pipelines and metrics: our implementation of the FlashRAG interface."""
