"""The figures of one benchmark run as a table with targets, and as one line of JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scripts.bench.comparison import Cost, Rung, SingleClient, Throughput, best_batch
from scripts.bench.overload import Overload


@dataclass(frozen=True)
class Report:
    throughput: Throughput
    cost: Cost
    single: SingleClient
    ladder: list[Rung]
    overload: Overload
    memory_mib: dict[int, list[float]]
    answers_checked: int
    answers_wrong: list[str]

    @property
    def figures(self) -> dict[str, Any]:
        """What the last line of a run holds: the measured ratios first, then what they are made of."""
        return {
            "server_over_limit": _median(self.throughput.over_raw),
            "server_over_limit_with_our_encoder": _median(self.throughput.over_direct),
            "server_over_blocking": _median(self.throughput.over_original),
            "server_over_blocking_with_our_encoder": _median(self.throughput.over_blocking),
            "single_client_latency_ratio": _median(self.single.over_raw),
            "single_client_latency_ratio_with_our_encoder": _median(self.single.over_direct),
            "p99_lower_at_every_client_count": all(_lower(rung) for rung in self.ladder),
            "overload_5xx": self.overload.status_5xx,
            "overload_p99_ms": self.overload.accepted_p99_ms,
            "overload_p99_bound_ms": self.overload.p99_bound_ms,
            "overload_memory_growth": self.overload.memory_growth,
            "health_p99_ms": self.overload.health_p99_ms,
            "rss_4_over_1": _median(np.divide(self.memory_mib[4], self.memory_mib[1])),
            "answers_checked": self.answers_checked,
            "answers_wrong": len(self.answers_wrong),
            "raw": {
                "throughput": asdict(self.throughput),
                "cost": asdict(self.cost),
                "single_client": asdict(self.single),
                "ladder": [asdict(rung) for rung in self.ladder],
                "overload": {key: value for key, value in asdict(self.overload).items() if key != "kept"},
                "memory_mib": self.memory_mib,
            },
        }


def print_report(report: Report) -> None:
    """The table, what is wrong with answers if anything is, and the JSON line last."""
    rows = [("figure", "median (lowest–highest round)", "target"), *_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for figure, measured, target in rows:
        print(f"{figure:<{widths[0]}}  {measured:<{widths[1]}}  {target}")
    for problem in report.answers_wrong[:20]:
        print(f"wrong answer: {problem}")
    print(json.dumps(report.figures, default=float), flush=True)


def _rows(report: Report) -> list[tuple[str, str, str]]:
    throughput, single, overload = report.throughput, report.single, report.overload
    refused = sum(count for status, count in overload.status.items() if status not in (200, 429))
    bound = overload.p99_bound_ms
    return [
        *_limit_rows("no server", throughput.raw),
        *_limit_rows("no server, our encoder", throughput.direct),
        ("server, queries/s", _spread(throughput.ours), ""),
        ("blocking handler, queries/s", _spread(throughput.original), ""),
        ("blocking handler with our encoder, queries/s", _spread(throughput.blocking), ""),
        ("server / limit", _spread(throughput.over_raw), ">= 0.80"),
        ("server / limit with our encoder", _spread(throughput.over_direct), ""),
        ("server / blocking handler", _spread(throughput.over_original), ">= 5"),
        ("server / blocking handler with our encoder", _spread(throughput.over_blocking), ""),
        (
            "processor ms a query: no server, our encoder; server; load generator",
            f"{report.cost.direct_ms:.3g}; {report.cost.server_ms:.3g}; {report.cost.load_ms:.3g}",
            "",
        ),
        ("1 client: no server, median ms", _spread(single.raw_ms), ""),
        ("1 client: no server, our encoder, median ms", _spread(single.direct_ms), ""),
        ("1 client: server, median ms", _spread(single.ours_ms), ""),
        ("1 client: server / no server", _spread(single.over_raw), "<= 1.15"),
        ("1 client: server / no server, our encoder", _spread(single.over_direct), ""),
        ("1 client: HTTP alone, median ms", f"{single.http_floor_ms:.3g}", ""),
        *(
            (
                f"{rung.clients} clients, p99 ms: server; blocking handler with our encoder",
                f"{_spread(rung.ours_p99_ms)}; {_spread(rung.blocking_p99_ms)}",
                "lower" + ("" if _lower(rung) else " (missed)"),
            )
            for rung in report.ladder
        ),
        ("overload: offered; accepted queries/s", f"{overload.offered_per_s:.3g}; {overload.accepted_per_s:.3g}", ""),
        ("overload: answers by status", str(overload.status), "200 and 429 alone"),
        ("overload: other than 200 and 429", str(refused), "0"),
        ("overload: accepted, p99 ms", f"{overload.accepted_p99_ms:.4g}", f"< {bound:.4g}" if bound else "no queue"),
        ("overload: /health, p99 ms", f"{overload.health_p99_ms:.3g}", "< 50"),
        ("overload: /health failed", str(overload.health_failed), "0"),
        (
            "overload: memory, last third / middle third; MiB a minute",
            f"{overload.memory_growth:.3f}; {overload.memory_slope_mib_per_min:.2f}",
            "flat",
        ),
        *((f"memory with {count} retrievers, MiB", _spread(mib), "") for count, mib in report.memory_mib.items()),
        ("memory, 4 retrievers / 1", _spread(np.divide(report.memory_mib[4], report.memory_mib[1])), "<= 1.15"),
        ("sampled answers: wrong of all", f"{len(report.answers_wrong)} of {report.answers_checked}", "0"),
    ]


def _limit_rows(who: str, rates_by_batch: Mapping[int, Sequence[float]]) -> Iterator[tuple[str, str, str]]:
    best = best_batch(rates_by_batch)
    for size, rates in rates_by_batch.items():
        yield (f"{who}, {size} a batch, queries/s", _spread(rates) + (" (the limit)" if size == best else ""), "")


def _lower(rung: Rung) -> bool:
    return _median(rung.ours_p99_ms) < _median(rung.blocking_p99_ms)


def _median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(values))


def _spread(values: Sequence[float] | np.ndarray) -> str:
    return f"{_median(values):.3g} ({min(values):.3g}–{max(values):.3g})"
