"""Commands that are not run here, and those in sentences: the program and its flags exist, and a config composes.

`pytest tests/docs/test_flags.py -v` lists what is not run here, with the reason.
"""

import importlib
import re
import shlex
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from flashrag.pipeline import METHODS
from flashrag.preflight import Severity, examine
from flashrag.prompts import choose_prompt
from rag_serving.settings import read_settings
from tests.docs.pages import ROOT, Block, Command, blocks, commands, inline_code
from tests.test_commands import parser_of
from training.launch import hydra_overrides, is_whole_path, parse_flags
from training.recipe import chosen_recipe, read_recipe
from verl_search.composition import compose_config
from verl_search.preflight.settings_rules import SETTINGS_RULES
from verl_search.settings import SearchSettings
from verl_search.trainer.alarm_watch import configured_rules

NOT_RUN = [command for command in commands() if command.not_run]
INLINE = sorted({text for _, text in inline_code() if re.match(r"((bash|python3?) |scripts/\S+ )\S", text)})
KEY = re.compile(r"(?:search|data|trainer|algorithm|actor_rollout_ref|alarms)\.(?!yaml)\w+(?:\.\w+)*")
# Keys of verl or of ours, with a value where a page says one; those pages are about training alone.
TRAINING_PAGES = ("docs/training.md", "docs/alarms.md", "docs/tools.md", "docs/trajectories.md")
OPTIONS = [
    word
    for page, text in inline_code()
    if page in TRAINING_PAGES and (re.match(r"--\w+ \w", text) or re.fullmatch(rf"(\+?{KEY.pattern}=\S+ ?)+", text))
    for word in shlex.split(text)
]
REQUIRED = [
    *("--actor_model_path", "m", "--search_url", "http://127.0.0.1:8000", "--save_path", "s"),
    *("--train_data_path", "t.parquet", "--dev_data_path", "d.parquet"),
]
RUN_SH, DEMO = "training.launch", "training.demo.run"


def module_and_arguments(text: str) -> tuple[str, list[str]]:
    """The Python module behind a command of ours, and the arguments that reach it."""
    words = [word for word in shlex.split(text) if word != "…"]
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] in ("bash", "python", "python3"):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "-m":
        return arguments[0], arguments[1:]
    assert (ROOT / program).is_file(), f"{program} does not exist"
    if program.endswith(".py"):
        return program.removesuffix(".py").replace("/", "."), arguments
    if program == "training/run.sh":
        return (DEMO, arguments[1:]) if arguments[:1] in ([], ["--demo"]) else (RUN_SH, arguments)
    return _module_of_script(ROOT / program), arguments


def _module_of_script(path: Path) -> str:
    """What a shell script of ours hands its arguments to; itself, where it reads them."""
    handed_on = re.search(r'-m ([\w.]+) "\$@"', path.read_text(encoding="utf-8"))
    return handed_on.group(1) if handed_on else ""


def check_flags(text: str) -> None:
    """Every flag of the command is one of its program's."""
    module, arguments = module_and_arguments(text)
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if module:
        known = {flag for action in parser_of(module, arguments)._actions for flag in action.option_strings}
    else:
        script = next(word for word in shlex.split(text) if word.startswith("scripts/"))
        known = set(re.findall(r"--[\w-]*\w", (ROOT / script).read_text(encoding="utf-8")))
    assert [flag for flag in flags if flag not in known] == []


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config("research", overrides)


def compose(arguments: list[str]) -> DictConfig:
    """The training config that run.sh's arguments mean, as far as it can be checked without its files."""
    name = chosen_recipe(arguments)
    if name and is_whole_path(read_recipe(name), arguments):
        _, given = parser_of(RUN_SH, arguments).parse_known_args(arguments)
        arguments = [*REQUIRED, "--recipe", name, *given]
    flags, overrides = parse_flags(arguments)
    config = composed((*hydra_overrides(flags), *overrides))
    SearchSettings.from_config(config.search)
    return config


def cluster_options() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, when it is imported
        from rag_serving.cluster.deployments import ClusterOptions
    return ClusterOptions


def click_group(program: str) -> Any:
    """The command line of Ray's own programs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module({"ray": "ray.scripts.scripts", "serve": "ray.serve.scripts"}[program]).cli


def _not_run(command: Command) -> Any:
    slow = [pytest.mark.slow] if "bench/rollout.py" in command.text else []  # imports verl, vLLM and Ray
    return pytest.param(command, id=f"{command.not_run}: {command}", marks=slow)


@pytest.mark.parametrize("command", [_not_run(command) for command in NOT_RUN])
def test_a_command_that_is_not_run_here_has_a_program_that_knows_its_arguments(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.text)
    if words[0] in ("ray", "serve"):
        click_group(words[0]).commands[words[1]].make_context(words[1], words[2:])  # raises for what it does not know
        return
    check_flags(command.text)
    module, arguments = module_and_arguments(command.text)
    if not module:  # a shell script that reads them itself
        return
    if module != RUN_SH:
        parser_of(module, arguments).parse_args([word for word in arguments if word != "curve"])
        return
    for block in blocks():  # the files that the page shows
        if block.page == command.page and (named := re.match(r"# (\w+\.yaml)\b", block.text)):
            (tmp_path / named.group(1)).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    config = compose(arguments)
    assert configured_rules(config)
    assert [finding.message for finding in examine(SETTINGS_RULES, config) if finding.severity is Severity.ERROR] == []


@pytest.mark.parametrize("text", INLINE)
def test_a_command_in_a_sentence_has_these_flags(text: str) -> None:
    check_flags(re.sub(r"<(\w+)>", r"\1", text))


def test_the_options_of_training_in_sentences_compose() -> None:
    assert len(OPTIONS) > 10
    compose([*REQUIRED, *OPTIONS])


@pytest.mark.parametrize("page", TRAINING_PAGES)
def test_the_keys_that_a_page_names_are_in_the_config(page: str) -> None:
    config = compose(REQUIRED)
    missing = object()
    named = {key for of_page, text in inline_code() if of_page == page for key in KEY.findall(text)}
    assert [key for key in named if OmegaConf.select(config, key, default=missing) is missing] == []


@pytest.mark.parametrize("block", [block for block in blocks() if block.language == "yaml"], ids=str)
def test_a_yaml_block_is_what_its_page_says(block: Block, tmp_path: Path) -> None:
    values = yaml.safe_load(block.text)
    match block.page:
        case "docs/cluster.md":
            cluster_options().model_validate(values["args"])
        case "docs/serving.md":
            (tmp_path / "serving.yaml").write_text(block.text)
            read_settings(tmp_path / "serving.yaml")
        case "docs/prompts.md":
            (tmp_path / "prompt.yaml").write_text(block.text)
            choose_prompt("qa_template", tmp_path / "prompt.yaml")
        case "docs/alarms.md":
            pass  # composed with the command that names it
        case page:
            pytest.fail(f"{page}: no test knows what this block is for")


def test_the_methods_that_the_pages_name_exist() -> None:
    named = re.findall(r"--method_name ([\w-]+)", "\n".join(text for _, text in inline_code()))
    assert set(named) <= set(METHODS)
