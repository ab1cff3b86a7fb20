"""Try to break the retrieval server: `python scripts/soak/retrieval.py --index_path … --corpus_path … --questions …`

100,000 mixed requests, many of them hostile: every answer is held against a direct search, every refusal against the
documented ones, and memory after against memory before. With `--restart N`, clients that retry ask through N restarts.
Prints a table, and one line of JSON last. Exit codes: 0 survived, 1 not, 2 for a bad input.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/soak
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flashrag.errors import ReSearchError, exit_on_user_error
from flashrag.retriever import check_assets
from flashrag.system.arguments import CommandParser, in_range
from flashrag.system.processes import run_guarded
from rag_serving.settings import read_settings
from scripts.bench.answers import Truth, direct_truth
from scripts.bench.index_options import IndexOptions, add_index_options
from scripts.bench.questions import read_unique_questions
from scripts.bench.server_process import our_server, write_config
from scripts.soak.mix import MAX_BATCH_QUERIES, MAX_QUERY_CHARS, MAX_TOP_N, Pool, long_queries
from scripts.soak.mixed import Soak, memory_problems, print_table
from scripts.soak.restart import survive

POOL_QUESTIONS = 3000
LONG_QUESTIONS = 16
CACHE_QUERIES = 1000  # less than the pool: it is full when the warm-up is over, and goes on losing entries
QUEUE_QUERIES = 512
SERVER_DEADLINE_S = 30.0
# Before memory is measured for the first time; no more than are measured. Forward passes have hundreds of shapes, and
# until the allocator has seen them its heap grows: by 14 % from 10,000 requests on, by 3.6 % from 40,000 on.
WARM_UP_REQUESTS = 40_000
SHOWN_VIOLATIONS = 20


class NotSurvived(ReSearchError):
    """The server did something that it must not do."""


@dataclass(frozen=True)
class SoakOptions(IndexOptions):
    requests: int
    clients: int
    num_retriever: int
    restart: int
    seed: int

    @property
    def server_config(self) -> dict[str, object]:
        return {
            **super().server_config,
            "max_query_chars": MAX_QUERY_CHARS,
            "max_batch_queries": MAX_BATCH_QUERIES,
            "max_top_n": MAX_TOP_N,
            "max_queue_queries": QUEUE_QUERIES,
            "cache_queries": CACHE_QUERIES,
            "request_timeout_s": SERVER_DEADLINE_S,
        }


def parse_args(argv: Sequence[str] | None = None) -> SoakOptions:
    parser = CommandParser(prog="python scripts/soak/retrieval.py", description="Try to break the retrieval server.")
    add_index_options(parser, "a dense Flat index; a small one, so that truth fits in memory")
    add = parser.add_argument
    add("--requests", type=in_range(int, 1), default=100_000, help="default 100000")
    add("--clients", type=in_range(int, 1), default=32, help="requests at a time, default 32")
    add("--num_retriever", type=in_range(int, 1), default=1, help="the server's, default 1")
    add(
        "--restart",
        type=in_range(int, 0),
        default=0,
        metavar="N",
        help="instead: restart the server N times under load",
    )
    add("--seed", type=int, default=1)
    return SoakOptions(**vars(parser.parse_args(argv)))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    questions = read_unique_questions(options.questions, options.seed)[:POOL_QUESTIONS]
    pool = Pool(questions, long_queries(questions[:LONG_QUESTIONS]))
    with tempfile.TemporaryDirectory(prefix="retrieval-soak-") as folder:
        config = write_config(Path(folder), options.server_config)
        check_assets(read_settings(config))
        run_guarded(lambda: _soak(options, config, pool), "start it again")
    return 0


def _soak(options: SoakOptions, config: Path, pool: Pool) -> None:
    queries = list(dict.fromkeys([*pool.questions, *pool.long]))
    print(f"what is right for {len(queries)} queries …", file=sys.stderr, flush=True)
    truth = direct_truth(options.index_path, options.corpus_path, options.model_path, queries)
    started = time.monotonic()
    if options.restart:
        figures, violations = _restarts(options, config, truth)
    else:
        figures, violations = _mixed(options, config, pool, truth)
    for problem in violations[:SHOWN_VIOLATIONS]:
        print(f"violation: {problem}")
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"violations": len(violations), **figures, "seconds": seconds}), flush=True)
    if violations:
        raise NotSurvived(f"{len(violations)} violations")


def _mixed(options: SoakOptions, config: Path, pool: Pool, truth: Truth) -> tuple[dict[str, Any], list[str]]:
    with our_server(config, options.num_retriever, config.parent) as server:
        soak = Soak(server, pool, truth, options.clients, SERVER_DEADLINE_S)
        warm_up = asyncio.run(soak.run(min(options.requests, WARM_UP_REQUESTS), options.seed + 1, "warm-up"))
        unsettled = asyncio.run(soak.settled())
        before_mib = server.memory_mib()
        tally = asyncio.run(soak.run(options.requests, options.seed, "soak"))
        unsettled += asyncio.run(soak.settled())
        after_mib = server.memory_mib()
    log = (config.parent / "server.log").read_text(errors="replace")
    traceback = ["the server's log holds a traceback: " + log[-2000:]] if "Traceback" in log else []
    print_table(tally)
    figures = {
        "requests": tally.outcomes.total(),
        "statuses": tally.results(),
        "slowest_s": round(tally.slowest_s, 3),
        "memory_before_mib": round(before_mib, 1),
        "memory_after_mib": round(after_mib, 1),
    }
    problems = [*warm_up.violations, *tally.violations, *unsettled, *memory_problems(before_mib, after_mib), *traceback]
    return figures, problems


def _restarts(options: SoakOptions, config: Path, truth: Truth) -> tuple[dict[str, Any], list[str]]:
    survival = survive(config, config.parent, truth, options.restart, options.seed)
    figures = {
        "restarts": options.restart,
        "answered": survival.answered,
        "slowest_s": round(survival.slowest_s, 3),
    }
    return figures, survival.violations


if __name__ == "__main__":
    sys.exit(main())
