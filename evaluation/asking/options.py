"""The flags of ask.py: its own, and those keys of the evaluation's configuration that one question needs.

`--demo FOLDER` stands for three things that a finished demo left: the configuration of its last evaluation, the model
that it trained, and the configuration of its retrieval server.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.command_line import SERVED, CommandLine, add_keys, add_served, how_served, parse_flags
from evaluation.run.auto_serve import LATER
from flashrag.config import read_yaml_mapping
from flashrag.errors import UserError
from flashrag.preflight import CHECK_HELP
from flashrag.system.arguments import CommandParser, in_range
from flashrag.system.local_server import LOOPBACK

CONFIG = Path(__file__).resolve().parents[1] / "eval_config.yaml"
DEMO = Path("outputs/demo")
DEMO_CONFIG = Path("evaluation", "demo_dev_research_trained", "config.yaml")
DEMO_SEARCH = Path("logs", "serving_config.yaml")
DEMO_OWN = ("remote_retriever_url", "use_remote_retriever", "sgl_remote_url", "generator_model")
PAGE_PORT = 8020
# Keys about a set of questions and its scores. The first two are required, and take the place of a data set's name.
PLACEHOLDERS = {"dataset_name": "question", "split": "asked"}
NOT_ASKED = frozenset(
    {
        *PLACEHOLDERS,
        *("data_dir", "test_sample_num", "random_sample", "concurrency", "metrics", "metric_setting", "reward"),
        *("num_samples", "save_note", "save_metric_score", "save_intermediate_data"),
    }
)
DEFAULTS = {"method_name": "research", "save_dir": "outputs/ask"}
OWN = ("question", "config_path", "auto_serve", "demo", "json", "page", "host", "check", *SERVED)


class AskOptions(NamedTuple):
    """`question` is None to read questions from the terminal or from stdin; `page` is the port of the page, if wanted.

    `search_config` is that of the retrieval server to start, None if one is running or none is needed.
    """

    command_line: CommandLine
    question: str | None
    search_config: Path | None
    as_json: bool
    page: int | None
    host: str


def parse_options(argv: Sequence[str]) -> AskOptions:
    """Read the flags; raises `UserError` for an unknown one, and for flags that do not go together."""
    given, keys = parse_flags(_parser(), argv, OWN)
    overrides: dict[str, Any] = {**DEFAULTS, **keys, **PLACEHOLDERS}
    config_path, checkpoint, search_config = given["config_path"] or CONFIG, given["auto_serve"], None
    if (demo := given["demo"]) is not None:
        for name in ("config_path", "auto_serve"):
            _not_with_demo(name, given[name] is not None)
        for name in DEMO_OWN:
            _not_with_demo(name, name in keys)
        config_path, search_config = demo / DEMO_CONFIG, demo / DEMO_SEARCH
        checkpoint = _trained_model(demo)
        overrides["remote_retriever_url"] = LATER
    if keys.get("search_control") == "random":
        raise UserError(
            "search_control=random draws from the questions of a whole run; use another control, or "
            "evaluation/run_eval.py"
        )
    if given["page"] is not None:
        for name, flag in (("question", "a question"), ("json", "--json")):
            if given[name]:
                raise UserError(f"--page and {flag} were both given; the page asks its own questions, remove one")
    elif given["host"] != LOOPBACK:
        raise UserError(f"--host {given['host']} says where a page listens, and none was asked for; add --page")
    command_line = CommandLine(
        config_path, overrides, False, checkpoint, given["check"], **how_served(given), arguments=tuple(argv)
    )
    return AskOptions(command_line, given["question"], search_config, given["json"], given["page"], given["host"])


def _not_with_demo(name: str, is_given: bool) -> None:
    if is_given:
        raise UserError(f"--demo and --{name} were both given; the demo's folder sets {name}, remove one of them")


def _trained_model(demo: Path) -> Path:
    for path in (demo / DEMO_CONFIG, demo / DEMO_SEARCH):
        if not path.is_file():
            raise UserError(
                f"--demo {demo} holds no finished demo ({path} is missing); make one: bash training/run.sh --demo "
                f"--output_dir {demo}"
            )
    return Path(str(read_yaml_mapping(demo / DEMO_CONFIG).get("generator_model")))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="evaluation/ask.py",
        description="Ask a model that searches one question, and watch it think, search and answer.",
        epilog="Without a question it asks you for one after the other, until an empty line or Ctrl-D; from a pipe it "
        "takes one a line.",
    )
    parser.add_argument("question", nargs="?", help="the question (default: asked for)")
    model = parser.add_argument_group("model (default: the one served at sgl_remote_url)").add_argument
    model("--auto_serve", type=Path, metavar="CHECKPOINT",
          help="serve this checkpoint, or model folder, meanwhile (default: use a running server)")  # fmt: skip
    add_served(model)
    model("--demo", type=Path, nargs="?", const=DEMO, metavar="FOLDER",
          help=f"serve the model that a demo trained, and its retrieval server, meanwhile (default: no demo; {DEMO} "
          "if no folder follows)")  # fmt: skip
    show = parser.add_argument_group("what you see").add_argument
    show("--page", type=in_range(int, 0, 65535), nargs="?", const=PAGE_PORT, metavar="PORT",
         help=f"ask and watch in a browser, until Ctrl-C; 0 takes a free port (default: no page; port {PAGE_PORT} if "
         "none follows)")  # fmt: skip
    show("--host", default=LOOPBACK, metavar="ADDRESS", help="where the page listens; 0.0.0.0 for other machines")
    show("--json", action="store_true", help="print the trajectory as one line of JSON, and nothing else, on stdout")
    show("--check", action="store_true", help=CHECK_HELP)
    settings = parser.add_argument_group("configuration").add_argument
    settings("--config_path", type=Path, metavar="YAML",
             help=f"a configuration of the evaluation, {CONFIG.parent.name}/{CONFIG.name} by default")  # fmt: skip
    add_keys(parser, without=NOT_ASKED)
    return parser
