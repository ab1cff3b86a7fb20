"""The flags of the warm start, what is known before it starts, and what can be wrong with that."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flashrag.client import ANY_QUERY, RetrievalServers, ask_servers, server_findings
from flashrag.episode import Trajectory, prompt_note, prompt_token_ids
from flashrag.errors import UserError
from flashrag.generator import (
    MODEL_RULES,
    ModelFolder,
    can_be_trained,
    check_model_folder,
    eos_token_ids,
    load_tokenizer,
    read_json_object,
)
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    Plan,
    Rule,
    error,
    fact,
    free_bytes,
    gathered,
    gib,
    note,
    output_folder,
    question_findings,
    without_check,
)
from flashrag.prompts import PYTHON_TEMPLATE, ChosenPrompt, choose_prompt
from flashrag.questions import QuestionFile
from flashrag.system.arguments import boolean, flag, in_range
from flashrag.system.machine import versions_in_words
from training.warm_start.transcripts import choose_good, describe, held_out_count, read_sources
from verl_search.preflight.batch_rules import ACTOR, is_count
from verl_search.preflight.hardware import DEVICE_RULES, HardwareFacts, no_gpu
from verl_search.preflight.settings_rules import RANGES, not_counts, ranges
from verl_search.settings import DIALECT_OF_TEMPLATE
from verl_search.trainer.stopping import resume_command

MODEL_KEY = "--actor_model_path"
TRAINED_BYTES = 16  # of a parameter: weights, gradient and two moments in float32
KEPT_BYTES = 4 + 8 + 4 + 2  # of a parameter: a checkpoint with its model's folder, and the exported model

RULES_GROUP, RUNS_GROUP, ALL_GROUP = "transcripts by rules", "transcripts of runs", "transcripts of both kinds"
SAME_GROUP = "transcripts by rules: prompt and results, the same as in training"
TRAIN, SETTINGS = "train.jsonl", "settings.json"  # in the save folder
# The command sets these; the flag that says where from.
OWN_KEYS = {
    "model.path": "--actor_model_path",
    "data.train_files": "--train_data_path or --trajectories",
    "data.val_files": "--held_out",
    "trainer.default_local_dir": "--save_path",
}
# Upstream's own data set reads these; a transcript's ids are trained on as they are.
NOT_HONOURED = tuple(
    f"data.{name}"
    for name in (
        *("max_length", "truncation", "pad_mode", "custom_cls", "messages_key", "tools_key", "enable_thinking_key"),
        *("enable_thinking_default", "apply_chat_template_kwargs", "ignore_input_ids_mismatch"),
    )
)
COUNTS = ("data.train_batch_size", "data.max_token_len_per_gpu", "trainer.total_epochs")
WARM_RANGES = {key.removeprefix(f"{ACTOR}."): RANGES[key] for key in RANGES if key.startswith(f"{ACTOR}.optim.")}
# The prompts whose dialect the writer of the rules knows; it calls no Python.
TEMPLATES = tuple(sorted(DIALECT_OF_TEMPLATE.keys() - {PYTHON_TEMPLATE}))
at_least_one = in_range(int, 1)
share = in_range(float, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of the command; the field names are the flags'."""

    actor_model_path: Path = flag("the model to start from: a Hugging Face folder", group="needed")
    save_path: Path = flag("transcripts, checkpoints, metrics, model", group="needed", metavar="FOLDER")

    train_data_path: Path | None = flag(
        "questions with gold answers, of any format that training/data_preprocess.py reads (default: none)",
        None,
        group=RULES_GROUP,
    )
    search_url: str | None = flag("the retrieval server (default: none)", None, metavar="URL", group=RULES_GROUP)
    direct_share: float = flag(
        "most of the transcripts that answer at once: questions whose answer no search finds",
        0.2,
        type=share,
        metavar="SHARE",
        group=RULES_GROUP,
    )
    rule_searches: int = flag("most searches of a transcript", 2, type=at_least_one, group=RULES_GROUP)

    trajectories: Sequence[Path] = flag(
        "folders of training runs or evaluations, or files of trajectories; the good ones are taken (default: none)",
        (),
        group=RUNS_GROUP,
    )
    each: int = flag("most transcripts of one question", 1, type=at_least_one, group=RUNS_GROUP)

    count: int = flag("most transcripts", 800, type=at_least_one, group=ALL_GROUP)
    held_out: float = flag("share to measure the loss on", 0.05, type=share, metavar="SHARE", group=ALL_GROUP)
    seed: int = flag("of the choice of transcripts", 0, group=ALL_GROUP)

    prompt_template_name: str = flag("the prompt's wording", "qa_template", choices=TEMPLATES, group=SAME_GROUP)
    prompt_file: str | None = flag(
        "your own prompt, or a published one, instead (default: none)", None, metavar="FILE", group=SAME_GROUP
    )
    apply_chat: bool = flag(
        "use the model's chat template (default: false)",
        False,
        action="store",
        type=boolean,
        metavar="BOOL",
        group=SAME_GROUP,
    )
    top_n: int = flag("passages per search", 5, type=at_least_one, group=SAME_GROUP)
    max_result_tokens: int = flag("of one result", 2048, type=at_least_one, metavar="TOKENS", group=SAME_GROUP)
    max_response_length: int = flag("with its results", 8192, type=at_least_one, metavar="TOKENS", group=SAME_GROUP)
    check: bool = flag(CHECK_HELP, False, group="check")


class WarmStartFacts(HardwareFacts, ModelFolder):
    """What is known about a warm start before it begins."""

    def __init__(self, options: Options, config: DictConfig, config_name: str, overrides: Sequence[str]) -> None:
        ModelFolder.__init__(self, options.actor_model_path, MODEL_KEY)
        self.options, self.config, self.config_name, self.overrides = options, config, config_name, overrides

    @property
    def has_transcripts(self) -> bool:
        """Whether an earlier start wrote them, so that no search is made."""
        return (self.options.save_path / TRAIN).exists()

    @property
    def kept_settings(self) -> dict[str, Any]:
        """What the save folder keeps of a start. The server may move meanwhile."""
        settings = {**asdict(self.options), "overrides": self.overrides, "config": self.config_name}
        left_out = ("search_url", "check")
        return json.loads(json.dumps({n: settings[n] for n in settings if n not in left_out}, default=str))

    @fact
    def begun(self) -> dict[str, Any] | None:
        """The settings that the save folder was begun with; None for a new one."""
        file = self.options.save_path / SETTINGS
        return read_json_object(file, "--save_path") if file.is_file() else None

    @fact
    def tokenizer(self) -> Any:
        check_model_folder(self.folder, self.key)
        return load_tokenizer(str(self.folder), self.key)

    @fact
    def eos_ids(self) -> list[int]:
        return eos_token_ids(self.tokenizer, str(self.folder), MODEL_KEY)

    @fact
    def prompt(self) -> ChosenPrompt:
        return choose_prompt(self.options.prompt_template_name, self.options.prompt_file)

    @fact
    def questions(self) -> QuestionFile | None:
        """None where the transcripts are those of runs."""
        path = self.options.train_data_path
        return None if path is None else QuestionFile.read(path, id_prefix="train")

    @fact
    def servers(self) -> RetrievalServers | None:
        """None where no search is made."""
        url = None if self.has_transcripts else self.options.search_url
        return None if url is None else ask_servers(url, ANY_QUERY, self.options.top_n, "search_url")

    @fact
    def good_trajectories(self) -> list[Trajectory]:
        options = self.options
        if not options.trajectories:
            return []
        return choose_good(read_sources(options.trajectories), options.count, options.each, options.seed)

    @property
    def disk_bytes(self) -> int:
        return (self.model.parameters or 0) * KEPT_BYTES


def one_source(facts: WarmStartFacts) -> Iterator[Finding]:
    options = facts.options
    if bool(options.trajectories) == (options.train_data_path is not None):
        yield error("give either --train_data_path with --search_url (rules), or --trajectories (good ones of runs)")
    elif options.train_data_path is not None and options.search_url is None:
        yield error("--train_data_path: the rules search for each question; give the retrieval server (--search_url)")


def flags_are_of_the_source(facts: WarmStartFacts) -> Iterator[Finding]:
    by_rules = not facts.options.trajectories
    other, source = ((RUNS_GROUP,), "--trajectories") if by_rules else ((RULES_GROUP, SAME_GROUP), "--train_data_path")
    for field in fields(facts.options):
        group, value = field.metadata["flag"][0], getattr(facts.options, field.name)
        if group in other and field.name not in ("trajectories", "train_data_path") and value != field.default:
            yield error(f"--{field.name}={value} has no effect without {source}; leave it out")


def settings_are_honoured(facts: WarmStartFacts) -> Iterator[Finding]:
    for key in (word.lstrip("+~").partition("=")[0] for word in facts.overrides):
        if flag_name := OWN_KEYS.get(key):
            yield error(f"{key} is set by the command itself; give {flag_name} instead")
        elif key.startswith(NOT_HONOURED):
            yield error(f"{key} has no effect: the ids of a transcript are trained on as they are; leave it out")
        elif key == "trainer.logger" and "file" not in facts.config.trainer.logger:
            yield error("trainer.logger: the progress on the console is read from the file logger; add file to it")


def settings_are_numbers(facts: WarmStartFacts) -> Iterator[Finding]:
    yield from not_counts(facts.config, COUNTS)
    yield from ranges(facts.config, WARM_RANGES)


def questions_are_read(facts: WarmStartFacts) -> Iterator[Finding]:
    if facts.questions is not None:
        yield from question_findings(facts.questions)


def servers_answer(facts: WarmStartFacts) -> Iterator[Finding]:
    if facts.servers is not None:
        options = facts.options
        yield from server_findings(facts.servers, options.search_url, "search_url", options.top_n, "--top_n")


def trajectories_are_good(facts: WarmStartFacts) -> Iterator[Finding]:
    if facts.options.trajectories and not facts.good_trajectories:
        paths = ", ".join(map(str, facts.options.trajectories))
        yield error(
            f"--trajectories {paths}: none of them is good (ended by itself, valid format, exact match, with token "
            "ids); give runs of a model that answers some questions"
        )


def prompt_is_made(facts: WarmStartFacts) -> Iterator[Finding]:
    if facts.questions is not None:
        prompt_token_ids(facts.tokenizer, "", facts.prompt, facts.options.apply_chat)
    if text := prompt_note(facts.tokenizer, facts.options.apply_chat):
        yield note(text)


def batch_is_filled(facts: WarmStartFacts) -> Iterator[Finding]:
    """The last batch of an epoch is dropped where it is not full, so one batch is the least."""
    options, batch = facts.options, facts.config.data.train_batch_size
    found = facts.questions.questions if facts.questions else facts.good_trajectories
    most = min(options.count, len(found))
    if found and is_count(batch) and most - held_out_count(most, options.held_out, batch) < batch:
        yield error(
            f"data.train_batch_size={batch}, but at most {most} transcripts can be made; lower it, or give more "
            "questions or trajectories"
        )


def folder_was_begun_so(facts: WarmStartFacts) -> Iterator[Finding]:
    given = facts.kept_settings
    begun = given if facts.begun is None else facts.begun
    if changed := sorted(name for name in given if begun.get(name) != given[name]):
        name = changed[0]
        yield error(
            f"{facts.options.save_path} was begun with {name}={begun.get(name)}, and {given[name]} was given; give "
            "another --save_path, or remove that folder"
        )


def folder_has_room(facts: WarmStartFacts) -> Iterator[Finding]:
    yield from output_folder("--save_path", facts.options.save_path, lambda: facts.disk_bytes, "checkpoint and model")


def gpus_are_there(facts: WarmStartFacts) -> Iterator[Finding]:
    if facts.trains_here and not facts.gpus:
        yield no_gpu(facts, "this environment holds the GPU stack")


RULES: Mapping[str, Rule[WarmStartFacts]] = {
    "warm_start.source": one_source,
    "warm_start.flags": flags_are_of_the_source,
    "warm_start.settings": settings_are_honoured,
    "warm_start.numbers": settings_are_numbers,
    "warm_start.questions": questions_are_read,
    "warm_start.trajectories": trajectories_are_good,
    "warm_start.server": servers_answer,
    "warm_start.tokenizer": gathered("eos_ids"),
    "warm_start.prompt": prompt_is_made,
    "warm_start.batch": batch_is_filled,
    "warm_start.begun": folder_was_begun_so,
    "warm_start.folder": folder_has_room,
    "warm_start.gpus": gpus_are_there,
    **DEVICE_RULES,
    **MODEL_RULES,
    "model.architecture": can_be_trained,
    **MACHINE_RULES,
}


def _source(facts: WarmStartFacts) -> str:
    if facts.questions is not None:
        return f"{facts.options.train_data_path}: {facts.questions}"
    return f"{', '.join(map(str, facts.options.trajectories))}: {describe(facts.good_trajectories)}"


def _memory(facts: WarmStartFacts) -> str:
    if facts.model.parameters is None:
        raise UserError("the model's files do not tell its size")
    there = sum(gpu.memory_bytes or 0 for gpu in facts.gpus) if facts.trains_here else facts.machine.memory_bytes
    return f"about {gib(facts.model.parameters * TRAINED_BYTES)} and activations, of {gib(there)}"


PLAN: Plan[WarmStartFacts] = {
    "transcripts": {
        "from": _source,
        "server": lambda facts: facts.options.search_url or "none needed",
        "at most": lambda facts: f"{facts.options.count}, {facts.options.held_out:.0%} of them held out",
    },
    "sizes": {
        "model": lambda facts: f"{facts.folder}: {facts.model.architecture}, {facts.model.parameters} parameters",
        "memory": _memory,
        "disk": lambda facts: f"about {gib(facts.disk_bytes)} of {gib(free_bytes(facts.options.save_path))} free",
    },
    "run": {
        "config": lambda facts: facts.config_name,
        "writes to": lambda facts: str(facts.options.save_path.absolute()),
        "command": lambda _: without_check(resume_command()),
        "versions": lambda _: versions_in_words(("verl", "torch", "transformers")),
    },
}
