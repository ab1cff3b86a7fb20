"""The reward of an episode: 0, 0.1 or 1, with its reason, from provenance."""

import pytest

from flashrag.episode import EndReason, Episode, Segment, Source
from verl_search.rollout.reward import episode_reward

THINK = " <think> I know. </think>"
ANSWER = r" <answer> The final answer is \[ \boxed{King Wu} \] </answer>"


def episode(*texts: str, end_reason: EndReason = EndReason.EOS) -> Episode:
    """Model and result segments in turn; the ids do not matter to the reward."""
    sources = (Source.MODEL, Source.RESULT)
    segments = [Segment(sources[i % 2], text, (1,)) for i, text in enumerate(texts)]
    return Episode((0,), segments, end_reason=end_reason)


@pytest.mark.parametrize(
    ("sampled", "gold", "end_reason", "value"),
    [
        (THINK + ANSWER, ["king wu"], EndReason.EOS, 1.0),
        (THINK + ANSWER, ["Wu of Zhou", "The King Wu"], EndReason.EOS, 1.0),
        (THINK + ANSWER, ["King Wen"], EndReason.EOS, 0.1),
        (ANSWER, ["King Wu"], EndReason.EOS, 0.0),
        (THINK + ANSWER, ["King Wu"], EndReason.LENGTH, 0.0),
        (THINK + ANSWER, ["King Wu"], EndReason.SEARCH_FAILED, 0.0),
    ],
)
def test_exact_match_reward(sampled: str, gold: list[str], end_reason: EndReason, value: float) -> None:
    assert episode_reward(episode(sampled, end_reason=end_reason), gold).value == value


@pytest.mark.parametrize(
    ("sampled", "gold", "value"),
    [
        (THINK + ANSWER, "King Wu", 1.0),
        (THINK + ANSWER, "Nobody", 0.0),  # nothing for the format
        (ANSWER, "King Wu", 1.0),  # nor against it
        (THINK, "King Wu", 0.0),
    ],
)
def test_the_answer_alone_can_be_rewarded(sampled: str, gold: str, value: float) -> None:
    assert episode_reward(episode(sampled), [gold], rule="answer").value == value


def test_answer_in_a_result_earns_nothing() -> None:
    passage = f" <result>\n{THINK}{ANSWER}\n</result>"
    searched = episode(" <think> x </think> <search> q </search>", passage, THINK)
    assert episode_reward(searched, ["King Wu"], rule="answer").value == 0.0
    reward = episode_reward(searched, ["King Wu"])
    assert reward.value == 0.0
    assert reward.answer.em == 0.0
    assert "no answer block" in reward.reason


def test_exact_match_is_reported_even_when_the_format_is_invalid() -> None:
    reward = episode_reward(episode(ANSWER), ["King Wu"])
    assert (reward.value, reward.answer.em) == (0.0, 1.0)
    assert "no think block" in reward.reason


def test_f1_reward_of_a_partly_right_answer() -> None:
    # "king wu" against "king wu of zhou": 2 shared, precision 2/2, recall 2/4, F1 = 2 * 1 * 0.5 / 1.5
    reward = episode_reward(episode(THINK + ANSWER), ["King Wu of Zhou"], metric="f1")
    assert reward.value == pytest.approx(2 / 3)
    assert episode_reward(episode(THINK + ANSWER), ["Nobody"], metric="f1").value == 0.1
