"""What counts as worse than the baseline, and what cannot be compared."""

from __future__ import annotations

import json

import pytest

from tests.bench.catalogue import FIGURES
from tests.bench.comparison import BASELINE, beyond_limits, compare, encode_baseline
from tests.bench.figures import (
    FLOOR,
    GROWTH,
    KIBIBYTES,
    MICROSECONDS,
    PAUSE,
    Results,
    Sample,
    summarize,
)


def results(
    request: float, *, floor: float = 5.0, idle: float = 2.0, load: str = "dtlsload"
) -> Results:
    costs = {FLOOR: floor, "request-50": request, "idle": idle}
    return Results(
        {"load": load},
        tuple(
            summarize(name, KIBIBYTES if name == "idle" else MICROSECONDS, [Sample(cost)], [floor])
            for name, cost in costs.items()
        ),
    )


def worse(now: Results, baseline: Results) -> list[str]:
    changes, _ = compare(now, encode_baseline(baseline))
    return [change.name for change in changes if change.is_worse]


def test_a_slower_machine_is_no_change_for_the_worse() -> None:
    assert worse(results(60.0, floor=15.0), results(20.0, floor=5.0)) == []


def test_a_ratio_that_grew_beyond_the_tolerance_is_worse() -> None:
    assert worse(results(24.9), results(20.0)) == []
    assert worse(results(25.1), results(20.0)) == ["request-50"]
    assert worse(results(10.0), results(20.0)) == []


def test_recovery_may_vary_more_than_the_rest() -> None:
    def recovery(cost: float) -> Results:
        figure = summarize("recovery", MICROSECONDS, [Sample(cost)], [5.0])
        return Results({"load": "dtlsload"}, (figure,))

    assert worse(recovery(99.0), recovery(50.0)) == []
    assert worse(recovery(101.0), recovery(50.0)) == ["recovery"]


def test_memory_is_compared_as_it_is() -> None:
    assert worse(results(20.0, idle=2.19), results(20.0, idle=2.0)) == []
    assert worse(results(20.0, idle=2.21), results(20.0, idle=2.0)) == ["idle"]


def test_a_baseline_of_another_load_is_none() -> None:
    baseline = encode_baseline(results(1.0, load="devices.py"))

    changes, unknown = compare(results(20.0), baseline)

    assert changes == []
    assert unknown == ["request-50", "idle"]


def test_a_measurement_that_the_baseline_lacks_is_named() -> None:
    baseline = '{"load": "dtlsload", "values": {"idle": 2.0}}'

    changes, unknown = compare(results(20.0), baseline)

    assert [change.name for change in changes] == ["idle"]
    assert unknown == ["request-50"]


def test_the_stored_baseline_has_measurements_that_there_are() -> None:
    figures = tuple(
        summarize(name, line.unit, [Sample(1e-6)], [1.0]) for name, line in FIGURES.items()
    )

    changes, unknown = compare(Results({"load": "dtlsload"}, figures), BASELINE.read_text())

    compared = {change.name for change in changes}
    assert compared == json.loads(BASELINE.read_text())["values"].keys()
    assert compared | set(unknown) == FIGURES.keys() - {FLOOR}


@pytest.mark.parametrize(
    ("name", "kept", "broken"), [(GROWTH, 10.0, 10.1), (PAUSE, 20.0, 20.1)], ids=[GROWTH, PAUSE]
)
def test_what_is_above_a_limit_in_most_repetitions_is_said(
    name: str, kept: float, broken: float
) -> None:
    def beyond(*values: float) -> list[str]:
        samples = [Sample(20.0, notes={name: value}) for value in values]
        figure = summarize("request-50", MICROSECONDS, samples, [5.0] * len(samples))
        return beyond_limits(Results({}, (figure,)))

    assert beyond(-3.0, kept, 99.0) == []
    assert beyond(-3.0, broken, broken) == [f"request-50: {name} {broken}, {kept:g} at most"]
