"""The first tenth of the recipe smollm2-nq as it is typed, on real questions: from nothing to two steps of GRPO.

The steps are a quarter as large as the recipe's. What the model learns in all of them is in docs/real_model.md.
"""

import os
from pathlib import Path
from statistics import fmean

import pytest

from tests import runs
from verl_search.trainer.run_folder import METRICS_FOLDER, read_metrics

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
LIMIT_S = 2400.0
SMALL = (
    *("--train_batch_size", "4", "--ppo_mini_batch_size", "4", "--rollout_n", "4", "trainer.total_training_steps=2"),
    *("--test_freq", "-1"),
    # Small micro-batches: another test runs beside this one, and the recipe's own need most of 24 GB.
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
)


@pytest.mark.timeout(LIMIT_S + 60)
def test_a_model_that_never_searched_learns_to_and_its_own_episodes_train_it(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not at hand")
    out = tmp_path / "smollm2-nq"
    command = ["bash", str(REPOSITORY / "training" / "run.sh"), "--recipe", "smollm2-nq", "--until", "training"]
    command += ["--data_dir", str(DATA), "--output_dir", str(out), *SMALL]
    training = out / "seed0" / "training"
    with runs.training(command, tmp_path, training, dict(os.environ)) as run:
        console = run.wait(LIMIT_S)
    assert run.returncode == 0, console
    fine_tuning = [metrics for _, metrics in read_metrics(out / "warm_start" / METRICS_FOLDER)]
    losses = [metrics["train/loss"] for metrics in fine_tuning if "train/loss" in metrics]
    assert losses[0] > 1.5
    assert losses[-1] < losses[0] / 3
    assert fine_tuning[-1]["val/loss"] < losses[0] / 3, "it learns the dialect, and not the transcripts"
    steps = [metrics for _, metrics in read_metrics(training / METRICS_FOLDER)]
    assert len(steps) == 2
    # Before the warm start, not one of 128 episodes searched or had a valid format.
    assert fmean(metrics["rollout/searches"] for metrics in steps) > 0.3
    assert fmean(metrics["rollout/format_rate"] for metrics in steps) > 0.3
    assert max(metrics["rollout/f1"] for metrics in steps) > 0
    assert all(metrics["actor/grad_norm"] > 0 for metrics in steps)
