import gzip
import json

import pytest

from evaluation.report.trajectories import evaluated, read_json_lines, read_rollouts, rolled_out
from flashrag.errors import UserError

ITEM = {
    "id": "q1",
    "question": "Who?",
    "golden_answers": [["Ada", "Ada Lovelace"]],
    "prediction": "Ada",
    "end_reason": "eos",
    "metrics": {"em": 1.0},
    "usage": {"searches": 2, "completion_tokens": 30},
    "steps": [{"kind": "result", "text": "", "passages": [{"id": "7", "contents": "Ada", "score": 0.5}]}],
    "error": None,
}
ROLLOUT = {
    "question_id": "t1",
    "step": 4,
    "question": "Which river?",
    "gold_answers": ["Marara"],
    "answer": "the marara",
    "reward": 1.0,
    "reason": "em 1.00",
    "ended_by": "eos",
    "searches": [{"query": "Fishport"}],
    "segments": [
        {"source": "model", "text": "<search> F </search>", "token_ids": [5, 6, 7], "log_probs": [-0.1, -0.2, -0.3]},
        {
            "source": "result",
            "text": ' <result>\n"Fishport"\nThe river is Marara.\n\n"Gull"\nNone.\n</result>',
            "token_ids": [8, 9],
            "log_probs": None,
        },
        {"source": "model", "text": "<answer> the marara </answer>", "token_ids": [5], "log_probs": [-0.4]},
    ],
}


def test_an_evaluated_item_is_right_wrong_or_failed():
    assert evaluated(ITEM).verdict == "right"
    assert evaluated({**ITEM, "metrics": {"em": 0.0}}).verdict == "wrong"
    failed = evaluated({**ITEM, "metrics": {"em": 0.0}, "error": {"type": "SearchError", "message": "gone"}})
    assert (failed.verdict, failed.note) == ("failed", "SearchError: gone")


def test_an_evaluated_item_keeps_its_steps_and_flattens_its_gold_answers():
    trajectory = evaluated(ITEM)
    assert trajectory.golds == ["Ada", "Ada Lovelace"]
    assert (trajectory.searches, trajectory.tokens) == (2, 30)
    assert trajectory.steps[0].passages[0]["score"] == 0.5


def test_a_rollout_says_what_was_sampled_and_what_was_spliced():
    trajectory = rolled_out(ROLLOUT)
    assert [(step.sampled, step.token_count) for step in trajectory.steps] == [(True, 3), (False, 2), (True, 1)]
    assert trajectory.tokens == 4  # sampled ones alone
    assert (trajectory.verdict, trajectory.training_step, trajectory.searches) == ("right", 4, 1)


def test_a_spliced_result_is_shown_as_passages_that_hold_the_answer_or_not():
    passages = rolled_out(ROLLOUT).steps[1].passages
    assert [(p["contents"], p["has_answer"]) for p in passages] == [
        ('"Fishport"\nThe river is Marara.', True),
        ('"Gull"\nNone.', False),
    ]


def test_tokens_are_shown_one_by_one_where_they_can_be_decoded():
    steps = rolled_out(ROLLOUT, decode=lambda ids: f"<{ids[0]}>").steps
    assert steps[0].tokens == [("<5>", -0.1), ("<6>", -0.2), ("<7>", -0.3)]
    assert steps[1].tokens == [("<8>", None), ("<9>", None)]


def write_rollout(path, record):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(record).encode() + b"\n"))


def test_rollouts_come_by_split_and_step(tmp_path):
    for split, step in (("val", 2), ("train", 10), ("train", 9)):
        write_rollout(tmp_path / split / f"step_{step:06d}.77.jsonl.gz", {**ROLLOUT, "step": step})
    assert [trajectory.training_step for trajectory in read_rollouts(tmp_path)] == [9, 10, 2]


def test_a_torn_last_line_is_left_out_and_another_one_refused(tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a":')
    assert list(read_json_lines(path)) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a":\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2 is no JSON"):
        list(read_json_lines(path))


def test_a_record_that_is_no_trajectory_is_refused(tmp_path):
    write_rollout(tmp_path / "train" / "step_000001.1.jsonl.gz", {"question": "?"})
    with pytest.raises(UserError, match="no trajectory"):
        list(read_rollouts(tmp_path))
