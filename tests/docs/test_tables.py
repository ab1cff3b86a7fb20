"""The docs' tables against the code: each flag and key with its default, every metric and method, the tree of files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation.scores.scoring import METRICS
from evaluation.settings import EvalSettings
from flashrag.dataset import DATASETS
from flashrag.pipeline import METHODS
from rag_serving.app import create_app
from rag_serving.settings import ServerSettings
from rag_serving.workers import ThreadWorkers
from tests.docs.pages import ROOT, blocks, pages
from tests.docs.test_flags import cluster_options
from tests.test_commands import parser_of

ROW = re.compile(r"^\| (.+?) \| (.*?) \|", re.MULTILINE)


def section(page: str, title: str) -> str:
    """The text from one heading to the next."""
    return re.split(r"^##* ", pages()[page].partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def told(text: str) -> dict[str, str]:
    """The names of a table's first column with the values of its second: several names share out several values."""
    found = {}
    for names, values in ROW.findall(text):
        if quoted := re.findall(r"`([\w-]+)`", names):
            found |= dict(zip(quoted, values.replace("`", "").split(", "), strict=len(quoted) > 1))
    return found


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def defaults(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: "required" if field.is_required() else shown(field.default) for name, field in fields.items()}


def test_serving_s_flags_have_their_defaults() -> None:
    parser = parser_of("rag_serving.serving", [])
    flags = {action.option_strings[0]: action.default for action in parser._actions if action.dest != "help"}
    flags["--config"] = flags["--config"].relative_to(ROOT)
    assert told(section("docs/serving.md", "Start")) == {flag: str(value) for flag, value in flags.items()}


def test_every_key_of_the_server_has_its_default() -> None:
    text = section("docs/serving.md", "Configure")
    listed = told(text) | dict(re.findall(r"`(\w+): (\w+)`", text.rpartition("FlashRAG")[2]))
    assert listed == defaults(ServerSettings.model_fields)


def test_every_argument_of_the_cluster_has_its_default() -> None:
    assert told(section("docs/cluster.md", "One machine")) == defaults(cluster_options().model_fields)


def test_every_metric_of_the_server_is_there() -> None:
    named = set(re.findall(r"`(rag_\w+)", section("docs/serving.md", "Metrics")))
    settings = ServerSettings(retrieval_method="bm25", index_path="i", corpus_path="c")
    app = create_app(settings, ThreadWorkers(lambda: None, 1))
    families = {family.name for family in app.state.service.metrics.registry.collect()}
    counted = {name.removesuffix("_total") for name in named}
    assert families <= counted
    gauges = {"rag_queue_queries", "rag_queue_limit", "rag_retrievers", "rag_retrievers_available", "rag_documents"}
    assert counted - families == gauges  # these appear once the index is loaded


def test_every_key_of_the_evaluation_is_explained() -> None:
    keys = {
        name
        for row in ROW.findall(section("docs/evaluation.md", "Configuration"))
        for name in re.findall(r"\w+", row[0])
    }
    assert keys - {"key"} == set(EvalSettings.model_fields) - {"retriever", "method_name"}


@pytest.mark.parametrize(
    ("title", "known"), [("Methods", set(METHODS)), ("Metrics", set(METRICS)), ("Data sets", set(DATASETS))]
)
def test_every_method_metric_and_data_set_of_the_evaluation_is_there(title: str, known: set[str]) -> None:
    rows = [names for names, _ in ROW.findall(section("docs/evaluation.md", title))[1:]]
    assert {name for names in rows for name in re.findall(r"[\w-]*\w", names)} == known


def test_the_readme_s_tree_is_the_repository_s() -> None:
    (tree,) = [block.text for block in blocks() if block.page == "README.md" and block.language == "text"]
    top = folder = Path()
    for line in tree.splitlines():
        indent, names, rest = re.fullmatch(r"( *)((?:[\w/]+/ *)*)(.*)", line).groups()
        for name in names.split():
            folder = top / name if indent else (top := ROOT / name)
            assert folder.is_dir(), name
        for name in re.findall(r"\b[\w/]+\.(?:py|sh|yaml)\b", rest):
            assert list(folder.rglob(name)), f"{name} is not in {folder}"
        for name in re.findall(r"\b(\w+)/ ", rest):
            assert (folder / name).is_dir(), f"{folder} has no folder {name}"
