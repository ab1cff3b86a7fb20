"""Warm start: transcripts, then supervised fine-tuning on them, then the model's folder. `bash training/warm_start.sh`.

Each stage leaves its product in the save folder and is skipped when the product is there; fine-tuning goes on from its
last checkpoint. Does not cover: the loss and the update, which are upstream's (verl_search/warm_start.py).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from flashrag.client import RetrievalClient
from flashrag.episode import EpisodeCodec, Limits, Trajectory
from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import enforce, examine, keep_torch_out_of_a_check, show_check
from flashrag.prompts import write_record
from flashrag.system.arguments import CommandParser
from flashrag.system.files import write_text
from flashrag.system.json_lines import read_lines
from flashrag.system.machine import torch_cuda
from flashrag.system.processes import run_guarded
from training.trainer_process import follow_process, trainer_environment
from training.warm_start.preflight import PLAN, RULES, SETTINGS, TRAIN, Options, WarmStartFacts
from training.warm_start.progress import LossPrinter
from training.warm_start.rules import Rules
from training.warm_start.transcripts import check_ids, describe, parted, write_by_rules, write_transcripts
from verl_search.composition import check_settings, compose_config, quoted
from verl_search.settings import DIALECT_OF_TEMPLATE
from verl_search.trainer.run_folder import METRICS_FOLDER

PROGRAM = "bash training/warm_start.sh"
DESCRIPTION = """Teach a model the form of searching, before training/run.sh trains it.

It is fine-tuned on transcripts: written by rules from questions and the retrieval server, or the good trajectories of
runs. A model that searches by itself needs no warm start (docs/warm_start.md)."""
EPILOG = "Settings of verl's SFT trainer can follow as key=value, for example optim.lr=1e-4 trainer.total_epochs=2."
DEV, CHECKPOINTS, MODEL = "dev.jsonl", "checkpoints", "model"
LOG = "warm_start.log"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    parser.add_fields(Options)
    flags, overrides = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    check_settings(overrides, parser.nearest_flag)
    options = Options(**vars(flags))
    config_name = "warm_start" if torch_cuda() else "warm_start_cpu"
    facts = WarmStartFacts(options, compose_config(config_name, overrides), config_name, overrides)
    findings = examine(RULES, facts)
    if options.check:
        return show_check(PLAN, facts, findings)
    enforce(findings, options.save_path)
    if facts.begun is None:
        write_text(options.save_path / SETTINGS, json.dumps(facts.kept_settings, indent=2) + "\n")
    run_guarded(lambda: warm_start(facts, overrides), "the same command goes on from the last checkpoint")
    print(f"done: the model is in {options.save_path / MODEL}; train it with --actor_model_path")
    return 0


def warm_start(facts: WarmStartFacts, overrides: Sequence[str]) -> None:
    """The three stages."""
    folder = facts.options.save_path
    if not (folder / TRAIN).exists():
        transcripts, data = make_transcripts(facts), facts.config.data
        train, held_out = parted(transcripts, facts.options.held_out, data.train_batch_size, data.max_token_len_per_gpu)
        write_transcripts(folder / DEV, held_out)
        write_transcripts(folder / TRAIN, train)
        print(describe(transcripts), flush=True)
    if (folder / MODEL).exists():
        return
    fine_tune(facts, overrides)
    from verl_search.trainer.export import export, find_checkpoint

    checkpoint = find_checkpoint(folder / CHECKPOINTS)
    if facts.questions is not None:  # transcripts of runs may have had any prompt
        write_record(checkpoint.actor.parent, facts.prompt.record(facts.options.apply_chat))
    export(checkpoint, folder / MODEL)


def make_transcripts(facts: WarmStartFacts) -> list[Trajectory]:
    """The transcripts; raises `UserError` if there are none, or if they are another tokenizer's."""
    options = facts.options
    end_ids = facts.eos_ids
    codec = EpisodeCodec(facts.tokenizer, end_ids, DIALECT_OF_TEMPLATE[options.prompt_template_name])
    if facts.questions is None:
        check_ids(facts.good_trajectories, codec)
        return facts.good_trajectories
    assert options.search_url is not None, "the preflight asks for it"
    rules = Rules(
        codec,
        end_ids[0],
        RetrievalClient(options.search_url, top_n=options.top_n),
        Limits(options.max_response_length, options.max_result_tokens, options.rule_searches),
        facts.prompt,
        options.apply_chat,
    )
    transcripts = write_by_rules(facts.questions.questions, rules, options.count, options.direct_share, options.seed)
    if not transcripts:
        raise UserError(f"{options.train_data_path}: no search finds an answer; does the server hold the right corpus?")
    return transcripts


def trainer_settings(model: Path, folder: Path) -> list[str]:
    """What upstream's SFT trainer is told of the model and of the folder with the transcripts."""
    paths = {
        "model.path": model,
        "data.train_files": folder / TRAIN,
        "trainer.default_local_dir": folder / CHECKPOINTS,
    }
    if is_measured := any(read_lines(folder / DEV)):
        paths["data.val_files"] = folder / DEV
    settings = [f"{key}={quoted(str(path))}" for key, path in paths.items()]
    # Upstream would look for the questions that are held out at each tenth step, and end with an error.
    return settings if is_measured else [*settings, "trainer.test_freq=-1"]


def fine_tune(facts: WarmStartFacts, overrides: Sequence[str]) -> None:
    """Upstream's SFT trainer, one process for each GPU, or one that uses all cores."""
    folder = facts.options.save_path
    processes = max(1, len(facts.gpus)) if facts.trains_here else 1
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    given = [*overrides, *trainer_settings(facts.folder, folder)]
    module = ["-m", "verl_search.warm_start", "--config-name", facts.config_name, *given]
    # One process has the machine to itself.
    environment = trainer_environment(facts.config_name, folder, facts.machine.cores if processes == 1 else 1)
    print(f"fine-tuning starts (FSDP2); its full log: {folder / LOG}", flush=True)
    follow_process(
        [sys.executable, *torchrun, *module],
        folder,
        folder / LOG,
        environment,
        [LossPrinter(folder / METRICS_FOLDER)],
    )


if __name__ == "__main__":
    keep_torch_out_of_a_check(sys.argv)
    sys.exit(main())
