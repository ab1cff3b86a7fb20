"""The published rewards of an episode: 0, 0.1 or 1, with the reason, from provenance."""

import pytest

from flashrag.episode import SEARCH_R1, EndReason, Episode, Segment, Source, Trajectory
from flashrag.reward import rewarded, rule_reward

THINK = " <think> I know. </think>"
ANSWER = r" <answer> The final answer is \[ \boxed{King Wu} \] </answer>"


def trajectory(*texts: str, end_reason: EndReason = EndReason.EOS) -> Trajectory:
    """Model and result segments in turn; the ids do not matter to the reward."""
    sources = (Source.MODEL, Source.RESULT)
    segments = [Segment(sources[i % 2], text, (1,)) for i, text in enumerate(texts)]
    episode = Episode((0,), segments, end_reason=end_reason)
    return Trajectory.of_episode(episode, question_id="q", question="Who?", gold_answers=("King Wu",))


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
    assert rule_reward(trajectory(sampled, end_reason=end_reason), gold).value == value


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
    assert rule_reward(trajectory(sampled), [gold], rule="answer").value == value


@pytest.mark.parametrize(
    ("sampled", "value"),
    [
        ("<think> t </think> <answer> King Wu </answer>", 1.0),
        ("<answer> King Wu </answer>", 0.8),  # 1 - 0.2: right, without a thought
        ("<think> t </think> <answer> King Wen </answer>", 0.2),
        ("<answer> King Wen </answer>", 0.1),
        ("<think> t </think> King Wu", 0.0),
    ],
)
def test_the_reward_of_search_r1_s_version_0_3(sampled: str, value: float) -> None:
    answered = EndReason.ANSWERED if "<answer>" in sampled else EndReason.EOS
    episode = Episode((0,), [Segment(Source.MODEL, sampled, (1,))], end_reason=answered, dialect=SEARCH_R1)
    given = Trajectory.of_episode(episode, question_id="q", question="Who?", gold_answers=("King Wu",))
    reward = rule_reward(given, ["King Wu"], rule="structured_answer")
    assert reward.value == value
    assert ("format valid" in reward.reason) == (value in (1.0, 0.2))


def test_answer_in_a_result_earns_nothing() -> None:
    passage = f" <result>\n{THINK}{ANSWER}\n</result>"
    searched = trajectory(" <think> x </think> <search> q </search>", passage, THINK)
    assert rule_reward(searched, ["King Wu"], rule="answer").value == 0.0
    reward = rule_reward(searched, ["King Wu"])
    assert (reward.value, reward.reason) == (0.0, "format: there is no answer block (end reason eos)")


@pytest.mark.parametrize(
    ("sampled", "gold", "reason"),
    [
        (THINK + ANSWER, "King Wu", "em 1.00: 'King Wu'"),
        (THINK + ANSWER, "King Wen", "wrong answer 'King Wu'"),
        (ANSWER, "King Wu", "format: there is no think block (end reason eos)"),
    ],
)
def test_a_reward_has_its_reason(sampled: str, gold: str, reason: str) -> None:
    assert rule_reward(trajectory(sampled), [gold]).reason == reason


def test_a_rewarded_trajectory_keeps_value_and_reason() -> None:
    kept = rewarded(trajectory(THINK + ANSWER), rule_reward)
    assert (kept.reward, kept.reward_reason, kept.metrics) == (1.0, "em 1.00: 'King Wu'", {})


def test_f1_reward_of_a_partly_right_answer() -> None:
    # "king wu" against "king wu of zhou": 2 shared, precision 2/2, recall 2/4, F1 = 2 * 1 * 0.5 / 1.5
    reward = rule_reward(trajectory(THINK + ANSWER), ["King Wu of Zhou"], metric="f1")
    assert reward.value == pytest.approx(2 / 3)
    assert rule_reward(trajectory(THINK + ANSWER), ["Nobody"], metric="f1").value == 0.1
