"""Recipes, two steps each on the real engines: what is changed is what this machine lacks, GPUs, memory and time.

Prompt, dialect, reward, estimator, loss, optimizer, group size and budgets are the recipe's own; the model is a tiny
one with the published tokenizer and chat template, which is made to search in the recipe's tags. The slow lane runs the
recipe of a thinking model. Others by their names:
`RESEARCH_TEST_RECIPES=search-r1,research-pilot python -m pytest -n 0 -m slow tests/end_to_end/test_recipes.py`.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flashrag.episode import Trajectory
from tests.end_to_end.test_training import (
    WRITES_SEARCHES,
    assert_exact,
    assert_sane,
    make_model,
    train_as_typed,
    write_questions,
)
from training.demo.run import retrieval_server
from training.recipe import read_recipe

pytestmark = pytest.mark.slow
# A recipe that differs from another only in sizes: that one is run in its place.
STANDS_FOR = dict.fromkeys(("one-80gb", "two-80gb", "four-80gb", "two-nodes"), "one-24gb")
# The rewards of a wrong and a right answer in a valid format.
FORMAT_AND_ANSWER, ANSWER, STRUCTURED = {0.1, 1.0}, {0.0, 1.0}, {0.2, 1.0}
REWARDS = {
    "research-pilot": FORMAT_AND_ANSWER,
    "research-paper": FORMAT_AND_ANSWER,
    "research-paper-instruct": FORMAT_AND_ANSWER,
    "one-24gb": FORMAT_AND_ANSWER,
    "search-r1": ANSWER,
    "search-r1-ppo": ANSWER,
    "search-r1-v0.3": STRUCTURED,
    "modern": ANSWER,
}
CHOSEN = os.environ.get("RESEARCH_TEST_RECIPES", "modern")
SMALL = (
    *("--config_name", "cpu", "--nnodes", 1, "--n_gpus_per_node", 1),
    *("--max_prompt_length", 512, "--max_response_length", 1536, "trainer.total_training_steps=2"),
    *("actor_rollout_ref.rollout.tensor_model_parallel_size=1", "data.dataloader_num_workers=0", "search.seed=0"),
    "actor_rollout_ref.rollout.dtype=float32",  # the same figures on every processor
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder of the questions."""
    folder = tmp_path_factory.mktemp("questions")
    with retrieval_server(write_questions(folder), folder) as url:
        yield url, folder / "data"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CHOSEN.split(","))
def test_a_recipe_trains(
    name: str, questions: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, data = questions
    flags = read_recipe(name).flags
    model = make_model(tmp_path / "model", "qwen3" if "Qwen3" in flags["actor_model_path"] else "qwen2.5")
    monkeypatch.setenv("RESEARCH_TEST_REQUESTS", str(tmp_path / "requests.jsonl"))
    batch = 8 if flags["rollout_n"] == 1 else 2  # questions of a step
    metrics = train_as_typed(
        f"bash training/run.sh --recipe {name} --search_url {url}",
        {
            flags["actor_model_path"]: model,
            str(Path(flags["train_data_path"]).parent): data,
            flags["save_path"]: tmp_path / "run",
        },
        *SMALL,
        *("--train_batch_size", batch),
        *("--ppo_mini_batch_size", batch * flags["ppo_mini_batch_size"] // flags["train_batch_size"]),
        *WRITES_SEARCHES,
        folder=tmp_path / "run",
    )
    for step in (1, 2):
        assert_sane(metrics[step])
        assert metrics[step]["actor/grad_norm"] > 0.0
        assert metrics[step]["rollout/format_rate"] == 1.0
    trajectories = assert_exact(tmp_path, model)
    trained = [trajectory for trajectory in trajectories if trajectory.split == "train"]
    assert len(trained) == 2 * batch * flags["rollout_n"]
    assert {trajectory.reward for trajectory in trained} == REWARDS[name]
    assert_prompt(trajectories[0], model, flags)


def assert_prompt(trajectory: Trajectory, model: Path, flags: Mapping[str, Any]) -> None:
    """In the recipe's tags, and in the chat template if the recipe says so, which then leaves the thinking on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    in_tags_of_search_r1 = flags["prompt_template_name"] == "search_r1"
    assert trajectory.dialect == ("search-r1" if in_tags_of_search_r1 else "research")
    text = tokenizer.decode(trajectory.prompt_ids)
    assert text.endswith("<|im_start|>assistant\n" if flags["apply_chat"] else " Assistant:")
    if "enable_thinking" in tokenizer.chat_template:
        thought, result = (part.text for part in trajectory.segments[:2])
        turns = [("user", trajectory.question), ("assistant", thought), ("user", result)]
        messages = [{"role": role, "content": content} for role, content in turns]
        assert "<think>" not in tokenizer.apply_chat_template(messages, tokenize=False), "what would be written anew"
        thinks = tokenizer.convert_tokens_to_ids("<think>")
        assert [part.token_ids[0] for part in trajectory.segments[::2]] == [thinks] * 3
