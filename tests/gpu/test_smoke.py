"""Ten minutes on one GPU: `scripts/test.sh --gpu`. Each test is a step with a verdict of its own, in this order.

The machine, torch, faiss, a retrieval server beside the GPU, training and resuming on the real engines, how far actor
and engine agree, then the shapes of real models with random weights. A step that needs another one is skipped where
that one failed. The report ends with the figures in one line of JSON (conftest.py).
"""

import functools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashrag.system.local_server import LOOPBACK, free_port, serving
from flashrag.system.machine import count_gpus
from tests.end_to_end.test_stopping import BASE_MODEL, BATCH, ENVIRONMENT, REPOSITORY, STEPS, make_data
from tests.gpu.figures import SAME_PROBABILITIES, SHAPES, run_figures, training_flags
from verl_search.preflight.hardware import LEAST_DRIVERS, Tools
from verl_search.trainer.run_folder import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not count_gpus(), reason="no GPU is here; scripts/test.sh --gpu runs on a machine with one"),
    pytest.mark.timeout(600),  # on an H200's machine a first start took over three minutes
]
QUESTIONS = STEPS * BATCH  # of make_data
# Of the run that is resumed.
MORE = ("--rollout_n", 4, "--save_freq", 2, "actor_rollout_ref.actor.optim.lr=1e-3")
OWN_VENV = REPOSITORY / ".venv"
RETRIEVAL_PYTHON = REPOSITORY / ".venv-retrieval" / "bin" / "python"
PASSED: set[str] = set()
TORCH = """
import ctypes, json, warnings
warnings.simplefilter("ignore")
import torch
ctypes.CDLL("libnvrtc.so.13")
left = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
product = (left.cuda() @ left.cuda()).cpu()
compiled = torch.compile(lambda x: torch.softmax(x * 2, -1))(left.cuda()).cpu()  # by Triton, with gcc and Python.h
print(json.dumps({
    "product": float((product - left @ left).abs().max()),
    "compiled": float((compiled - torch.softmax(left * 2, -1)).abs().max()),
}))
"""
# Normalised vectors, as encoders give them, and queries near some of them: what the GPUs find in an index of each type
# that they take, put there as the server does, beside what the processors find; and Flat with full precision. The cells
# of IVF-Flat are found on a GPU.
FAISS = """
import json, tempfile, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import faiss, numpy
from flashrag.retriever.build.embeddings import Embeddings
from flashrag.retriever.build.faiss_file import build_index
from flashrag.retriever.build.faiss_types import plan_index
from flashrag.retriever.faiss_index import on_gpus, read_index
draws = numpy.random.default_rng(0)
vectors, queries = (draws.standard_normal((n, 384), dtype=numpy.float32) for n in (50_000, 200))
queries += 2 * vectors[:200]
for rows in (vectors, queries):
    faiss.normalize_L2(rows)
found, path = {}, Path(tempfile.mkdtemp()) / "index"
for name in ("Flat", "IVF-Flat", "IVF-PQ", "IVF64,SQ8"):
    build_index(path, plan_index(name, 384, len(vectors)), Embeddings([lambda: vectors]), name == "IVF-Flat")
    index = read_index(path)
    scores, ids = index.search(queries, 10)
    placed = {name: on_gpus(index)} | ({"exact": faiss.index_cpu_to_all_gpus(index)} if name == "Flat" else {})
    for where, on_device in placed.items():
        theirs, their_ids = on_device.search(queries, 10)
        found[where] = {
            "same_ids": float((ids == their_ids).mean()),
            "scores": float(abs(scores - theirs).max()),
        }
print(json.dumps(found))
"""


def step(*needed: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that is skipped unless the steps that it needs passed, and that later ones may need."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            if missing := [name for name in needed if name not in PASSED]:
                pytest.skip(f"needs a step that did not pass: {', '.join(missing)}")
            test(*args, **kwargs)
            PASSED.add(test.__name__.removeprefix("test_"))

        return run

    return decorate


def output(*command: object, timeout_s: float = 480.0) -> str:
    """What a command prints; it must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, env=ENVIRONMENT, cwd=REPOSITORY, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def last_json(printed: str) -> Any:
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, figures: dict[str, Any]) -> Iterator[Path]:
    """The data and the runs of the smoke; its seconds are counted."""
    started = time.monotonic()
    yield tmp_path_factory.mktemp("smoke")
    figures["seconds"] = round(time.monotonic() - started)


@pytest.fixture(scope="module")
def search_url(folder: Path) -> Iterator[str]:
    """A retrieval server over the made passages, by BM25, which takes nothing of the GPU."""
    make_data(folder)
    port = free_port()
    script, config = REPOSITORY / "rag_serving" / "serving.py", folder / "serving.yaml"
    command = [sys.executable, str(script), "--config", str(config), "--num_retriever", "1", "--port", str(port)]
    url, environment = f"http://{LOOPBACK}:{port}", {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    with serving(command, url, folder / "server.log", environment=environment):
        yield url


def train(model: Path, url: str, data: Path, save_path: Path, *more: object) -> dict[int, dict[str, Any]]:
    """The metrics of a run by step. In .venv by the published command, which looks at .venv first."""
    launch = [sys.executable, "-m", "training.launch"]
    if Path(sys.prefix) == OWN_VENV:
        launch = ["bash", str(REPOSITORY / "training" / "run.sh")]
    output(*launch, *training_flags(model, url, data, save_path, *more))
    return dict(read_metrics(save_path / "metrics"))


@step()
def test_machine(folder: Path, figures: dict[str, Any]) -> None:
    query = "--query-gpu=name,driver_version,memory.total"
    listed = output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()[0]
    card, driver, memory_mib = (cell.strip() for cell in listed.split(","))
    shared_gib = shutil.disk_usage("/dev/shm").total / 2**30
    figures |= {"card": card, "driver": driver, "memory_gib": round(int(memory_mib) / 1024, 1), "cores": os.cpu_count()}
    tools = Tools.here()
    figures |= {"shared_gib": round(shared_gib, 1), "nvcc": tools.nvcc}
    assert int(driver.partition(".")[0]) >= LEAST_DRIVERS["13"]
    assert tools.compiler, "Triton compiles with a C compiler"
    assert tools.python_header, "Triton compiles with Python's headers"
    assert shutil.disk_usage(folder).free >= 20 * 2**30


@step()
def test_set_up() -> None:
    if Path(sys.prefix) != OWN_VENV:
        pytest.skip("this is another environment than .venv, which scripts/setup.sh makes by the lock")
    output(sys.executable, "-I", REPOSITORY / "scripts" / "environment.py", "check", REPOSITORY / "requirements.txt")


@step()
def test_torch(figures: dict[str, Any]) -> None:
    differences = last_json(output(sys.executable, "-c", TORCH))
    figures["torch_differences"] = differences
    assert differences["product"] < 0.1  # of sums of 256 terms; TF32 may be on
    assert differences["compiled"] < 1e-5


@step()
def test_faiss(figures: dict[str, Any]) -> None:
    if not RETRIEVAL_PYTHON.exists():
        pytest.skip("there is no .venv-retrieval: scripts/setup.sh --device gpu --retrieval")
    found = last_json(output(RETRIEVAL_PYTHON, "-c", FAISS))
    figures["faiss"] = found
    assert found["exact"]["same_ids"] > 0.999
    for name in found.keys() - {"exact"}:
        # float16: passages of nearly the same score change places, the more where scores are sums of such numbers
        assert found[name]["same_ids"] > (0.8 if name == "IVF-PQ" else 0.95), name
        assert found[name]["scores"] < (2e-2 if name == "IVF-PQ" else 5e-3), name


@step()
def test_server(search_url: str) -> None:
    reply = httpx.post(f"{search_url}/search", json={"query": "Which person was born in Elmstead?"}, trust_env=False)
    assert "Elmstead" in reply.json()[0]["contents"]


@step("torch", "server")
def test_training(folder: Path, search_url: str) -> None:
    metrics = train(BASE_MODEL, search_url, folder / "data", folder / "run", *MORE, "trainer.total_training_steps=2")
    assert sorted(metrics) == [1, 2]


@step("training")
def test_resuming(folder: Path, search_url: str) -> None:
    metrics = train(BASE_MODEL, search_url, folder / "data", folder / "run", *MORE, "trainer.total_training_steps=3")
    assert sorted(metrics) == [1, 2, 3]
    assert len(list((folder / "run" / "metrics").glob("*.jsonl"))) == 2  # the second start trained step 3 alone


@step("training")
def test_actor_and_engine_agree(folder: Path, figures: dict[str, Any]) -> None:
    """Step 2 samples with weights that the large learning rate has moved far: an engine without them would differ."""
    metrics = dict(read_metrics(folder / "run" / "metrics"))
    figures["training"] = run_figures(metrics)
    for of_step in metrics.values():
        assert of_step["training/rollout_probs_diff_mean"] < SAME_PROBABILITIES
        assert of_step["rollout/search_failed_share"] == 0.0
    assert any(of_step["rollout/searches"] > 0 for of_step in metrics.values())


@pytest.mark.parametrize("shape", SHAPES)
@step("training")
def test_shape(shape: str, folder: Path, search_url: str, figures: dict[str, Any]) -> None:
    model = folder / shape
    output(sys.executable, REPOSITORY / "tests" / "gpu" / "figures.py", model, BASE_MODEL, shape, "cuda")
    more = ("--rollout_n", 2, "--save_freq", -1, "trainer.total_training_steps=1")
    metrics = train(model, search_url, folder / "data", folder / f"run-{shape}", *more)
    figures[shape] = run_figures(metrics)
    assert math.isfinite(metrics[1]["actor/grad_norm"])
    assert metrics[1]["training/rollout_probs_diff_mean"] < SAME_PROBABILITIES
