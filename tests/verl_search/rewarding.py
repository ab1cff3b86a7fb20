"""The rewarded trajectory of an episode, as the agent loop makes it."""

from flashrag.episode import Episode, Trajectory
from flashrag.metrics import score_answer
from flashrag.reward import reward_function, rewarded, rule_reward


def rewarded_trajectory(episode: Episode, gold: str, terms: dict[str, float] | None = None) -> Trajectory:
    """Rewarded by these terms, or by the pilot's rule."""
    metrics = score_answer(episode.answer, [gold])._asdict()
    trajectory = Trajectory.of_episode(episode, question_id="q", question="Who?", gold_answers=(gold,), metrics=metrics)
    return rewarded(trajectory, reward_function(terms) if terms else rule_reward)
