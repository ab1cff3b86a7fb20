"""Ask a model that searches: `python evaluation/ask.py "Who wrote Faust?" --sgl_remote_url … --search_url …`.

The terminal shows thinking, queries, passages with their scores and the answer as they come; `--page` shows the same in
a browser. The model is one that is served, a checkpoint (`--auto_serve`), or that of a finished demo (`--demo`); what
this command starts ends with it. Each trajectory is kept in outputs/ask/trajectories.jsonl.
Exit codes: 0 done, 1 a question failed or no model served, 2 unusable input, 130 interrupted.
"""

import asyncio
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside evaluation
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console

from evaluation.asking import PLAN, RULES, Asker, AskFacts, checked, figures, parse_options, started
from flashrag.episode import StepKind, Trajectory
from flashrag.episode.terminal import LABEL_WIDTH, STYLES, TerminalView
from flashrag.errors import EXIT_FAILED, exit_on_user_error
from flashrag.preflight import enforce, examine, keep_torch_out_of_a_check, show_check


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # odd bytes are refused with the question that holds them
    facts = AskFacts(parse_options(sys.argv[1:] if argv is None else argv))
    options = facts.options
    if options.search_config is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the demo's models are local; the loaders would ask a hub first
    facts.gather()
    findings = examine(RULES, facts)
    if options.command_line.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    with started(facts) as settings, asyncio.Runner() as runner:
        asker = Asker(settings)
        try:
            if options.page is not None:
                from evaluation.asking.page import serve

                return runner.run(serve(asker, options.host, options.page))
            view = None if options.as_json else TerminalView(Console(highlight=False, markup=False))
            return ask_each(facts.texts, asker, runner, view)
        finally:
            runner.run(asker.aclose())


def ask_each(texts: Sequence[str] | None, asker: Asker, runner: asyncio.Runner, view: TerminalView | None) -> int:
    """Ask these questions, or those that a person types; without a view, print each trajectory as JSON."""
    failed = False
    for text in typed_questions() if texts is None else texts:
        if view is None:
            trajectory = runner.run(asker.answer(text, lambda _: None))
            print(trajectory.to_json().decode(), flush=True)
        else:
            if texts is not None:
                view.line("question", text, "bold")
            trajectory = runner.run(asker.answer(text, view.show))
            show_end(trajectory, asker, view)
        if trajectory.error is not None:
            print(f"error: {trajectory.error}", file=sys.stderr)
            failed = True
    return EXIT_FAILED if failed else 0


def typed_questions() -> Iterator[str]:
    """Questions that a person types, until an empty line or Ctrl-D."""
    while True:
        # On stderr: with --json, stdout holds trajectories alone.
        print(f"{'question':<{LABEL_WIDTH}}", end="", file=sys.stderr, flush=True)
        try:
            text = input().strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if not text:
            return
        yield checked(text)


def show_end(trajectory: Trajectory, asker: Asker, view: TerminalView) -> None:
    if trajectory.error is None:
        view.line("answer", trajectory.answer or "none", STYLES[StepKind.ANSWER])
    view.line("", f"{figures(trajectory)}; kept in {asker.path}", "dim")


if __name__ == "__main__":
    keep_torch_out_of_a_check(sys.argv)
    sys.exit(main())
