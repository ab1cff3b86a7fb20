"""The keys of eval_config.yaml and the flags that override them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.eval_settings import CommandLine, EvalSettings, load_settings, parse_command_line
from flashrag.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "evaluation" / "eval_config.yaml"
WHAT = {"method_name": "research", "split": "dev", "dataset_name": "hotpotqa"}
PUBLISHED_KEYS = [
    *("data_dir", "save_dir", "seed", "use_remote_retriever", "remote_retriever_url", "framework", "sgl_remote_url"),
    *("generator_model", "generator_max_input_len", "generation_params", "metrics", "metric_setting"),
    *("save_metric_score", "save_intermediate_data"),
]


def load(*argv: str) -> EvalSettings:
    command = ["--config_path", str(CONFIG), *(part for key, value in WHAT.items() for part in (f"--{key}", value))]
    return load_settings(parse_command_line([*command, *argv]))


def test_the_shipped_config_loads_greedy_with_the_published_budget():
    settings = load()
    assert settings.generation_params.temperature == 0.0
    assert (settings.retrieval_topk, settings.max_response_tokens, settings.concurrency) == (5, 8192, 64)
    assert settings.apply_chat is False
    assert settings.metrics == ("em", "f1", "acc")


def test_the_episode_is_the_one_of_the_full_training_run():
    training = yaml.safe_load((CONFIG.parents[1] / "verl/verl_search/config/research.yaml").read_text())["search"]
    settings = load()
    keys = ("max_searches", "max_result_tokens", "prompt_template_name", "apply_chat")
    assert {key: getattr(settings, key) for key in keys} == {key: training[key] for key in keys}
    assert settings.retrieval_topk == training["top_n"]


def test_the_shipped_config_shows_every_published_key():
    assert set(PUBLISHED_KEYS) <= set(yaml.safe_load(CONFIG.read_text()))


@pytest.mark.parametrize("key", [*PUBLISHED_KEYS, "apply_chat", "retrieval_topk", "max_result_tokens", "max_searches"])
def test_every_key_is_a_flag(key: str):
    value = yaml.safe_load(CONFIG.read_text())[key]
    given = getattr(
        load(f"--{key}", yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()), key
    )
    assert given == getattr(load(), key)


@pytest.mark.parametrize(
    ("text", "value"), [("false", False), ("False", False), ("0", False), ("true", True), ("True", True)]
)
def test_false_means_false(text: str, value: bool):
    assert load("--apply_chat", text).apply_chat is value


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("split", "2024", "2024"),
        ("save_note", "7", "7"),
        ("metrics", "em, f1", ("em", "f1")),
        ("metrics", "[acc]", ("acc",)),
        ("test_sample_num", "null", None),
        ("data_dir", "a: [b", "a: [b"),  # no YAML: a text
        ("sgl_remote_url", "http://h:80/v1/", "http://h:80"),
    ],
)
def test_values_are_read_as_in_the_file(flag: str, text: str, value: Any):
    assert getattr(load(f"--{flag}", text), flag) == value


def test_a_flag_beats_the_file(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(f"{CONFIG.read_text()}\nsplit: train\nmethod_name: research\ndataset_name: nq\n")
    settings = load_settings(CommandLine(path, {"split": "dev"}))
    assert (settings.split, settings.dataset_name) == ("dev", "nq")


def test_a_local_retriever_takes_flashrags_keys():
    keys = {"retrieval_method": "e5", "retrieval_model_path": "m", "index_path": "i.index", "corpus_path": "c.jsonl"}
    argv = [part for key, value in keys.items() for part in (f"--{key}", value)]
    assert load(*argv, "--use_remote_retriever", "false").retriever == keys
    with pytest.raises(UserError, match="local retriever: corpus_path is not set"):
        load(*argv[:-2], "--use_remote_retriever", "false")


def test_a_remote_retriever_needs_an_address(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("save_dir: o\ndata_dir: d\nsgl_remote_url: http://h\ngenerator_model: m\n")
    with pytest.raises(UserError, match="remote_retriever_url is not set"):
        load_settings(CommandLine(path, dict(WHAT)))
