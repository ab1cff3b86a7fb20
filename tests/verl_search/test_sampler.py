"""What the sampler refuses to train on."""

import pytest

from verl_search.agent_loop import fingerprint
from verl_search.sampler import check_failed_share, check_trained_tensors
from verl_search.stopping import StopTraining

RESPONSES, MASK = [10, 11, 20, 12], [1, 1, 0, 1]
EXTRA = {"response_fingerprint": fingerprint(RESPONSES), "sampled_fingerprint": fingerprint([10, 11, 12])}


def rollout(**changes: float | str) -> dict[str, float | str]:
    return {
        "em": 0.0,
        "f1": 0.0,
        "format_valid": 1.0,
        "searches": 1.0,
        "search_failed": 0.0,
        "sampled_tokens": 30.0,
        "spliced_tokens": 50.0,
        "search_s": 0.2,
        "generate_s": 1.0,
        "think_repeat_rate": 0.0,
        "ended_by": "eos",
        "reward": 0.1,
        "log_prob_sum": -6.0,
        **changes,
    }


def test_exact_tensors_pass() -> None:
    check_trained_tensors("uid_0_0", RESPONSES, MASK, MASK, EXTRA)


@pytest.mark.parametrize(
    ("responses", "loss_mask", "response_mask"),
    [
        ([10, 99, 20, 12], MASK, MASK),  # a sampled id changed
        ([10, 11, 99, 12], MASK, MASK),  # a spliced id changed
        (RESPONSES, [1, 1, 1, 1], [1, 1, 1, 1]),  # a spliced token would be trained on
        (RESPONSES, MASK, [1, 1, 1, 1]),  # the two masks disagree
    ],
)
def test_any_difference_stops_the_run(responses: list[int], loss_mask: list[int], response_mask: list[int]) -> None:
    with pytest.raises(StopTraining, match="uid_0_0"):
        check_trained_tensors("uid_0_0", responses, loss_mask, response_mask, EXTRA)


def test_too_many_failed_searches_stop_the_run() -> None:
    rollouts = [rollout(search_failed=1.0), *[rollout()] * 9]
    check_failed_share(rollouts, max_failed_share=0.1, global_steps=7)
    with pytest.raises(StopTraining, match="1 of 10 episodes of step 7"):
        check_failed_share(rollouts, max_failed_share=0.05, global_steps=7)
