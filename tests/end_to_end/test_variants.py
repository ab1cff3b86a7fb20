"""Estimators, policy losses and controls of search, two steps each on the real engines, in the demo's world.

Over a minute each on two cores. The slow lane runs PPO with a critic, which has an engine of its own. Others by their
names, two together with `+`:
`RESEARCH_TEST_VARIANTS=rloo+gspo,llds python -m pytest -n 0 -m slow tests/end_to_end/test_variants.py`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_training import assert_sane, train
from training.demo.folder import DemoRun
from training.demo.run import build_index, demo_server, write_data

pytestmark = pytest.mark.slow
ACTOR = "actor_rollout_ref.actor"
TWO_UPDATES = "--ppo_mini_batch_size=2"  # of two questions each: from the second on the ratio is not 1
VARIANTS = {
    "gae": ("algorithm.adv_estimator=gae", "trainer.critic_warmup=2"),
    "dr_grpo": (
        "algorithm.norm_adv_by_std_in_grpo=false",
        f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm",
        f"{ACTOR}.loss_scale_factor=500",
    ),
    **{
        name: (f"algorithm.adv_estimator={name}",)
        for name in ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "gpg", "grpo_passk")
    },
    **{name: (f"{ACTOR}.policy_loss.loss_mode={name}", TWO_UPDATES) for name in ("llds", "gspo", "cispo", "sapo")},
    "tis": ("algorithm.rollout_correction.rollout_is=token", "algorithm.rollout_correction.rollout_is_threshold=2.0"),
    "bypass": (
        "algorithm.rollout_correction.bypass_mode=true",
        "algorithm.rollout_correction.loss_type=reinforce",
        "algorithm.rollout_correction.rollout_is=token",
        f"{ACTOR}.policy_loss.loss_mode=bypass_mode",
    ),
    "forced": ("search.control=forced", "search.tell_budget=true"),
    "stale": ("search.control=stale",),
}
CHOSEN = os.environ.get("RESEARCH_TEST_VARIANTS", "gae")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server over the demo's world, and the folder of its questions."""
    run = DemoRun(output_dir=tmp_path_factory.mktemp("demo"))
    run.open()
    write_data(run)
    build_index(run)
    (run.world / "dev.parquet").rename(run.world / "test.parquet")
    with demo_server(run) as url:
        yield url, run.world


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("names", CHOSEN.split(","))
def test_a_variant_trains(names: str, demo: tuple[str, Path], tmp_path: Path) -> None:
    url, data = demo
    metrics = train(
        *(tmp_path / "run", url, data, "trainer.total_training_steps=2", f"{ACTOR}.optim.lr=1e-5", "search.seed=0"),
        *(setting for name in names.split("+") for setting in VARIANTS[name]),
    )
    assert sorted(metrics) == [1, 2]
    for step, step_metrics in metrics.items():
        if names == "gae":
            assert step_metrics["critic/grad_norm"] > 0.0
            assert abs(step_metrics["critic/values/mean"]) < 10.0
        # In step 1 only the critic is trained; bypass_mode compares the engine's probabilities with none.
        if (names != "gae" or step == 2) and "bypass" not in names:
            assert_sane(step_metrics)
    assert metrics[2]["actor/grad_norm"] > 0.0
    assert ("actor/llds" in metrics[2]) == ("llds" in names)
