"""One demo run: its options, its folder, and the stages whose products lie there."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flashrag.errors import UserError
from flashrag.preflight import CHECK_HELP
from flashrag.system.arguments import flag
from training.demo.world import DEMO_SEED

DATASET = "demo"
OPTIONS_FILE = "options.json"


@dataclass(kw_only=True)
class DemoRun:
    """The options of the command, and the paths that follow from them."""

    output_dir: Path = flag("where every stage's product goes", Path("outputs/demo"))
    seed: int = flag("of the world, the data order and the rollouts", DEMO_SEED)
    steps: int = flag("GRPO steps", 20)
    fresh: bool = flag("remove the output folder first", False)
    check: bool = flag(CHECK_HELP, False)
    irrelevant_search: bool = flag(
        "control run: the server searches another world, so no passage ever holds an answer", False
    )

    def __post_init__(self) -> None:
        self.path = self.output_dir.resolve()
        self.world = self.path / "data" / DATASET
        self.corpus = (self.path / "irrelevant_world" if self.irrelevant_search else self.world) / "corpus.jsonl"
        self.index = self.path / "index" / "minilm_Flat.index"
        self.training = self.path / "training"
        self.trained_model = self.training / f"global_step_{self.steps}" / "actor" / "huggingface"
        self.logs = self.path / "logs"
        self.page = self.path / "page" / "report.html"
        self.report = self.path / "report.json"

    def evaluation(self, name: str) -> Path:
        """As run_eval.py names it: dataset, split, method, note."""
        return self.path / "evaluation" / f"{DATASET}_dev_research_{name}"

    @property
    def options(self) -> dict[str, int | bool]:
        """The options that decide what the folder holds."""
        return {"seed": self.seed, "steps": self.steps, "irrelevant_search": self.irrelevant_search}

    def check_folder(self) -> None:
        """Raise `UserError` if the folder is another's, or holds a run with other options."""
        kept = self.path / OPTIONS_FILE
        if self.fresh:
            if self.path.exists() and not kept.is_file():
                raise UserError(
                    f"--fresh would remove {self.path}, which is no demo folder (no options.json); remove it"
                )
        elif kept.is_file() and (before := json.loads(kept.read_bytes())) != self.options:
            raise UserError(
                f"{self.path} holds a demo run with {before}, but this command asks for {self.options}; give --fresh "
                "to start afresh, or another --output_dir"
            )

    def open(self) -> None:
        """Make the folder, or go on in it; raises `UserError` as `check_folder` does."""
        self.check_folder()
        try:
            if self.fresh and self.path.exists():
                shutil.rmtree(self.path)
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.path / OPTIONS_FILE).write_text(json.dumps(self.options, indent=1))
        except OSError as error:
            raise UserError(
                f"--output_dir {self.output_dir} cannot be written ({error.strerror}); give another folder"
            ) from error


class Stopwatch:
    """Seconds per stage, added up over resumed runs and kept on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_bytes()) if path.is_file() else {}

    def stage(self, name: str, product: Path, work: Callable[[], None]) -> None:
        """Do the work of a stage unless its product is there."""
        if product.exists():
            print(f"== {name}: done before ({product})", flush=True)
            return
        print(f"== {name} …", flush=True)
        started = time.monotonic()
        try:
            work()
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 1)
            self.path.write_text(json.dumps(self.seconds, indent=1))
        print(f"== {name}: {self.seconds[name]:.0f} s", flush=True)
