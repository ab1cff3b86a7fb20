"""What scripts/test.sh says before it sets anything up."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lane(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "test.sh"), *arguments]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_gpu_lane_says_in_one_line_that_there_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = lane("--gpu", path=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("test: error: --gpu needs a GPU, and nvidia-smi lists none; --gpu-stack tests")


def test_help_names_the_lanes() -> None:
    assert "[--all | --gpu-stack | --gpu]" in lane("--help", path=os.environ["PATH"]).stdout
