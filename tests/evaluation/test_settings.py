"""The keys of eval_config.yaml and the flags that override them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.command_line import CommandLine, load_settings, parse_command_line
from evaluation.settings import EvalSettings
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
    assert settings.metrics == ("em", "f1", "acc", "precision", "recall")
    assert settings.metric_setting.retrieval_recall_topk == 5


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


def test_a_local_retrievers_key_beside_a_server_is_refused():
    with pytest.raises(UserError, match=r"index_path is a local retriever's key, but use_remote_retriever is true"):
        load("--index_path", "i.index")


@pytest.mark.parametrize(
    ("flag", "text", "read"),
    [
        ("generation_params.temperature", "0", lambda s: s.generation_params.temperature == 0.0),
        ("generation_params.temperature", "0", lambda s: s.generation_params.max_tokens == 8192),
        ("generation_params.temperature", "0.6", lambda s: s.generation_params.temperature == 0.6),
        ("metric_setting.retrieval_recall_topk", "3", lambda s: s.metric_setting.retrieval_recall_topk == 3),
        ("generator_max_input_len", "4096", lambda s: s.generator_max_input_len == 4096),
    ],
)  # fmt: skip
def test_a_nested_key_is_a_flag_with_dots(flag: str, text: str, read: Any):
    assert read(load(f"--{flag}", text))
    assert read(load(f"--{flag}={text}"))


def test_a_nested_flag_lies_over_the_whole_mapping_whatever_their_order():
    whole, single = ("--generation_params", "{temperature: 0.7, top_p: 0.9}"), ("--generation_params.temperature", "1")
    for argv in (whole + single, single + whole):
        params = load(*argv).generation_params
        assert (params.temperature, params.top_p, params.max_tokens) == (1.0, 0.9, None)


JUDGE = ("--metric_setting.judge.model", "gpt-4o-mini")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--metric_setting", "{retrieval_recal_topk: 5}"), "did you mean 'retrieval_recall_topk'?"),
        (("--metric_setting.tokenizer_name", "gpt-4"), "unknown flag '--metric_setting.tokenizer_name'"),
        (("--generation_params.temprature", "0"), "did you mean '--generation_params.temperature'?"),
        (("--generation_params", "{do_sample: false, temperature: 0.5}"), "do_sample is false, but temperature is 0.5"),
        (("--metrics", "em,retrieval_recal"), "did you mean 'retrieval_recall'?"),
        (("--metrics", "em,llm_judge"), "metrics has llm_judge, but metric_setting.judge is not set"),
        (("--reward", "{judge: 1.0}"), "reward has the term judge, but metrics lacks llm_judge; add it, and metric_se"),
        (JUDGE, "metric_setting.judge is set, but metrics lacks llm_judge"),
        (("--random_sample", "true"), "random_sample is true, but test_sample_num is not set"),
        (("--dataset_name", "../secrets"), "expected the name of a folder in data_dir"),
        (("--method_name", "iter-retgen"), "no method has this name"),
        (("--resume", "perhaps"), "--resume perhaps was given"),
        (("--metric_setting.price", "{prompt_usd_per_million: -1, completion_usd_per_million: 1}"), "-1 was given"),
    ],
)
def test_contradictions_and_slips_are_refused(argv: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        load(*argv)


def test_the_judge_and_the_price_are_read():
    settings = load("--metrics", "em,llm_judge", *JUDGE, "--metric_setting.price.prompt_usd_per_million", "1",
                    "--metric_setting.price.completion_usd_per_million", "2")  # fmt: skip
    assert settings.metric_setting.judge.model == "gpt-4o-mini"
    assert settings.metric_setting.price.completion_usd_per_million == 2.0


def test_the_published_projects_own_config_is_taken(tmp_path: Path):
    """The keys and values that users of the published project have in their files."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "data_dir: data\nsave_dir: output/\nseed: 2024\nsave_intermediate_data: True\nuse_remote_retriever: True\n"
        "remote_retriever_url: http://h:1\nframework: sgl_remote\nsgl_remote_url: http://h:80\ngenerator_model: m\n"
        "generator_max_input_len: 8192\ngeneration_params:\n  do_sample: False\n  max_tokens: 8192\n"
        "metrics: [ 'em','f1','acc','precision','recall']\nmetric_setting:\n  retrieval_recall_topk: 5\n"
        "save_metric_score: True\n"
    )
    settings = load_settings(CommandLine(path, dict(WHAT)))
    assert settings.generation_params.temperature == 0.0
    assert settings.run_folder == Path("output/hotpotqa_dev_research")


def test_a_file_of_questions_has_no_split(tmp_path: Path):
    argv = ["--config_path", str(CONFIG), "--method_name", "research", "--dataset_name", "my/questions.jsonl"]
    settings = load_settings(parse_command_line([*argv, "--save_dir", str(tmp_path), "--save_note", "x"]))
    assert settings.run_folder == tmp_path / "questions_research_x"
    with pytest.raises(UserError, match=r"split is not set; give it a value, e\.g\. dev"):
        load_settings(parse_command_line([*argv[:-1], "hotpotqa"]))


def test_resume_is_a_bare_flag_too():
    argv = ["--config_path", str(CONFIG)]
    assert [parse_command_line([*argv, *more]).resume for more in ([], ["--resume"], ["--resume", "false"])] == [
        False,
        True,
        False,
    ]


def test_a_remote_retriever_needs_an_address(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("save_dir: o\ndata_dir: d\nsgl_remote_url: http://h\ngenerator_model: m\n")
    with pytest.raises(UserError, match="remote_retriever_url is not set"):
        load_settings(CommandLine(path, dict(WHAT)))
