"""What was measured: single samples, and the figures that several of them make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

FLOOR = "floor"
"""The measurement that all costs in time are compared with."""
MICROSECONDS = "us"
KIBIBYTES = "KiB"

GROWTH = "growth_percent"
PAUSE = "longest_gc_pause_ms"
"""Notes that `comparison` has a limit for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, once. `cost` is of one operation: server CPU in us, or memory in KiB.

    `rate` counts operations a second, latencies are milliseconds, None where nobody waited. `wrong`
    holds what must not happen, by name, and `notes` what else is worth knowing.
    """

    cost: float
    rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    wrong: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several values, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError if there are none."""
        found = sorted(values)
        if not found:
            raise ValueError("nothing was measured")
        return cls(median(found), found[0], found[-1])


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement, repeated. `ratio`: cost by the floor of the same repetition, of KiB None."""

    name: str
    unit: str
    cost: Spread
    ratio: Spread | None
    rate: Spread | None
    p50_ms: Spread | None
    p99_ms: Spread | None
    wrong: Mapping[str, float]
    notes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run. `about` says on what machine, of which commit, by which load."""

    about: Mapping[str, str]
    figures: tuple[Figure, ...]

    def went_wrong(self) -> list[str]:
        """What makes a figure worthless, one line for each."""
        return [
            f"{figure.name}: {count:g} {what}"
            for figure in self.figures
            for what, count in figure.wrong.items()
        ]


def summarize(name: str, unit: str, samples: list[Sample], floors: list[float]) -> Figure:
    """Make one figure of a measurement's samples; `floors` are those of the same repetitions."""
    ratio = None
    if unit == MICROSECONDS:
        pairs = zip(samples, floors, strict=True)
        ratio = Spread.of(sample.cost / floor for sample, floor in pairs)
    return Figure(
        name,
        unit,
        Spread.of(sample.cost for sample in samples),
        ratio,
        _spread(sample.rate for sample in samples),
        _spread(sample.p50_ms for sample in samples),
        _spread(sample.p99_ms for sample in samples),
        _total(samples),
        {what: median(each.notes[what] for each in samples) for what in samples[0].notes},
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    return Spread.of(found) if found else None


def _total(samples: list[Sample]) -> dict[str, float]:
    total: dict[str, float] = {}
    for sample in samples:
        for what, count in sample.wrong.items():
            if count:
                total[what] = total.get(what, 0) + count
    return total


def write(results: Results, file: Path) -> None:
    """As JSON; `read` is the reverse."""
    document = {
        "about": dict(results.about),
        "figures": [_encode(figure) for figure in results.figures],
    }
    file.write_text(json.dumps(document, indent=2) + "\n")


def read(file: Path) -> Results:
    """What `write` wrote."""
    document = json.loads(file.read_text())
    return Results(document["about"], tuple(_decode(each) for each in document["figures"]))


_SPREADS = ("cost", "ratio", "rate", "p50_ms", "p99_ms")


def _encode(figure: Figure) -> dict[str, object]:
    encoded: dict[str, object] = {"name": figure.name, "unit": figure.unit}
    for name in _SPREADS:
        spread: Spread | None = getattr(figure, name)
        if spread is not None:
            values = (("median", spread.median), ("min", spread.low), ("max", spread.high))
            encoded[name] = {key: round(value, 3) for key, value in values}
    return encoded | {"wrong": dict(figure.wrong), "notes": dict(figure.notes)}


def _decode(encoded: dict[str, dict[str, float]]) -> Figure:
    def spread(name: str) -> Spread | None:
        found = encoded.get(name)
        return None if found is None else Spread(found["median"], found["min"], found["max"])

    cost = spread("cost")
    assert cost is not None
    return Figure(
        str(encoded["name"]),
        str(encoded["unit"]),
        cost,
        spread("ratio"),
        spread("rate"),
        spread("p50_ms"),
        spread("p99_ms"),
        encoded["wrong"],
        encoded["notes"],
    )
