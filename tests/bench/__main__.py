"""`make bench`: what a request, a handshake, an association and a restart cost, from outside.

    python -m tests.bench                      all of it, three times: about fifteen minutes
    python -m tests.bench --quick              all of it once, smaller: about three minutes
    python -m tests.bench request-50 request-500 --repeats 1

Needs mosquitto; gcc and libssl-dev for the fast load generator, without which a slower one in
Python serves. Writes JSON and a chart into bench-results/, and compares ratios with
tests/bench/baseline.json: exit status 1 if one became worse, or if anything went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coapgate.errors import CoapgateError
from tests.bench import chart, comparison, documents, tables
from tests.bench.figures import FLOOR, Results, Sample, summarize, write
from tests.bench.loads import PYTHON, ROOT, Load, LoadFailed, compile_dtlsload
from tests.bench.machine import describe
from tests.bench.measurements import MEASUREMENTS, repeat
from tests.bench.processes import Cores, choose_cores
from tests.bench.surroundings import FULL, QUICK, Bench, Scale, mosquitto
from tests.peers import require

WHAT = {name: measurement.what for name, measurement in MEASUREMENTS.items()}


def measure(
    names: list[str], load: Load, cores: Cores, scale: Scale, repeats: int
) -> dict[str, list[Sample]]:
    """Samples of each; says what it is at."""

    def tell(at: str) -> None:
        print(f"{at} ...", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="coapgate-bench-") as temporary:
        folder = Path(temporary)
        with mosquitto(folder, cores.broker) as url:
            bench = Bench(folder, url, load, cores, scale)
            return asyncio.run(repeat(bench, names, repeats, tell))


def results_of(samples: dict[str, list[Sample]], about: dict[str, str]) -> Results:
    """Figures with their ratios to the floors of the same repetitions."""
    floors = [sample.cost for sample in samples[FLOOR]]
    return Results(
        about,
        tuple(
            summarize(name, MEASUREMENTS[name].unit, found, floors)
            for name, found in samples.items()
        ),
    )


def show(results: Results, console: Console) -> None:
    """The table, what else is known, and what went wrong."""
    console.print(tables.table("server CPU, or memory", tables.HEADINGS, tables.rows(results, {})))
    for figure in results.figures:
        if figure.notes:
            console.print(f"{figure.name}: {tables.notes(figure)}", style="dim")
    for line in results.went_wrong():
        console.print(f"wrong: {line}", style="red")


def judge(results: Results, console: Console) -> bool:
    """Compare with the baseline and say what came of it; False if something is worse."""
    changes, unknown = comparison.compare(results, comparison.BASELINE.read_text())
    worse = [change for change in changes if change.is_worse]
    if worse:
        console.print(tables.changes_table(worse))
    tolerated = (
        f"{comparison.TIME_TOLERANCE:.0%} of a ratio, {comparison.MEMORY_TOLERANCE:.0%} of memory, "
        f"{comparison.RECOVERY_TOLERANCE:.0%} of {comparison.RECOVERY}"
    )
    console.print(f"{len(changes)} compared with the baseline, {len(worse)} worse")
    console.print(f"tolerated: {tolerated}")
    if unknown:
        console.print(f"not in a baseline of this load: {', '.join(unknown)}")
    return not worse


def parse_arguments() -> argparse.Namespace:
    parsing = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.splitlines()[0]
    )
    parsing.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parsing.add_argument("--quick", action="store_true", help="once, and smaller; not compared")
    parsing.add_argument("--repeats", type=int, help="how often; 3, or with --quick 1")
    parsing.add_argument("--duration", type=float, help="seconds that requests are measured")
    parsing.add_argument("--python-load", action="store_true", help="as where there is no compiler")
    parsing.add_argument("--results", type=Path, default=ROOT / "bench-results", metavar="FOLDER")
    parsing.add_argument("--write-docs", action="store_true", help="into docs/performance.md")
    parsing.add_argument("--write-baseline", action="store_true", help="for later runs to compare")
    arguments = parsing.parse_args()
    unknown = [name for name in arguments.names if name not in MEASUREMENTS]
    if unknown:
        parsing.error(f"no such measurement: {', '.join(unknown)}")
    if (arguments.write_docs or arguments.write_baseline) and (arguments.names or arguments.quick):
        parsing.error("documents and baseline are written by a whole run only")
    if arguments.write_docs and not chart.is_available():
        parsing.error("--write-docs needs matplotlib: use make bench")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    console = Console(highlight=False)
    arguments.results.mkdir(parents=True, exist_ok=True)
    load = PYTHON if arguments.python_load else compile_dtlsload(arguments.results)
    if load is None:
        load = PYTHON
        print(
            "note: no dtlsload: apt-get install gcc libssl-dev; Python is the load", file=sys.stderr
        )
    cores = choose_cores(os.sched_getaffinity(0))
    if not cores.are_apart:
        print("note: one core for all: costs hold, rates and latencies do not", file=sys.stderr)
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    scale = QUICK if arguments.quick else FULL
    if arguments.duration:
        scale = replace(scale, duration=arguments.duration)
    names = list(dict.fromkeys([FLOOR, *(arguments.names or MEASUREMENTS)]))
    try:
        require("mosquitto")
        samples = measure(names, load, cores, scale, repeats)
    except (CoapgateError, LoadFailed, pytest.skip.Exception, pytest.fail.Exception) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    results = results_of(samples, describe(load, cores, repeats))
    write(results, arguments.results / "results.json")
    if chart.is_available():
        chart.draw(results, WHAT, arguments.results / "results.png")
    show(results, console)
    console.print(f"written to {arguments.results}")
    if arguments.write_docs:
        documents.write_figures(results, WHAT)
    if arguments.write_baseline:
        comparison.BASELINE.write_text(comparison.encode_baseline(results))
    is_good = arguments.quick or not comparison.BASELINE.exists() or judge(results, console)
    return 0 if is_good and not results.went_wrong() else 1


if __name__ == "__main__":
    sys.exit(main())
