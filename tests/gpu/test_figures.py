"""What of the smoke can be checked without a GPU: its commands, its models, its figures, and the order of its steps."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoTokenizer

from tests.gpu import test_smoke
from tests.gpu.figures import METRICS, SHAPES, make_random_model, run_figures, training_flags, widened_tokenizer
from training.launch import hydra_overrides, parse_flags
from verl_search.composition import compose_config
from verl_search.main_ppo import complete, validate


@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_the_command_of_the_smoke_composes_and_verl_accepts_it(tmp_path: Path) -> None:
    more = (*test_smoke.MORE, "trainer.total_training_steps=2")
    words = training_flags(test_smoke.BASE_MODEL, "http://127.0.0.1:1", tmp_path, tmp_path / "run", *more)
    flags, settings = parse_flags(words)
    config = compose_config(flags.config_name, [*hydra_overrides(flags), *settings])
    complete(config)
    validate(config)
    values = {
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "data.train_batch_size": 16,
        "trainer.total_training_steps": 2,
        "actor_rollout_ref.actor.optim.lr": 1e-3,
    }
    assert {key: OmegaConf.select(config, key) for key in values} == values
    # The questions that the smoke makes last for its three steps.
    assert 3 * config.data.train_batch_size <= test_smoke.QUESTIONS


def test_figures_are_those_of_the_last_step() -> None:
    first, last = (dict.fromkeys(METRICS.values(), of_step) for of_step in (1.0, 2.123456))
    assert run_figures({1: first, 2: last}) == dict.fromkeys(METRICS, 2.123)
    with pytest.raises(KeyError, match="weights"):
        run_figures({1: {name: value for name, value in first.items() if "weights" not in name}})
    with pytest.raises(AssertionError):
        run_figures({1: dict.fromkeys(METRICS.values(), float("nan"))})


def test_a_random_model_has_a_token_for_each_of_its_rows(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {**SHAPES["7B"], **sizes, "num_key_value_heads": 1, "vocab_size": 3000}
    make_random_model(tmp_path, test_smoke.BASE_MODEL, shape, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == AutoConfig.from_pretrained(tmp_path).vocab_size == 3000
    assert tokenizer.decode([2999]) == "x2999"
    text = "Where was Person 3 born?"
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(test_smoke.BASE_MODEL).encode(text)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not config["tie_word_embeddings"]


def test_the_program_that_makes_a_model_starts() -> None:
    with pytest.raises(AssertionError, match="KeyError: 'no shape'"):
        test_smoke.output(
            sys.executable, test_smoke.REPOSITORY / "tests" / "gpu" / "figures.py", "a", "b", "no shape", "cpu"
        )


def test_a_widened_tokenizer_keeps_its_ids() -> None:
    tokenizer = {"model": {"vocab": {"a": 1, "b": 2}, "type": "BPE"}, "added_tokens": [{"id": 0, "content": "end"}]}
    assert widened_tokenizer(tokenizer, 5)["model"] == {"vocab": {"a": 1, "b": 2, "x3": 3, "x4": 4}, "type": "BPE"}


def test_a_step_is_skipped_where_one_that_it_needs_did_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_smoke, "PASSED", set())
    ran: list[str] = []

    @test_smoke.step()
    def test_first(fails: bool) -> None:
        ran.append("first")
        assert not fails

    @test_smoke.step("first")
    def test_second() -> None:
        ran.append("second")

    def attempt(call: Any, *given: bool) -> str:
        try:
            call(*given)
        except AssertionError:
            return "failed"
        except pytest.skip.Exception as skipped:
            return str(skipped)
        return "passed"

    assert attempt(test_first, True) == "failed"
    assert attempt(test_second) == "needs a step that did not pass: first"
    assert attempt(test_first, False) == attempt(test_second) == "passed"
    assert ran == ["first", "first", "second"]


@pytest.mark.parametrize("program", [test_smoke.TORCH, test_smoke.FAISS])
def test_the_programs_of_the_smoke_are_python(program: str) -> None:
    compile(program, "program", "exec")
