"""docs/serving.md against the code: every key with its default, every metric, and nothing that does not exist."""

import json
import re
from pathlib import Path

import pytest

from rag_serving.app import create_app
from rag_serving.settings import ServerSettings
from rag_serving.workers import ThreadWorkers

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CONFIGURE = TEXT.partition("## Configure")[2].partition("## Metrics")[0]
METRICS = TEXT.partition("## Metrics")[2]


def test_every_key_is_there_with_its_default():
    told = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", CONFIGURE, re.MULTILINE))
    told |= dict(re.findall(r"`(\w+): (\w+)`", CONFIGURE.rpartition("FlashRAG's keys with one")[2]))
    defaults = {name: field.default for name, field in ServerSettings.model_fields.items()}
    assert told == {name: value if isinstance(value, str) else json.dumps(value) for name, value in defaults.items()}


def test_every_metric_is_there():
    told = set(re.findall(r"`(rag_\w+)", METRICS))
    settings = ServerSettings(retrieval_method="bm25", index_path="i", corpus_path="c")
    app = create_app(settings, ThreadWorkers(lambda: None, 1))
    families = {family.name for family in app.state.service.metrics.registry.collect()}
    counted = {name.removesuffix("_total") for name in told}
    assert families <= counted
    gauges = {"rag_queue_queries", "rag_queue_limit", "rag_retrievers", "rag_retrievers_available", "rag_documents"}
    assert counted - families == gauges  # these appear once the index is loaded


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_what_it_links_to_is_there(path: str):
    assert (Path(__file__).resolve().parents[2] / "docs" / path).is_file()
