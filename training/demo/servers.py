"""The two servers of the demo: the retrieval server, and a completion server for evaluation. Loopback, free ports."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from flashrag.system.local_server import LOOPBACK, free_port, serving
from flashrag.system.model_server import Engine, ModelServerOptions, model_server

MAX_MODEL_TOKENS = 640
REPOSITORY = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def retrieval_server(config: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Serve a retrieval config for the length of the block; yields the server's URL."""
    config_path = folder / "serving_config.yaml"
    config_path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    port = free_port()
    script = str(REPOSITORY / "rag_serving" / "serving.py")
    command = [sys.executable, script, "--config", str(config_path), "--num_retriever", "1", "--port", str(port)]
    url = f"http://{LOOPBACK}:{port}"
    with serving(command, url, folder / "retrieval_server.log"):
        yield url


@contextlib.contextmanager
def completion_server(model_path: Path, folder: Path) -> Iterator[str]:
    """Serve a model by vLLM on the CPU, in float32, for the length of the block; yields its URL."""
    log_path = folder / "completion_server.log"
    options = ModelServerOptions(model_path, Engine.VLLM, context_length=MAX_MODEL_TOKENS, log_path=log_path)
    with model_server(options) as (url, _):
        yield url
