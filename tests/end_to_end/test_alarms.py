"""Alarms on a real run: one has a checkpoint saved, one stops the run; what the stop names can be resumed from.
Ray, FSDP2, vLLM; minutes on two cores."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.demo.servers import retrieval_server
from training.progress import read_metrics
from verl_search.stopping import EXIT_STOPPED

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
PYTHON_PATH = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHON_PATH, "HF_HUB_OFFLINE": "1"}
# A step without a search has none below 0, so that both rules are breached from the first step.
MUST_FIRE = (
    "+alarms.saves={metric: rollout/searches, above: -1, action: save}",
    "+alarms.stops={metric: rollout/searches, above: -1, action: stop, patience: 3}",
)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)


def make_data(folder: Path) -> dict[str, str]:
    """Sixteen questions over four passages, and the serving config of their index."""
    places = ("Oakdale", "Wildford", "Marwick", "Elmstead")
    corpus = [{"id": str(i), "contents": f'"Person {i}"\nPerson {i} was born in {p}.'} for i, p in enumerate(places)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus), encoding="utf-8")
    questions = [{"_id": f"q{i}", "question": f"Where was Person {i % 4} born?", "answer": "Holt"} for i in range(16)]
    (folder / "hotpot.json").write_text(json.dumps(questions), encoding="utf-8")
    made = run(
        *(REPOSITORY / "training" / "data_preprocess_hpqa.py", "--train_data_path", folder / "hotpot.json"),
        *("--dev_data_path", folder / "hotpot.json", "--output_dir", folder / "data"),
    )
    assert made.returncode == 0, made.stderr
    index = ("--retrieval_method", "bm25", "--corpus_path", folder / "corpus.jsonl", "--save_dir", folder / "index")
    built = run("-m", "flashrag.retriever.index_builder", *index)
    assert built.returncode == 0, built.stderr
    return {
        "retrieval_method": "bm25",
        "index_path": str(folder / "index" / "bm25"),
        "corpus_path": str(folder / "corpus.jsonl"),
    }


def train(folder: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run(
        *("-m", "training.launch", "--config_name", "cpu", "--actor_model_path", BASE_MODEL, "--search_url", url),
        *("--train_data_path", folder / "data" / "train.parquet", "--dev_data_path", folder / "data" / "test.parquet"),
        *("--save_path", folder / "run", "--train_batch_size", 4, "--ppo_mini_batch_size", 4, "--rollout_n", 4),
        *("--max_prompt_length", 300, "--max_response_length", 300, "--save_freq", 100, "--test_freq", 1),
        *("--total_epochs", 1, "trainer.val_before_train=false", "data.dataloader_num_workers=0", "search.top_n=2"),
        *("search.max_searches=2", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192", *more),
    )


@pytest.mark.timeout(1500)
def test_one_alarm_saves_one_stops_and_the_run_goes_on_from_what_is_named(tmp_path: Path) -> None:
    config = make_data(tmp_path)
    best = tmp_path / "run" / "best_checkpoint" / "global_step_2"
    with retrieval_server(config, tmp_path) as url:
        stopped = train(tmp_path, url, *MUST_FIRE)
        console = stopped.stdout + stopped.stderr
        assert stopped.returncode == EXIT_STOPPED, console[-4000:]
        assert re.search(r"alarm saves: rollout/searches is [\d.]+, above -1 \[step 1\]: save", console)
        assert re.search(r"error: alarm stops: rollout/searches is [\d.]+, above -1, for 3 steps \[step 3\]", console)
        assert f"trainer.resume_mode=resume_path trainer.resume_from_path={best}" in console

        # The alarm of step 1 had step 2 saved, the only checkpoint; the alarm of step 3 was logged before it stopped.
        metrics = dict(read_metrics(tmp_path / "run" / "metrics"))
        assert sorted(metrics) == [1, 2, 3]
        assert [metrics[step]["alarm/stops"] for step in (1, 2, 3)] == [0.0, 0.0, 1.0]
        assert [path.name for path in (tmp_path / "run").glob("global_step_*")] == ["global_step_2"]
        assert list(best.glob("actor/*.pt"))
        for name in ("zero_variance_share", "think_repeat_rate", "format_rate", "response_tokens_sampled"):
            assert metrics[1][f"rollout/{name}"] >= 0.0
        for name in ("actor/entropy", "actor/kl_loss", "actor/grad_norm", "critic/score/mean"):
            assert name in metrics[1]

        resumed = train(tmp_path, url, "trainer.resume_mode=resume_path", f"trainer.resume_from_path='{best}'")
        assert resumed.returncode == 0, (resumed.stdout + resumed.stderr)[-4000:]
    steps = [step for step, _ in read_metrics(tmp_path / "run" / "metrics")]
    assert steps == [1, 2, 3, 3, 4]
