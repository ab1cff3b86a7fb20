"""The made-up episode of a plan: in the tags of the run's prompt, and masked as it would be trained on."""

from pathlib import Path

import pytest

from flashrag.questions import Question
from tests.verl_search.composing import composed
from verl_search.preflight.facts import Asked, TrainingFacts
from verl_search.preflight.plan import example

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"


@pytest.mark.parametrize(
    ("template", "result", "end"),
    [
        ("qa_template", "<result>⏎", r"<answer> The final answer is \[ \boxed{Wu} \] </answer><|endoftext|>"),
        ("search_r1", "⏎⏎<information>Doc 1(Title: ", "<answer> Wu </answer>"),
    ],
)
def test_the_example_is_in_the_tags_of_the_prompt(template: str, result: str, end: str) -> None:
    given = ["search.url=http://127.0.0.1:1", f"actor_rollout_ref.model.path={BASE_MODEL}"]
    config = composed("demo", *given, f"search.prompt_template_name={template}", "trainer.default_local_dir=/tmp/none")
    facts = TrainingFacts(config, "demo")
    facts.__dict__["_gathered"] = {"train": Asked([Question("1", "Who was first king?", ("Wu",))], 0, [1, 2])}
    _, prompt, searched, found, answered = example(facts).plain.replace("·", "").splitlines()
    assert [line.split()[0] for line in (prompt, searched, found, answered)] == ["0", "1", "0", "1"]
    assert searched.endswith("<search> Who was first king? </search>")
    assert result in found
    assert answered.endswith(end)
