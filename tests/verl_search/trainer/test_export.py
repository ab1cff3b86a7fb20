import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashrag.errors import UserError
from verl_search.trainer.export import find_checkpoint, main

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


@pytest.mark.parametrize("text", ["{}", "no json", "[]", '{"world_size": null}'])
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
    write_checkpoint(tmp_path)
    assert main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert "1,154,816 parameters" in capsys.readouterr().out
    copied = (tmp_path / "out" / "model.safetensors").read_bytes()
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
