"""The figure of the collapse over made metrics, and the settings with which a missing run is trained."""

import contextlib
import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashrag.preflight import examine
from scripts.bench import collapse
from scripts.bench.collapse import main
from scripts.bench.servers import Server
from tests.verl_search.composing import composed
from verl_search.preflight.settings_rules import SETTINGS_RULES

STEPS = 6


def write_run(folder: Path, rewards: list[float], lost: float) -> None:
    entries = [
        {
            "step": step,
            "data": {
                "critic/score/mean": reward,
                "rollout/em": reward / 2,
                "rollout/format_rate": 1.0,
                "actor/llds": lost,
            },
        }
        for step, reward in enumerate(rewards, start=1)
    ]
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    (folder / "metrics" / "1.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "demo" / "logs").mkdir(parents=True)
    (tmp_path / "demo" / "logs" / "serving_config.yaml").touch()
    return ["--demo_dir", str(tmp_path / "demo"), "--out", str(tmp_path / "out"), "--steps", str(STEPS), "--seeds", "1"]


def test_complete_runs_are_drawn_and_not_trained_again(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out" / "coef0_seed1", [0.5, 0.4, 0.1, 0.0, 0.0, 0.0], lost=0.25)
    write_run(tmp_path / "out" / "coef1_seed1", [0.5, 0.6, 0.6, 0.7, 0.8, 0.8], lost=0.01)
    assert main(flags) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    # Over the last five steps: (0.4 + 0.1) / 5, and (0.6 + 0.6 + 0.7 + 0.8 + 0.8) / 5.
    assert (figures["coef0_reward"], figures["coef1_reward"]) == (0.1, 0.7)
    assert (figures["coef0_lost"], figures["coef1_lost"]) == (0.25, 0.01)
    assert (tmp_path / "out" / "collapse.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "collapse.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["coef"], row["step"]) for row in rows] == [
        (coef, str(step)) for coef in ("0", "1") for step in range(1, STEPS + 1)
    ]
    row = {"coef": "0", "seed": "1", "step": "2", "reward": "0.4", "em": "0.2", "format_rate": "1", "lost": "0.25"}
    assert rows[1] == row


def test_what_is_missing_is_trained_with_settings_that_pass_the_rules(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, list[str]] = {}

    def start_process(command: list[str], log_path: Path, environment: dict[str, str]) -> SimpleNamespace:
        assert command[1:5] == ["-m", "verl_search.main_ppo", "--config-name", "demo"]
        assert environment["VERL_FILE_LOGGER_PATH"] == str(log_path.parent / "metrics" / "1.jsonl")
        trained[log_path.parent.name] = command[5:]
        write_run(log_path.parent, [0.5] * STEPS, lost=0.0)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(collapse, "our_server", lambda *_: contextlib.nullcontext(Server("http://127.0.0.1:1", None)))
    monkeypatch.setattr(collapse, "start_process", start_process)
    write_run(tmp_path / "out" / "coef1_seed1", [0.9] * 3, lost=0.0)  # stopped: it begins anew
    assert main(flags) == 0
    assert sorted(trained) == ["coef0_seed1", "coef1_seed1"]
    pairs = zip(trained["coef0_seed1"], trained["coef1_seed1"], strict=True)
    *folders, differing = [pair for pair in pairs if pair[0] != pair[1]]
    assert [pair[0].partition("=")[0] for pair in folders] == ["trainer.default_local_dir", "hydra.run.dir"]
    key = "actor_rollout_ref.actor.policy_loss.llds_coef"
    assert differing == (f"{key}=0", f"{key}=1")
    config = composed("demo", *[setting for setting in trained["coef1_seed1"] if not setting.startswith("hydra.")])
    # It warns that nothing is saved, on purpose, and not that the loss has no effect.
    assert {finding.rule for finding in examine(SETTINGS_RULES, config)} == {"settings.frequencies"}


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--demo_dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no demo; run bash training/run.sh" in capsys.readouterr().err
