import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flashrag.errors import UserError
from flashrag.preflight import Severity, examine
from flashrag.prompts import choose_prompt, read_record, write_record
from verl_search.trainer.export import RULES, ExportFacts, find_checkpoint, main

BASE_MODEL = Path(__file__).resolve().parents[3] / "training" / "demo" / "base_model"

# Two ranks shard the demo's model as verl's FSDP2 engine does, and each saves what it holds under verl's names.
SAVE_SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

dist.init_process_group("gloo")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
fully_shard(model, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",)))
torch.save(model.state_dict(), f"{sys.argv[2]}/model_world_size_2_rank_{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def write_checkpoint(run: Path, *, step: int = 3, world_size: int = 1, merged: bool = True) -> Path:
    actor = run / f"global_step_{step}" / "actor"
    shutil.copytree(BASE_MODEL, actor / "huggingface")
    if not merged:
        (actor / "huggingface" / "model.safetensors").unlink()
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world_size}))
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))
    return actor


def test_a_checkpoint_is_found_from_its_run_its_step_and_its_actor(tmp_path):
    actor = write_checkpoint(tmp_path)
    for path in (tmp_path, tmp_path / "global_step_3", actor):
        assert find_checkpoint(path).actor == actor


def test_a_missing_rank_is_named(tmp_path):
    actor = write_checkpoint(tmp_path, world_size=2, merged=False)
    (actor / "model_world_size_2_rank_0.pt").touch()
    with pytest.raises(UserError, match=r"model_world_size_2_rank_1\.pt is missing: rank 1 of 2"):
        find_checkpoint(tmp_path)
    (actor / "model_world_size_2_rank_0.pt").unlink()
    with pytest.raises(UserError, match=r"model_world_size_2_rank_0\.pt is missing: ranks 0, 1 of 2"):
        find_checkpoint(tmp_path)


def test_many_missing_ranks_are_not_all_named(tmp_path):
    write_checkpoint(tmp_path, world_size=10**9, merged=False)
    with pytest.raises(UserError, match="ranks 0, 1, 2, 3, 4, … of 1000000000; copy"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("step", [b"", b"../..", b"\xff"])
def test_a_damaged_note_of_the_last_step_is_refused(tmp_path, step):
    write_checkpoint(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(step)
    with pytest.raises(UserError, match="expected the number of a step; write that of the last global_step_N into it"):
        find_checkpoint(tmp_path)


DAMAGED = ["{}", "no json", "[]", '{"world_size": null}', '{"world_size": 0}', '{"world_size": true}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_config_is_refused(tmp_path, text):
    actor = write_checkpoint(tmp_path)
    (actor / "fsdp_config.json").write_text(text)
    with pytest.raises(UserError, match="names no world_size"):
        find_checkpoint(actor)


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_an_existing_target_is_left_alone(tmp_path, capsys):
    write_checkpoint(tmp_path)
    target = tmp_path / "out"
    target.mkdir()
    assert main([str(tmp_path), str(target)]) == 2
    assert "exists" in capsys.readouterr().err
    assert not list(target.iterdir())


def test_a_merged_checkpoint_is_copied_and_loads(tmp_path, capsys):
    run, out = tmp_path / "ein Lauf ½", tmp_path / "ein Modell ½"
    actor = write_checkpoint(run)
    record = choose_prompt("qa_template").record(apply_chat=False)
    write_record(actor.parent, record)
    assert main([str(run), str(out)]) == 0
    assert read_record(out) == record
    assert "1,154,816 parameters" in capsys.readouterr().out
    copied = (out / "model.safetensors").read_bytes()
    assert copied == (BASE_MODEL / "model.safetensors").read_bytes()


def test_weights_that_are_missing_leave_no_target(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    actor = write_checkpoint(tmp_path)
    weights = load_file(actor / "huggingface" / "model.safetensors")
    dropped = next(name for name in weights if "down_proj" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != dropped},
        actor / "huggingface" / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert dropped in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def found(checkpoint: Path, target: Path) -> list[tuple[Severity, str, str]]:
    return [(each.severity, each.rule, each.message) for each in examine(RULES, ExportFacts(checkpoint, target))]


def test_nothing_is_said_about_a_good_checkpoint(tmp_path):
    write_checkpoint(tmp_path)
    assert found(tmp_path, tmp_path / "out") == []


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    actor = write_checkpoint(tmp_path)
    (actor / "huggingface" / "model.safetensors").write_bytes(b"cut")
    (actor / "huggingface" / "tokenizer.json").unlink()
    (actor / "huggingface" / "tokenizer_config.json").unlink()
    told = found(tmp_path, actor)
    assert [(rule, severity) for severity, rule, _ in told] == [
        ("model.weights", Severity.ERROR),
        ("model.end_tokens", Severity.ERROR),
        ("export.target", Severity.ERROR),
    ]


def test_ranks_that_are_cut_short_are_named(tmp_path):
    actor = write_checkpoint(tmp_path, world_size=2, merged=False)
    for rank in range(2):
        with zipfile.ZipFile(actor / f"model_world_size_2_rank_{rank}.pt", "w") as archive:
            archive.writestr("data.pkl", b"weights" * 100)
    assert found(tmp_path, tmp_path / "out") == []
    data = (actor / "model_world_size_2_rank_1.pt").read_bytes()
    (actor / "model_world_size_2_rank_1.pt").write_bytes(data[: len(data) // 2])
    ((_, rule, message),) = found(tmp_path, tmp_path / "out")
    assert rule == "export.shards"
    assert "model_world_size_2_rank_1.pt is cut short" in message


def test_a_full_disk_and_a_small_memory_are_told(tmp_path, monkeypatch):
    write_checkpoint(tmp_path)
    monkeypatch.setattr("flashrag.preflight.machine.free_bytes", lambda _: 4_000_000)
    monkeypatch.setattr("flashrag.preflight.machine._memory_bytes", lambda: 4_000_000)
    told = {rule: (severity, message) for severity, rule, message in found(tmp_path, tmp_path / "out")}
    assert told["export.target"][0] is Severity.ERROR
    assert "but the model's weights need 4 MiB" in told["export.target"][1]
    assert told["export.memory"][0] is Severity.WARNING


def test_the_check_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    actor = write_checkpoint(tmp_path / "ein Lauf ½")
    before = set(tmp_path.rglob("*"))
    assert main([str(tmp_path / "ein Lauf ½"), str(tmp_path / "out"), "--check"]) == 0
    told = capsys.readouterr().out
    for line in (
        f"  what          copying the merged model of {actor}",
        "  architecture  Qwen2ForCausalLM",
        "  weights       4 MiB",
        f"  target        {tmp_path}/out",
        "  0 errors: this would start",
    ):
        assert f"{line}\n" in told
    assert main([str(tmp_path / "none"), str(tmp_path), "--check"]) == 2
    told = capsys.readouterr().out
    assert "is not a folder; expected a folder global_step_N" in told
    assert "exists; give another folder, or remove it" in told
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_ranks_of_a_sharded_checkpoint_are_merged(tmp_path):
    import torch
    from safetensors.torch import load_file

    actor = write_checkpoint(tmp_path, world_size=2, merged=False)
    script = tmp_path / "save_sharded.py"
    script.write_text(SAVE_SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(script), str(BASE_MODEL), str(actor)], check=True, timeout=300)
    assert main([str(tmp_path), str(tmp_path / "out")]) == 0
    merged, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(BASE_MODEL / "model.safetensors")
    for name, tensor in merged.items():
        assert torch.equal(tensor, base[name].bfloat16()), name
