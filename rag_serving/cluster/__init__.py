"""The retrieval server on Ray Serve: replicas, and indexes in shards."""
