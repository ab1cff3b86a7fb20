"""A run that collapses, and the same run with LLDS, as a figure; docs/training.md explains it.

    python scripts/bench/collapse.py --demo_dir outputs/demo

Trains the demo's base model with settings under which the plain loss breaks it, once for each weight of LLDS and each
seed; all other settings are the demo's. The weight 0 is the plain loss, with the lost likelihood measured alike.
Complete runs are not repeated. The curves come as collapse.png and collapse.csv in --out, and one JSON line last.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.processes import guarded_processes, start_process, tail
from scripts.bench.inputs import DemoOptions
from scripts.bench.methods import BASE_MODEL
from scripts.bench.report import Curve, draw_curves, print_report, write_csv
from scripts.bench.servers import our_server
from verl_search.composition import quoted
from verl_search.trainer.run_folder import METRICS_FOLDER, read_metrics

ACTOR = "actor_rollout_ref.actor"
# What breaks the plain loss: five times the demo's learning rate, eight updates a step, each over four answers to one
# question, and no KL to hold the model back.
BREAKING = (
    *(f"{ACTOR}.optim.lr=5.0e-04", f"{ACTOR}.ppo_mini_batch_size=1", f"{ACTOR}.ppo_epochs=2"),
    *(f"{ACTOR}.use_kl_loss=false", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=4"),
)
# The collapse is to be seen, so no alarm stops it. Runs are short: nothing is validated or saved, and a broken model,
# which never ends by itself, is cut off earlier than in the demo.
WATCHED = (
    *("alarms.collapse=null", "alarms.not_finite=null", "trainer.logger=[console,file]"),
    *("trainer.test_freq=-1", "trainer.val_before_train=false", "trainer.save_freq=-1"),
    "data.max_response_length=256",
)
CURVES = {  # by the name of a column: the metric, and the panel's title
    "reward": ("critic/score/mean", "Reward"),
    "em": ("rollout/em", "Exact match"),
    "format_rate": ("rollout/format_rate", "Valid format"),
    "lost": ("actor/llds", "Likelihood lost by good answers"),
}
LINES = ("-", "--", ":", "-.")
LAST_STEPS = 5  # over which the figures of a run are means


@dataclass(frozen=True, kw_only=True)
class CollapseOptions:
    """Train with settings that break the plain loss, with it and with LLDS, and draw both."""

    demo_dir: Path = flag("folder that bash training/run.sh left", Path("outputs/demo"))
    coefs: Sequence[float] = flag("weights of LLDS (llds_coef), 0 for the plain loss", (0.0, 1.0), type=float)
    seeds: Sequence[int] = flag("one run of each weight for each of them", (1,), type=int)
    steps: int = flag("GRPO steps of a run", 12, type=in_range(int, LAST_STEPS))
    out: Path = flag("folder of the runs, of collapse.png and of collapse.csv", Path("outputs/collapse"))


class Run(NamedTuple):
    coef: float
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        return f"LLDS {self.coef:g}" if self.coef else "plain"

    def points(self) -> list[dict[str, float]]:
        """The values of each step, by the names of the columns."""
        return [
            {"step": step, **{name: metrics[key] for name, (key, _) in CURVES.items()}}
            for step, metrics in read_metrics(self.folder / METRICS_FOLDER)
        ]


def train(run: Run, options: CollapseOptions, search_url: str) -> None:
    """Train afresh: without checkpoints, a run that was stopped cannot go on."""
    shutil.rmtree(run.folder, ignore_errors=True)
    metrics, log_path = run.folder / METRICS_FOLDER, run.folder / "train.log"
    metrics.mkdir(parents=True)
    data = options.demo_dir / "data" / "demo"
    overrides = [
        *(f"search.url={search_url}", f"actor_rollout_ref.model.path={quoted(str(BASE_MODEL))}"),
        f"data.train_files={quoted(str(data / 'train.parquet'))}",
        f"data.val_files={quoted(str(data / 'dev.parquet'))}",
        *(f"data.seed={run.seed}", f"search.seed={run.seed}", f"{ACTOR}.data_loader_seed={run.seed}"),
        f"trainer.total_training_steps={options.steps}",
        f"trainer.default_local_dir={quoted(str(run.folder))}",
        f"hydra.run.dir={quoted(str(run.folder / 'hydra'))}",
        *(*BREAKING, *WATCHED, f"{ACTOR}.policy_loss.loss_mode=llds"),
        f"{ACTOR}.policy_loss.llds_coef={run.coef:g}",
    ]
    command = [sys.executable, "-m", "verl_search.main_ppo", "--config-name", "demo", *overrides]
    environment = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "VERL_FILE_LOGGER_PATH": str(metrics / "1.jsonl")}
    if (code := start_process(command, log_path, environment).wait()) != 0:
        raise ReSearchError(f"the training ended with exit code {code}; {log_path} ends:\n{tail(log_path)}")


def draw(runs: Sequence[Run], path: Path) -> None:
    """A weight has one colour, and each of its seeds a line."""
    coefs, seeds = (list(dict.fromkeys(values)) for values in zip(*((run.coef, run.seed) for run in runs), strict=True))

    def style(run: Run) -> dict[str, str]:
        return {"color": f"C{coefs.index(run.coef)}", "linestyle": LINES[seeds.index(run.seed) % len(LINES)]}

    titles = {name: title for name, (_, title) in CURVES.items()}
    draw_curves(path, titles, [Curve(f"{run.label}, seed {run.seed}", run.points(), style(run)) for run in runs])


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(CollapseOptions, "python scripts/bench/collapse.py", argv)
    runs = [
        Run(coef, seed, (options.out / f"coef{coef:g}_seed{seed}").resolve())
        for seed in options.seeds
        for coef in options.coefs
    ]
    missing = [run for run in runs if len(run.points()) < options.steps]
    serving_config = DemoOptions(demo_dir=options.demo_dir).serving_config
    if missing and not serving_config.is_file():
        raise UserError(f"--demo_dir {options.demo_dir} holds no demo; run bash training/run.sh")
    if missing:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        with guarded_processes(), our_server(serving_config, options.out / "logs") as server:
            for run in missing:
                print(f"== {run.label}, seed {run.seed}", flush=True)
                train(run, options, server.url)
    rows = [{"coef": f"{run.coef:g}", "seed": run.seed, **point} for run in runs for point in run.points()]
    write_csv(options.out / "collapse.csv", ["coef", "seed", "step", *CURVES], rows)
    draw(runs, options.out / "collapse.png")
    figures = {
        f"coef{coef:g}_{name}": [
            fmean(point[name] for point in run.points()[-LAST_STEPS:]) for run in runs if run.coef == coef
        ]
        for coef in options.coefs
        for name in CURVES
    }
    print_report(figures, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
