"""The whole path of a recipe that has stages, from nothing to a report: `bash training/run.sh --recipe smollm2-nq`.

A stage is a command as a user types it, in the root of the repository. What is done is noted in stages.json, so the
same command goes on where it was stopped; each stage's own command goes on where it can. A retrieval server runs while
a stage needs it. Does not cover: what the stages do.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig

from flashrag.errors import EXIT_USER_ERROR, ReSearchError, UserError, did_you_mean, without_passwords
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    Rule,
    enforce,
    error,
    examine,
    fact,
    gathered,
    gib,
    output_folder,
    show_check,
    without_check,
)
from flashrag.system import local_server
from flashrag.system.arguments import CommandParser, flag
from flashrag.system.files import locked, write_text
from flashrag.system.machine import torch_cuda
from flashrag.system.processes import end_with_parent, run_guarded, stop_process
from training.recipe import Recipe, Stage
from verl_search.composition import usual_precision
from verl_search.preflight.settings_rules import SETTINGS_RULES
from verl_search.trainer.stopping import resume_command

REPOSITORY = Path(__file__).resolve().parents[1]
NOTES = "stages.json"
SEARCH_URL = "{search_url}"
TRAINING = "bash training/run.sh "
FOLDER_BYTES = 12 * 2**30  # computed for smollm2-nq: a model, its warm start, three checkpoints with optimizer


@contextmanager
def retrieval_server(config: Mapping[str, str], log_folder: Path) -> Iterator[str]:
    """Serve a retrieval config on a free port for the length of the block; yields the server's URL."""
    config_path = log_folder / "serving_config.yaml"
    config_path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    script = REPOSITORY / "rag_serving" / "serving.py"
    with local_server.retrieval_server(script, config_path, log_folder / "retrieval_server.log") as url:
        yield url


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """The flags of a whole path, beside those of the training in it."""

    recipe: str = flag("this recipe", metavar="NAME")
    data_dir: Path = flag("folder of the questions and the corpus", Path("data"))
    output_dir: Path | None = flag("where every stage's product goes (default: outputs/RECIPE)", None)
    seed: int = flag("of the training: data order and rollouts", 0)
    run: str | None = flag(
        "a folder in output_dir for this training and what follows it (default: seedN)", None, metavar="NAME"
    )
    until: str | None = flag("the last stage to run, as 'warm start' (default: all)", None, metavar="STAGE")
    check: bool = flag(CHECK_HELP, False)


class PathFacts(MachineFacts):
    """What there is to know before a whole path starts.

    `given` are flags and settings of the training; `read_training` makes the config of arguments of training/run.sh, or
    raises `UserError`.
    """

    def __init__(
        self,
        recipe: Recipe,
        options: PathOptions,
        given: Sequence[str],
        read_training: Callable[[Sequence[str]], DictConfig],
    ) -> None:
        self.recipe, self.options, self.given, self.read_training = recipe, options, given, read_training
        self.folder = (options.output_dir or Path("outputs") / recipe.name).absolute()
        self.run = options.run or f"seed{options.seed}"

    @fact
    def inputs(self) -> Mapping[str, Path]:
        """The first file in the data folder of each input."""
        found = {}
        for name, places in self.recipe.inputs.items():
            path = next((path for place in places if (path := self.options.data_dir / place).is_file()), None)
            if path is None:
                raise UserError(
                    f"--data_dir {self.options.data_dir}: no file {' or '.join(places)}, the {name} of the recipe; "
                    "scripts/download_data.py fetches data, docs/real_model.md says which"
                )
            found[name] = path.absolute()
        return found

    @property
    def values(self) -> Mapping[str, str]:
        """What the placeholders of the recipe stand for."""
        paths = {"output_dir": self.folder, "run_dir": self.folder / self.run, **self.inputs}
        more = {"seed": self.options.seed, "precision": "bfloat16" if torch_cuda() else usual_precision()}
        return {name: str(value) for name, value in {**paths, **more}.items()}

    @property
    def server(self) -> dict[str, str]:
        """The configuration of the retrieval server."""
        return {key: value.format_map(self.values) for key, value in self.recipe.server.items()}

    @fact
    def commands(self) -> Mapping[str, str]:
        """The command of each stage; the address of the server, which is not known yet, stays a placeholder."""
        values = {name: shlex.quote(value) for name, value in self.values.items()}
        values |= {"given": shlex.join(self.given), "search_url": SEARCH_URL}
        values |= {name: piece.format_map(values) for name, piece in self.recipe.pieces.items()}
        stages = {self.name_of(stage): stage.command for stage in self.stages}
        return {name: command.format_map(values).strip() for name, command in stages.items()}

    @property
    def stages(self) -> Sequence[Stage]:
        """Those of the recipe, up to the last one that is wanted."""
        names = [stage.name for stage in self.recipe.stages]
        until = self.options.until
        return self.recipe.stages[: names.index(until) + 1] if until in names else self.recipe.stages

    def name_of(self, stage: Stage) -> str:
        """The name of a stage in the notes: what depends on the training is done for each."""
        return f"{stage.name} {self.run}" if "{run_dir}" in stage.command else stage.name

    @property
    def notes(self) -> dict[str, dict[str, object]]:
        """The command of each stage that was begun, and its seconds if it is done; raises `UserError` if damaged."""
        path = self.folder / NOTES
        try:
            return {name: dict(note) for name, note in json.loads(path.read_bytes()).items()} if path.is_file() else {}
        except (ValueError, TypeError, AttributeError) as reason:
            raise UserError(f"{path} is damaged ({reason}); remove it, and every stage is done again") from reason

    def is_done(self, name: str) -> bool:
        return "seconds" in self.notes.get(name, {})

    def note(self, name: str, **values: object) -> None:
        self._write({**self.notes, name: {"command": without_passwords(self.commands[name]), **values}})

    def forget(self, name: str) -> None:
        self._write({noted: note for noted, note in self.notes.items() if noted != name})

    def _write(self, notes: Mapping[str, Mapping[str, object]]) -> None:
        write_text(self.folder / NOTES, json.dumps(notes, indent=1) + "\n")


def run_is_a_name(facts: PathFacts) -> Iterator[Finding]:
    taken = {name for stage in facts.recipe.stages for name in re.findall(r"\{output_dir\}/([\w.-]+)", stage.command)}
    if Path(facts.run).name != facts.run or facts.run in taken:
        yield error(f"--run {facts.run}: expected a name without a /, for a folder of its own in --output_dir")


def until_is_a_stage(facts: PathFacts) -> Iterator[Finding]:
    until, names = facts.options.until, [stage.name for stage in facts.recipe.stages]
    if until is not None and until not in names:
        yield error(f"--until {until}: expected one of {', '.join(names)}{did_you_mean(until, names)}")


def training_fits(facts: PathFacts) -> Iterator[Finding]:
    for stage in facts.stages:
        if stage.command.startswith(TRAINING):
            own = {word.partition("=")[0] for word in stage.command.split() if word.startswith("--") or "=" in word}
            for key in sorted(own.intersection(word.partition("=")[0] for word in facts.given)):
                yield error(f"{key} was given, but the recipe sets it; see --data_dir, --output_dir, --seed and --run")
            command = facts.commands[facts.name_of(stage)]
            yield from examine(SETTINGS_RULES, facts.read_training(shlex.split(command.removeprefix(TRAINING))))


def stages_are_the_same(facts: PathFacts) -> Iterator[Finding]:
    for name, command in facts.commands.items():
        before = facts.notes.get(name, {}).get("command")
        if before not in (None, without_passwords(command)):
            another = "--run or --output_dir" if name.endswith(f" {facts.run}") else "--output_dir"
            yield error(
                f"{facts.folder} holds the stage {name!r} of another command:\n    {before}\n  this one asks for:\n    "
                f"{command}\n  give another {another}"
            )


RULES: Mapping[str, Rule[PathFacts]] = {
    "path.inputs": gathered("inputs"),
    "path.run": run_is_a_name,
    "path.until": until_is_a_stage,
    "path.training": training_fits,
    "path.stages": stages_are_the_same,
    "path.output": lambda facts: output_folder("--output_dir", facts.folder, FOLDER_BYTES, "all stages"),
    **MACHINE_RULES,
}


def _stages(facts: PathFacts) -> str:
    state = {name: "done" if facts.is_done(name) else "to do" for name in facts.commands}
    return "".join(f"\n  {name} ({state[name]})\n    {command}" for name, command in facts.commands.items())


PLAN: Plan[PathFacts] = {
    "path": {
        "command": lambda _: without_check(resume_command()),
        "recipe": lambda facts: facts.recipe.name,
        "machine": lambda facts: f"{facts.machine.cores} cores, {gib(facts.machine.memory_bytes)} of memory",
        "written to": lambda facts: str(facts.folder),
        "stages": _stages,
    }
}


class StageFailed(ReSearchError):
    """A stage ended with an error, whose exit code is that of the whole."""

    def __init__(self, name: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"the stage {name!r} ended with exit code {exit_code}; above it says why")


def run_stage(name: str, command: str) -> None:
    """Run one command; its output is ours. Raises `StageFailed` where it fails."""
    program, *words = shlex.split(command)
    program = sys.executable if program == "python" else program
    # In a session of its own it gets no Ctrl-C of the terminal, but our SIGTERM, and 15 s to end what it started.
    process = subprocess.Popen(
        [program, *words],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        exit_code = process.wait()
    finally:
        stop_process(process)
    if exit_code != 0:
        raise StageFailed(name, exit_code)


@contextmanager
def noted(facts: PathFacts, name: str) -> Iterator[None]:
    """Note a stage as begun, and after the block as done. If it refuses its command, another may take its place."""
    is_new = name not in facts.notes
    facts.note(name)
    started = time.monotonic()
    try:
        yield
    except StageFailed as failed:
        if is_new and failed.exit_code == EXIT_USER_ERROR:
            facts.forget(name)
        raise
    seconds = round(time.monotonic() - started, 1)
    facts.note(name, seconds=seconds)
    print(f"== {name}: {seconds:.0f} s", flush=True)


def run_stages(facts: PathFacts) -> None:
    """All stages that are not done, in order; raises `UserError` where another command works in the folder."""
    facts.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(facts.folder))
        except BlockingIOError as reason:
            raise UserError(f"{facts.folder}: another command makes its stages; wait for it, or stop it") from reason
        url = ""
        for number, (name, command) in enumerate(facts.commands.items(), 1):
            title = f"== {number}/{len(facts.commands)} {name}"
            if facts.is_done(name):
                print(f"{title}: done before", flush=True)
                continue
            print(f"{title}\n{without_passwords(command)}", flush=True)
            if SEARCH_URL in command and not url:
                url = held.enter_context(retrieval_server(facts.server, facts.folder))
            with noted(facts, name):
                run_stage(name, command.replace(SEARCH_URL, url))


def whole_path(recipe: Recipe, argv: Sequence[str], read_training: Callable[[Sequence[str]], DictConfig]) -> int:
    """The command line of a whole path; returns the exit code. `read_training` is as for `PathFacts`."""
    parser = CommandParser(
        prog=f"training/run.sh --recipe {recipe.name}",
        description=f"{recipe.title}: everything from the model to the report. Flags and settings of the training "
        "can follow (bash training/run.sh --help).",
    )
    parser.add_fields(PathOptions)
    flags, given = parser.parse_known_args(argv)
    facts = PathFacts(recipe, PathOptions(**vars(flags)), given, read_training)
    findings = examine(RULES, facts)
    if facts.options.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    run_guarded(lambda: run_stages(facts), resume_hint=f"the same command goes on ({facts.folder})")
    print(f"done: {facts.folder}")
    return 0
