"""The published command line: flags become overrides, mistakes are named, the key never becomes an argument."""

import json
import os
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas
import pytest

from flashrag.errors import UserError
from training.launch import FLAGS, hydra_overrides, main, make_parser, parse_flags
from verl_search.composition import compose_config

REPOSITORY = Path(__file__).parents[2]
REQUIRED = [
    *("--actor_model_path", "m", "--search_url", "http://127.0.0.1:8000"),
    *("--train_data_path", "train.parquet", "--dev_data_path", "test.parquet", "--save_path", "out"),
]
PUBLISHED_FLAGS = {
    *("prompt_key", "train_batch_size", "ppo_mini_batch_size", "max_prompt_length", "max_response_length"),
    *("apply_chat", "prompt_template_name", "reward_manager", "rollout_n", "search_url", "project_name"),
    *("experiment_name", "nnodes", "n_gpus_per_node", "save_freq", "test_freq", "total_epochs", "save_path"),
    *("train_data_path", "dev_data_path", "actor_model_path"),
}


@pytest.fixture
def cpu_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is the CPU's, whichever the tests run in."""
    monkeypatch.setattr("verl_search.preflight.hardware.torch_cuda", lambda: None)


def test_every_published_flag_is_taken_and_two_of_our_own() -> None:
    assert set(FLAGS) == PUBLISHED_FLAGS | {"reward", "prompt_file"}


def test_help_says_what_each_flag_means_and_its_published_default() -> None:
    text = " ".join(make_parser().format_help().split())
    for line in (
        "--max_response_length TOKENS longest response, with its search results (default: 8192)",
        "--rollout_n N responses for each question: the size of a group (default: 5)",
        "--reward_manager {qa,qa_f1} how an answer is scored: exact match (qa) or F1 (qa_f1) (default: qa)",
        "--reward FILE:FUNCTION your own reward, in a Python file (docs/training.md) (default: none)",
        "--apply_chat BOOL use the model's chat template (instruct models) (default: False)",
        "--search_url URL the retrieval server",
        "--save_freq STEPS steps between two checkpoints (default: 10)",
    ):
        assert line in text
    assert "(default: None)" not in text


def test_flags_become_overrides_that_compose() -> None:
    flags, extra = parse_flags(
        [*REQUIRED, "--rollout_n", "3", "--apply_chat", "False", "--reward_manager", "qa_f1", "search.top_n=2"]
    )
    overrides = [o for o in [*hydra_overrides(flags), *extra] if not o.startswith("hydra.")]
    config = compose_config("research", overrides)
    assert config.actor_rollout_ref.rollout.n == 3
    assert config.search.apply_chat is False
    assert config.search.answer_metric == "f1"
    assert config.search.top_n == 2
    assert config.data.train_files == "train.parquet"
    assert config.data.train_batch_size == 256  # not given: the published value


def test_a_reward_of_the_users_own_is_a_flag_or_weights_of_terms() -> None:
    flags, _ = parse_flags([*REQUIRED, "--reward", "my rewards/a=b.py:reward"])
    overrides = [o for o in hydra_overrides(flags) if not o.startswith("hydra.")]
    assert compose_config("research", overrides).search.reward == "my rewards/a=b.py:reward"
    terms = compose_config("research", ["search.reward={em: 1.0, searches: -0.05}"]).search.reward
    assert terms == {"em": 1.0, "searches": -0.05}


def test_paths_with_unusual_characters_survive_and_a_save_path_that_looks_like_a_reference_is_text() -> None:
    odd = "it's a=[path], {really}"
    flags, _ = parse_flags([*REQUIRED, "--actor_model_path", odd, "--save_path", "out/${x}"])
    config = compose_config("research", hydra_overrides(flags))
    assert config.actor_rollout_ref.model.path == odd
    assert str(config.trainer.default_local_dir) == "out/${x}"


def test_a_mistake_in_a_setting_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--config_name", "cpu", "search.topn=3"]) == 2
    assert capsys.readouterr().err == "error: unknown setting 'search.topn'; did you mean 'search.top_n'?\n"


def test_a_count_that_is_none_is_told_before_sizes_are_made_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--config_name", "cpu", "--check", "--train_batch_size", "0"]) == 2
    told = "error: data.train_batch_size=0: expected a whole number from 1 on [settings.counts]\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*REQUIRED, "--rolout_n", "3"], r"unknown argument '--rolout_n'; did you mean '--rollout_n'\?"),
        ([*REQUIRED, "--zzz"], "unknown argument '--zzz'; --help shows the arguments"),
        ([*REQUIRED, "--test_files", "x"], "unknown argument '--test_files'; --help shows the arguments"),
        ([*REQUIRED, "stray"], "unknown argument 'stray'"),
        ([*REQUIRED, "rollout_n=3"], "did you mean the flag --rollout_n, or actor_rollout_ref.rollout.n=…?"),
        ([*REQUIRED, "--multirun"], "--multirun: one command trains one config"),
        ([*REQUIRED, "search.top_n=1,2"], "one command trains one config"),
        ([*REQUIRED, "~trainer.nnodes"], "takes a setting away"),
        ([*REQUIRED, "data.seed=a=b"], "quote its value"),
        (REQUIRED[2:], "the following arguments are required: --actor_model_path"),
        ([*REQUIRED, "--rollout_n", "many"], "invalid int value: 'many'"),
        ([*REQUIRED, "--apply_chat", "yes"], "'yes' is neither true nor false"),
        ([*REQUIRED, "--reward_manager", "math"], "argument --reward_manager: invalid choice: 'math'"),
        ([*REQUIRED, "--wandb_api_key", "secret"], "export WANDB_API_KEY"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_flags(argv)
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("cpu_stack")
def test_all_that_is_missing_is_told_at_once_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--config_name", "cpu", "data.max_response_length=4096"]) == 2
    first, *found = capsys.readouterr().err.splitlines()
    assert first == "error: 4 things keep this from starting:"
    remedy = "does not exist; make it with training/data_preprocess.py"
    assert found[0].startswith("  1. actor_rollout_ref.model.path=m is no folder here, is not in the hub's cache")
    assert found[1:3] == [
        f"  2. data.train_files=train.parquet {remedy} [data.train]",
        f"  3. data.val_files=test.parquet {remedy} [data.val]",
    ]
    assert found[3].startswith("  4. no retrieval server answers at search_url=http://127.0.0.1:8000")


@pytest.fixture
def healthy_url() -> Iterator[str]:
    """A server that is as healthy as a retrieval server."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps({"status": "healthy", "retrieval_method": "bm25", "documents": 7}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("cpu_stack")
def test_check_shows_the_plan_and_writes_nothing(
    tmp_path: Path, healthy_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"data_source": "nq", "reward_model": {"ground_truth": ["Wu"]}, "extra_info": {"index": 0}}
    for split, count in (("train", 9), ("dev", 2)):
        rows = [{**row, "question": f"Who is {split} {number}?"} for number in range(count)]
        pandas.DataFrame(rows).to_parquet(tmp_path / f"{split} ü.parquet")
    argv = [
        *("--config_name", "cpu", "--actor_model_path", str(REPOSITORY / "training" / "demo" / "base_model")),
        *("--search_url", healthy_url, "--train_data_path", str(tmp_path / "train ü.parquet")),
        *("--dev_data_path", str(tmp_path / "dev ü.parquet"), "--save_path", str(tmp_path / "out é")),
        *("--train_batch_size", "4", "--ppo_mini_batch_size", "2", "--max_response_length", "512", "--check"),
    ]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for line in (
        "  model                 "
        + str(REPOSITORY / "training/demo/base_model: Qwen2ForCausalLM, 1,154,816 parameters"),
        f"  retrieval server      {healthy_url}: bm25, 7 documents",
        "  training questions    9 of 9",
        "  steps             20; 2 an epoch, 10 epochs; saved every 10, validated every 10",
        "  a step            4 questions x 5 rollouts = 20 episodes, 2 weight updates",
        "  tokens of a step  at most 20,480 (each episode 1,024: prompt, sampled and spliced)",
        "disk              2 checkpoints of 13 MiB, trajectories at most 5 MiB",
        f"written to        {tmp_path}/out é (checkpoints, metrics/, trajectories/, train.log)",
        "User: Who is train 0? Assistant:",
        "  1   <·think·>· I· ",
        r"· \·boxed·{·W·u·}·",
        "0 errors: this would start",
    ):
        assert line in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev ü.parquet", "train ü.parquet"]


def run_sh(folder: Path, *arguments: str, **variables: str) -> list[str]:
    """What run.sh does, line by line: run.sh as it is, beside a set-up and pythons that show what they were given."""
    for name in ("training", "scripts", ".venv/bin", ".venv-cpu/bin", "bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "training/run.sh").write_text((REPOSITORY / "training/run.sh").read_text())
    (folder / "scripts/setup.sh").write_text('echo "set-up: $*"\n')
    for environment in (".venv", ".venv-cpu"):
        python = folder / environment / "bin/python"
        python.write_text(f'#!/bin/sh\necho "{environment}: $*"\necho "key: $WANDB_API_KEY"\n')
        python.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key not in ("WANDB_API_KEY", "RESEARCH_DEVICE")}
    done = subprocess.run(
        ["bash", folder / "training/run.sh", *arguments],
        env={**kept, "PATH": f"{folder}/bin:{kept['PATH']}", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace(str(folder), "ROOT").splitlines()


@pytest.mark.parametrize("key_flag", [["--wandb_api_key", "s3cret"], ["--wandb_api_key=s3cret"]])
def test_run_sh_moves_the_key_into_the_environment(tmp_path: Path, key_flag: list[str]) -> None:
    shown = run_sh(tmp_path, "--rollout_n", "3", *key_flag, "a b=c")
    assert shown == ["set-up: ", ".venv: -m training.launch --rollout_n 3 a b=c", "key: s3cret"]


GPU_DRIVER, NO_DRIVER = "echo 'GPU 0: NVIDIA H100 (UUID: a)'", "exit 9"


@pytest.mark.parametrize(
    ("driver", "made_for", "variables", "environment"),
    [
        (NO_DRIVER, None, {}, ".venv"),
        (NO_DRIVER, "cpu", {}, ".venv"),
        (GPU_DRIVER, None, {}, ".venv-cpu"),  # the first command on a GPU machine
        (GPU_DRIVER, "gpu", {}, ".venv-cpu"),
        (NO_DRIVER, "gpu", {}, ".venv-cpu"),  # the head of a cluster
        (GPU_DRIVER, "cpu", {}, ".venv"),
        (GPU_DRIVER, None, {"RESEARCH_DEVICE": "cpu"}, ".venv"),
        (NO_DRIVER, None, {"RESEARCH_DEVICE": "gpu"}, ".venv-cpu"),
        (GPU_DRIVER, "gpu", {"RESEARCH_DEVICE": "cpu"}, ".venv-cpu"),  # the GPU stack is left alone
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--demo", "--seed", "2"]], ids=["no argument", "--demo"])
def test_the_demo_runs_on_the_cpu_stack_beside_that_of_the_gpus(
    tmp_path: Path, driver: str, made_for: str | None, variables: dict[str, str], environment: str, arguments: list[str]
) -> None:
    (tmp_path / ".venv").mkdir()
    if made_for:
        (tmp_path / ".venv/research-device").write_text(f"{made_for}\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    set_up, command, _ = run_sh(tmp_path, *arguments, **variables)
    assert set_up == f"set-up: --device cpu --venv ROOT/{environment}"
    assert command == " ".join([f"{environment}: -m training.demo.run", *arguments[1:]])


def test_the_config_is_that_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU stack trains on GPUs, wherever they are; the CPU stack trains on the CPU, whatever the machine has."""
    composed: list[str] = []

    def compose(name: str, _: object) -> None:
        composed.append(name)
        raise UserError("enough")

    monkeypatch.setattr("training.launch.compose_config", compose)
    for cuda, given in ((None, []), ("13.0", []), ("13.0", ["--config_name", "cpu"])):
        monkeypatch.setattr("training.launch.torch_cuda", lambda cuda=cuda: cuda)
        assert main([*REQUIRED, *given]) == 2
    assert composed == ["cpu", "research", "cpu"]
