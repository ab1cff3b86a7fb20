"""A training checkpoint as a Hugging Face folder: `scripts/export_checkpoint.sh CHECKPOINT OUT`.

verl keeps one file of weights per rank; its own merger puts them together, in bfloat16. A checkpoint that was saved
with `hf_model` holds the merged model already, which is copied. In both cases the result is loaded and run once before
it gets its name.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.generator import MODEL_RULES, ModelFolder
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    checked_command,
    enforce,
    error,
    examine,
    fact,
    free_bytes,
    gathered,
    gib,
    output_folder,
    show_check,
    warning,
)
from flashrag.prompts import PromptRecord, read_record, write_record
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from flashrag.system.machine import versions_in_words
from verl_search.trainer.run_folder import noted_step

PROGRAM = "scripts/export_checkpoint.sh"
LIBRARIES = ("verl", "torch", "transformers")
MOST_NAMED = 5  # missing ranks in one message
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
    def shards(self) -> list[Path]:
        """The weights of each rank, by their names; not all of them may be there."""
        return [self.shard(rank) for rank in range(self.world_size)]

    def shard(self, rank: int) -> Path:
        return self.actor / f"model_world_size_{self.world_size}_rank_{rank}.pt"

    @property
    def prompt(self) -> PromptRecord | None:
        """The prompt that it was trained with, as far as it is known."""
        return read_record(self.actor.parent)

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
    missing = (rank for rank in range(world_size) if not checkpoint.shard(rank).is_file())
    if (first := list(islice(missing, MOST_NAMED + 1))) and not checkpoint.is_merged:
        some = ", ".join(map(str, first[:MOST_NAMED])) + ", …" * (len(first) > MOST_NAMED)
        raise UserError(
            f"{checkpoint.shard(first[0])} is missing: rank{'s' if first[1:] else ''} {some} of {world_size}; copy "
            "from the nodes that wrote them, or take another checkpoint"
        )
    return checkpoint


def _actor_folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; {EXPECTED}")
    if (step := noted_step(path)) is not None:
        path = path / f"global_step_{step}"
    for folder in (path, path / "actor"):
        if (folder / "fsdp_config.json").is_file():
            return folder
    raise UserError(f"{path} holds no checkpoint (no fsdp_config.json); {EXPECTED}")


def _world_size(actor: Path) -> int:
    file = actor / "fsdp_config.json"
    try:
        size = json.loads(file.read_text(encoding="utf-8"))["world_size"]
        if type(size) is not int or size < 1:
            raise ValueError(f"{size!r} processes")
        return size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} names no world_size ({error}); the checkpoint is damaged, take another") from error


def export(checkpoint: Checkpoint, target: Path) -> dict[str, Any]:
    """Write the model to `target`, which exists only when it loads and computes; returns `check_model`'s facts."""
    with staged(target) as folder:
        if checkpoint.is_merged:
            shutil.copytree(checkpoint.huggingface, folder)
        else:
            _merge(checkpoint, folder)
        if (record := checkpoint.prompt) is not None:
            write_record(folder, record)
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


class ExportFacts(MachineFacts):
    """The checkpoint, and the folder in it that the exported model is made of."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.target = target

    @fact
    def checkpoint(self) -> Checkpoint:
        return find_checkpoint(self.path)

    @fact
    def model(self) -> ModelFolder:
        """Its weights are missing where the ranks' are to be merged."""
        return ModelFolder(self.checkpoint.huggingface, "checkpoint")

    @fact
    def weight_bytes(self) -> int:
        """In all files of the checkpoint: the merger puts them together in memory."""
        if self.checkpoint.is_merged:
            return self.model.model.weight_bytes
        return sum(shard.stat().st_size for shard in self.checkpoint.shards)


def shards(facts: ExportFacts) -> Iterator[Finding]:
    """torch writes zip archives, whose table of contents is at the end."""
    if facts.checkpoint.is_merged:
        return
    if broken := [shard.name for shard in facts.checkpoint.shards if not zipfile.is_zipfile(shard)]:
        yield error(
            f"{facts.checkpoint.actor}: {', '.join(broken)} {'are' if broken[1:] else 'is'} cut short; copy again from "
            "the node that wrote it, or take another checkpoint"
        )


def model(facts: ExportFacts) -> Iterator[Finding]:
    merged = facts.checkpoint.is_merged
    rules = {name: rule for name, rule in MODEL_RULES.items() if merged or name != "model.weights"}
    yield from examine(rules, facts.model)


def target(facts: ExportFacts) -> Iterator[Finding]:
    if facts.target.exists():
        yield error(f"{facts.target} exists; give another folder, or remove it")
    yield from output_folder("target", facts.target.parent, lambda: facts.weight_bytes, "the model's weights")


def memory(facts: ExportFacts) -> Iterator[Finding]:
    needed, there = facts.weight_bytes, facts.machine.memory_bytes
    if needed > there:
        yield warning(
            f"the weights need {gib(needed)} of memory while they are put together and tried; this machine has "
            f"{gib(there)}: the export may be ended before it is done"
        )


RULES = {
    "export.checkpoint": gathered("checkpoint"),
    "export.shards": shards,
    "export.model": model,
    "export.target": target,
    "export.memory": memory,
    **MACHINE_RULES,
}


def _how(facts: ExportFacts) -> str:
    found = facts.checkpoint
    return f"{'copying the merged model' if found.is_merged else f'merging {found.world_size} ranks'} of {found.actor}"


PLAN: Plan[ExportFacts] = {
    "export": {
        "command": lambda _: checked_command(PROGRAM, sys.argv[1:]),
        "what": _how,
        "architecture": lambda facts: ", ".join(facts.model.model_config.get("architectures") or ()),
        "weights": lambda facts: gib(facts.weight_bytes),
        "target": lambda facts: str(facts.target.absolute()),
        "disk": lambda facts: f"{gib(free_bytes(facts.target))} are free",
        "memory": lambda facts: f"{gib(facts.weight_bytes)} of {gib(facts.machine.memory_bytes)}",
        "libraries": lambda _: versions_in_words(LIBRARIES),
    }
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog=PROGRAM,
        description="Write a training checkpoint as a Hugging Face folder, and check that it loads.",
    )
    parser.add_argument("checkpoint", type=Path, help=EXPECTED.removeprefix("expected "))
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--check", action="store_true", help=CHECK_HELP)
    arguments = parser.parse_args(argv)
    facts = ExportFacts(arguments.checkpoint, arguments.target)
    findings = examine(RULES, facts)
    if arguments.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    print(f"{_how(facts)} …", file=sys.stderr, flush=True)
    exported = export(facts.checkpoint, arguments.target)
    print(f"{arguments.target}: {exported['parameters']:,} parameters, {exported['dtype']}, it loads and computes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
