"""The training benchmark on the demo's base model: every way computes the same loss, and the figures come last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_ways_agree_and_have_figures() -> None:
    command = [sys.executable, "scripts/bench/training.py", "--model_path", "training/demo/base_model"]
    small = ["--questions", "2", "--group", "3", "--rounds", "2", "--threads", "1", "--precision", "float32"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, timeout=300, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    # 6 trajectories of about 80 trained tokens
    assert 350 < figures["trained_tokens"] < 620 < figures["tokens"]
    assert figures["step_over_bare_loop"] > 0.0
    assert figures["step_over_padded"] > 0.0
