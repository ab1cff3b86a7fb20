"""The import path of the application on a Ray cluster, as serve configs name it: `rag_serving.ray_app:app`."""

from rag_serving.cluster.deployments import app

__all__ = ["app"]
