"""Whether it has become worse: ratios to the floor, and KiB, beside those of a stored baseline.

Times of one machine say nothing on another; how many UDP echoes an operation costs says a lot, as
long as the load is the same. Memory is compared as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import FLOOR, GROWTH, KIBIBYTES, PAUSE, Figure, Results

BASELINE = Path(__file__).with_name("baseline.json")
TIME_TOLERANCE = 0.25
"""By how much a ratio may exceed the baseline's: shared machines vary by 15 % on a good day."""
MEMORY_TOLERANCE = 0.10
RECOVERY = "recovery"
RECOVERY_TOLERANCE = 1.0
"""It is the small difference of two long starts, and varies accordingly."""
LIMITS = {GROWTH: 10.0, PAUSE: 20.0}
"""How much more anything may cost among a hundred times as many associations, and how long the
garbage collector may hold up everybody; each the median of the repetitions."""


@dataclass(frozen=True, slots=True)
class Change:
    """A measurement beside the baseline; `tolerance` as a share of the baseline's value."""

    name: str
    what: str
    before: float
    now: float
    tolerance: float

    @property
    def share(self) -> float:
        """0.1: a tenth more than before."""
        return self.now / self.before - 1

    @property
    def is_worse(self) -> bool:
        return self.share > self.tolerance


def value_of(figure: Figure) -> float | None:
    """What of a figure is compared; None for the floor, which everything else is compared with."""
    if figure.name == FLOOR:
        return None
    if figure.unit == KIBIBYTES:
        return figure.cost.median
    assert figure.ratio is not None
    return figure.ratio.median


def encode_baseline(results: Results) -> str:
    """What a later run is compared with."""
    values = {figure.name: value_of(figure) for figure in results.figures}
    compared = {name: round(value, 2) for name, value in values.items() if value is not None}
    return json.dumps({"load": results.about["load"], "values": compared}, indent=2) + "\n"


def compare(results: Results, baseline: str) -> tuple[list[Change], list[str]]:
    """Every measurement that the baseline has too, and the names of those that it does not have.

    A baseline that was made by another load is none: then all names are returned.
    """
    document = json.loads(baseline)
    before = document["values"] if document["load"] == results.about["load"] else {}
    changes: list[Change] = []
    unknown: list[str] = []
    for figure in results.figures:
        now = value_of(figure)
        if now is None:
            continue
        if figure.name not in before:
            unknown.append(figure.name)
        else:
            what = "KiB" if figure.unit == KIBIBYTES else "x floor"
            changes.append(Change(figure.name, what, before[figure.name], now, _tolerance(figure)))
    return changes, unknown


def beyond_limits(results: Results) -> list[str]:
    """Which figures' notes are above their limits, a line for each."""
    return [
        f"{figure.name}: {name} {figure.notes[name]:.1f}, {limit:g} at most"
        for figure in results.figures
        for name, limit in LIMITS.items()
        if figure.notes.get(name, 0.0) > limit
    ]


def _tolerance(figure: Figure) -> float:
    if figure.unit == KIBIBYTES:
        return MEMORY_TOLERANCE
    return RECOVERY_TOLERANCE if figure.name == RECOVERY else TIME_TOLERANCE
