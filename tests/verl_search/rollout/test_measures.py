"""What is measured of a rollout and of a step, computed by hand."""

import pytest

from flashrag.episode import EndReason, Episode, Segment, Source, ToolCall
from tests.verl_search.rewarding import rewarded_trajectory
from verl_search.rollout.measures import (
    repeat_rate,
    rollout_measures,
    rollout_metrics,
    think_words,
    training_measures,
    zero_variance_share,
)


def rollout(**changes: float | str | None) -> dict[str, float | str | None]:
    return {
        "em": 0.0,
        "f1": 0.0,
        "format_valid": 1.0,
        "searches": 1.0,
        "tool_calls": 1.0,
        "search_failed": 0.0,
        "sampled_tokens": 30.0,
        "spliced_tokens": 50.0,
        "search_s": 0.2,
        "generate_s": 1.0,
        "think_repeat_rate": 0.0,
        "end_reason": "eos",
        "group_id": "g",
        "reward": 0.1,
        "log_prob_sum": -6.0,
        "generate_spans": [(0.0, 1.0)],
        **changes,
    }


def test_measures_of_an_episode() -> None:
    episode = Episode(
        (1, 2),
        [
            Segment(Source.MODEL, "<think> a b c d a b c d </think> <search> q </search>", (10, 11), (-0.1, -0.2)),
            Segment(Source.RESULT, " <result>\nd\n</result>", (20, 21, 22)),
            Segment(Source.MODEL, r"<think> e </think> <answer> \boxed{ Gold } </answer>", (12,), (-0.3,)),
        ],
        [
            ToolCall("q", latency_s=0.25),
            ToolCall("q", latency_s=0.5),
            ToolCall("print(1)", latency_s=0.1, tool="python"),
        ],
        EndReason.EOS,
        generate_spans=[(10.0, 11.5), (12.0, 12.5)],
    )
    trajectory = rewarded_trajectory(episode, "gold", {"em": 0.5, "searches": -0.1})
    assert rollout_measures(trajectory) == {
        "em": 1.0,
        "f1": 1.0,
        "format_valid": 1.0,
        "searches": 2.0,
        "tool_calls": 3.0,
        "search_failed": 0.0,
        "sampled_tokens": 3.0,
        "spliced_tokens": 3.0,
        "search_s": 0.75,
        "generate_s": 2.0,
        # a b c d a b c d e: abcd bcda cdab dabc abcd bcde; one of six was there before
        "think_repeat_rate": pytest.approx(1 / 6),
        "reward_em": 0.5,
        "reward_searches": pytest.approx(-0.2),
    }
    assert training_measures(trajectory) == {
        "end_reason": "eos",
        "reward": pytest.approx(0.3),
        "log_prob_sum": pytest.approx(-0.1 - 0.2 - 0.3),
        "generate_spans": ((10.0, 11.5), (12.0, 12.5)),
    }


def test_without_log_probabilities_there_is_no_sum() -> None:
    episode = Episode((1,), [Segment(Source.MODEL, "a", (10,))])
    assert training_measures(rewarded_trajectory(episode, "gold"))["log_prob_sum"] is None


def test_think_text_is_what_stands_in_think_blocks() -> None:
    assert think_words(["<think> a b </think> c <think>d</think>", "e", "<think> never closed"]) == [
        *("a", "b", "d", "never", "closed")
    ]


def test_a_script_without_spaces_counts_by_characters() -> None:
    assert think_words(["<think> 東京は Tokyo都 </think>"]) == ["東", "京", "は", "Tokyo", "都"]
    assert think_words(["<think> 서울은 </think>"]) == ["서울은"]  # Korean has spaces
    assert repeat_rate(think_words([f"<think>{'検索' * 50}</think>"])) == pytest.approx(95 / 97)  # two 4-grams


def test_repeats_are_counted_from_the_second_occurrence() -> None:
    assert repeat_rate([]) == repeat_rate(["a", "b", "c"]) == 0.0
    assert repeat_rate(["no"] * 103) == pytest.approx(99 / 100)  # 100 4-grams, all but the first


def test_metrics_of_a_step() -> None:
    rollouts = [rollout(em=1.0, searches=2.0, search_s=0.4), rollout(searches=0.0, search_s=0.0, end_reason="length")]
    metrics = rollout_metrics(rollouts)
    assert metrics["rollout/em"] == 0.5
    assert metrics["rollout/searches"] == 1.0
    assert metrics["rollout/search_latency_s"] == pytest.approx(0.4 / 2)  # per search, not per episode
    assert metrics["rollout/search_s"] == pytest.approx(0.2)
    assert metrics["rollout/end_reason/eos"] == metrics["rollout/end_reason/length"] == 0.5
    assert metrics["rollout/end_reason/search_limit"] == 0.0


def test_each_term_of_the_reward_is_a_metric_of_its_own() -> None:
    rollouts = [rollout(reward_em=1.0, reward_searches=-0.2), rollout(reward_em=0.0, reward_searches=-0.1)]
    metrics = rollout_metrics(rollouts)
    assert metrics["rollout/reward/em"] == 0.5
    assert metrics["rollout/reward/searches"] == pytest.approx(-0.15)
    assert not [name for name in rollout_metrics([rollout()]) if name.startswith("rollout/reward")]


def test_the_engines_are_busy_while_any_of_a_steps_episodes_decodes() -> None:
    rollouts = [rollout(generate_spans=[(5.0, 6.0), (9.0, 9.5)]), rollout(generate_spans=[(4.0, 5.5), (9.1, 9.2)])]
    assert rollout_metrics(rollouts)["rollout/engine_busy_s"] == pytest.approx(2.0 + 0.5)


def test_no_search_at_all_has_no_latency() -> None:
    assert rollout_metrics([rollout(searches=0.0, search_s=0.0)])["rollout/search_latency_s"] == 0.0


def test_the_likelihood_of_correct_answers_is_a_mean_over_their_tokens() -> None:
    rollouts = [
        rollout(em=1.0, sampled_tokens=10.0, log_prob_sum=-1.0),
        rollout(em=1.0, sampled_tokens=30.0, log_prob_sum=-9.0),
        rollout(em=1.0, format_valid=0.0, sampled_tokens=5.0, log_prob_sum=-50.0),  # not rewarded
        rollout(em=0.0, sampled_tokens=5.0, log_prob_sum=-50.0),
    ]
    assert rollout_metrics(rollouts)["rollout/correct_log_prob"] == pytest.approx(-10 / 40)
    assert "rollout/correct_log_prob" not in rollout_metrics([rollout()])
    assert "rollout/correct_log_prob" not in rollout_metrics([rollout(em=1.0, log_prob_sum=None)])


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    rollouts = [
        *(rollout(group_id="same", reward=0.1), rollout(group_id="same", reward=0.1)),
        *(rollout(group_id="mixed", reward=0.1), rollout(group_id="mixed", reward=1.0)),
        # without the failed search one reward is left
        *(rollout(group_id="failed", reward=0.1), rollout(group_id="failed", reward=0.0, search_failed=1.0)),
        *(rollout(group_id="mixed too", reward=0.0), rollout(group_id="mixed too", reward=1.0)),
    ]
    assert zero_variance_share(rollouts) == pytest.approx(2 / 4)
