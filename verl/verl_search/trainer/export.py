"""A training checkpoint as a Hugging Face folder: `scripts/export_checkpoint.sh CHECKPOINT OUT`.

verl keeps one file of weights per rank; its own merger puts them together, in bfloat16. A checkpoint that was saved
with `hf_model` holds the merged model already, which is copied. In both cases the result is loaded and run once before
it gets its name.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from verl_search.trainer.run_folder import LATEST

EXPECTED = "expected a folder global_step_N of a training run, its actor folder, or the run's folder (its last step)"


class ExportFailed(ReSearchError):
    """The merged model cannot be loaded or does not compute; the message names the fault."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step of a training run on disk: `actor` holds a file of weights per rank, `huggingface` the rest."""

    actor: Path
    world_size: int

    @property
    def huggingface(self) -> Path:
        return self.actor / "huggingface"

    @property
    def is_merged(self) -> bool:
        return any(self.huggingface.glob("*.safetensors"))


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`; raises `UserError` naming the file that is missing."""
    actor = _actor_folder(path)
    world_size = _world_size(actor)
    checkpoint = Checkpoint(actor, world_size)
    if not (checkpoint.huggingface / "config.json").is_file():
        raise UserError(f"{checkpoint.huggingface} holds no config.json; the checkpoint is not complete, take another")
    for rank in range(world_size):
        shard = actor / f"model_world_size_{world_size}_rank_{rank}.pt"
        if not checkpoint.is_merged and not shard.is_file():
            raise UserError(
                f"{shard} is missing: rank {rank} of {world_size}; copy it from the node that wrote it, "
                "or take another checkpoint"
            )
    return checkpoint


def _actor_folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; {EXPECTED}")
    if (path / LATEST).is_file():
        path = path / f"global_step_{(path / LATEST).read_text(encoding='utf-8').strip()}"
    for folder in (path, path / "actor"):
        if (folder / "fsdp_config.json").is_file():
            return folder
    raise UserError(f"{path} holds no checkpoint (no fsdp_config.json); {EXPECTED}")


def _world_size(actor: Path) -> int:
    file = actor / "fsdp_config.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["world_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} names no world_size ({error}); the checkpoint is damaged, take another") from error


def export(checkpoint: Checkpoint, target: Path) -> dict[str, Any]:
    """Write the model to `target`, which exists only when it loads and computes; returns `check_model`'s facts."""
    with staged(target) as folder:
        if checkpoint.is_merged:
            shutil.copytree(checkpoint.huggingface, folder)
        else:
            _merge(checkpoint, folder)
        return check_model(folder)


def _merge(checkpoint: Checkpoint, folder: Path) -> None:
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(checkpoint.actor), "--target_dir", str(folder)]
    merger = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if merger.returncode:
        raise ExportFailed(f"verl's merger failed on {checkpoint.actor}:\n{merger.stdout[-2000:]}")


def check_model(folder: Path) -> dict[str, Any]:
    """Load the model and run it over one token; raises `ExportFailed` where weights are missing or not finite.

    Returns {"parameters": int, "dtype": str, "vocabulary": int}.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype="auto", output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(problem):
            raise ExportFailed(f"{folder.name} does not load whole: {problem} {sorted(map(str, report[problem]))[:5]}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ExportFailed(
            f"the tokenizer has {len(tokenizer)} tokens, the model takes {model.get_input_embeddings().num_embeddings}"
        )
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer.encode("a") or [0]])).logits
    if not torch.isfinite(logits).all():
        raise ExportFailed(
            "the model's logits are not finite: the checkpoint holds broken weights, take an earlier one"
        )
    return {
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocabulary": len(tokenizer),
    }


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="scripts/export_checkpoint.sh",
        description="Write a training checkpoint as a Hugging Face folder, and check that it loads.",
    )
    parser.add_argument("checkpoint", type=Path, help=EXPECTED.removeprefix("expected "))
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    arguments = parser.parse_args(argv)
    checkpoint = find_checkpoint(arguments.checkpoint)
    if arguments.target.exists():
        raise UserError(f"{arguments.target} exists; give another folder, or remove it")
    how = "copying the merged model of" if checkpoint.is_merged else f"merging {checkpoint.world_size} ranks of"
    print(f"{how} {checkpoint.actor} …", file=sys.stderr, flush=True)
    facts = export(checkpoint, arguments.target)
    print(f"{arguments.target}: {facts['parameters']:,} parameters, {facts['dtype']}, it loads and computes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
