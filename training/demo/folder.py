"""The folder of one demo run: where everything lies, the run's options, and the seconds that its stages took."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flashrag.errors import UserError

DATASET = "demo"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What makes one demo run; kept in options.json so that a resumed run is the same run."""

    seed: int
    steps: int
    irrelevant_search: bool


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where everything of one demo run lies."""

    path: Path

    @property
    def world(self) -> Path:
        return self.path / "data" / DATASET

    @property
    def index(self) -> Path:
        return self.path / "index" / "minilm_Flat.index"

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        return self.path / "page" / "report.html"

    def corpus(self, options: DemoOptions) -> Path:
        """The corpus that is searched: this world's, or in the control run another world's."""
        return (self.path / "irrelevant_world" if options.irrelevant_search else self.world) / "corpus.jsonl"

    def evaluation(self, name: str) -> Path:
        """As run_eval.py names it: dataset, split, method, note."""
        return self.path / "evaluation" / f"{DATASET}_dev_research_{name}"

    def trained_model(self, step: int) -> Path:
        return self.training / f"global_step_{step}" / "actor" / "huggingface"


def open_folder(path: Path, options: DemoOptions, *, fresh: bool = False) -> DemoFolder:
    """The output folder for these options; raises `UserError` when it holds a run with other ones."""
    folder = DemoFolder(path.resolve())
    kept = folder.path / "options.json"
    if fresh and folder.path.exists():
        if not kept.is_file():
            raise UserError(f"--fresh would remove {folder.path}, which is no demo folder (no options.json); remove it")
        shutil.rmtree(folder.path)
    if kept.is_file() and (before := json.loads(kept.read_text())) != asdict(options):
        raise UserError(
            f"{folder.path} holds a demo run with {before}, asked for is {asdict(options)}; give --fresh to start "
            "afresh or another --output_dir"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(options), indent=1))
    except OSError as error:
        raise UserError(f"--output_dir {path} cannot be written ({error.strerror}); give another folder") from error
    return folder


class Stopwatch:
    """Seconds per stage, added up over resumed runs and kept on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

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
