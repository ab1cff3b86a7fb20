"""The commands that build, export and serve take folders with blanks and letters of any alphabet.

The repository lies in such a folder itself, and shell scripts hand the arguments on.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.clone import BASE_MODEL, copy_repository, environment, write_checkpoint
from tests.flashrag.retriever.preflight.conftest import write_corpus

NAME = "ein Ordner (½) 模型 'x'"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / NAME
    copy_repository(folder)
    (folder / NAME).mkdir()
    shutil.copytree(BASE_MODEL, folder / NAME / "model")
    write_checkpoint(folder / NAME / "run")
    write_corpus(folder / NAME / "corpus.jsonl")
    return folder


def run(clone: Path, *command: str) -> str:
    path = os.pathsep.join([str(clone), str(clone / "flashrag"), str(clone / "verl")])
    done = subprocess.run(
        command, cwd=clone, env={**environment(), "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("error")) == (0, 0), f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_serving_a_model(clone):
    model, log = f"{NAME}/model", f"{NAME}/logs/server.log"
    told = run(clone, "scripts/serve_model.sh", "--model_path", model, "--log_path", log, "--port", "0", "--check")
    assert f"  folder              {clone}/{model}\n" in told
    assert f"  log        {clone}/{log}\n" in told
    (line,) = [line for line in told.splitlines() if line.startswith("  command ")]
    paste = f"printf '%s\\n' {line.removeprefix('  command').strip()}"
    words = subprocess.run(["bash", "-c", paste], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[words.index("--model") + 1] == model, "the printed command can be pasted"
    assert words[0] == f"{clone}/.venv/bin/python"
    assert not (clone / NAME / "logs").exists()


def test_exporting_a_checkpoint(clone):
    told = run(clone, "scripts/export_checkpoint.sh", f"{NAME}/run", f"{NAME}/exported", "--check")
    assert f"  target        {clone}/{NAME}/exported\n" in told
    assert f"copying the merged model of {NAME}/run/global_step_60/actor\n" in told


@pytest.mark.slow
def test_building_an_index_and_serving_it(clone):
    build = ["python", "-m", "flashrag.retriever.index_builder", "--retrieval_method", "bm25"]
    build += ["--corpus_path", f"{NAME}/corpus.jsonl", "--save_dir", f"{NAME}/indexes"]
    assert f"{clone}/{NAME}/indexes/bm25\n" in run(clone, *build, "--check")
    assert not (clone / NAME / "indexes").exists()
    assert run(clone, *build).splitlines()[-1] == f"index: {NAME}/indexes/bm25 (6 passages)"
    values = {
        "retrieval_method": "bm25", "index_path": f"{NAME}/indexes/bm25", "corpus_path": f"{NAME}/corpus.jsonl"
    }  # fmt: skip
    (clone / NAME / "serving.yaml").write_text(json.dumps(values))
    serve = ["python", "rag_serving/serving.py", "--config", f"{NAME}/serving.yaml", "--port", "0"]
    told = run(clone, *serve, "--check")
    assert f"  configuration     {clone}/{NAME}/serving.yaml\n" in told
    assert f"  index         bm25, 6, 0 MiB ({NAME}/indexes/bm25)\n" in told
