"""Figures: medians, ranges, and ratios to the floor of the same repetition."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.figures import KIBIBYTES, MICROSECONDS, Results, Sample, Spread, summarize
from tests.bench.figures import read as read_results
from tests.bench.figures import write as write_results


def test_a_spread_is_the_middle_and_the_ends() -> None:
    assert Spread.of([30.0, 10.0, 20.0]) == Spread(20.0, 10.0, 30.0)
    assert Spread.of([10.0, 20.0]) == Spread(15.0, 10.0, 20.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_a_ratio_is_taken_within_each_repetition() -> None:
    # In the second repetition the whole machine was twice as slow.
    samples = [Sample(20.0), Sample(40.0), Sample(21.0)]

    figure = summarize("request-50", MICROSECONDS, samples, [5.0, 10.0, 5.0])

    assert figure.cost == Spread(21.0, 20.0, 40.0)
    assert figure.ratio == Spread(4.0, 4.0, 4.2)


def test_memory_has_no_ratio() -> None:
    figure = summarize("idle", KIBIBYTES, [Sample(2.5)], [5.0])

    assert figure.ratio is None


def test_what_went_wrong_in_any_repetition_is_counted() -> None:
    samples = [
        Sample(20.0, wrong={"unanswered": 1, "wrong answers": 0}),
        Sample(20.0, wrong={"unanswered": 2, "wrong answers": 0}),
    ]

    figure = summarize("request-50", MICROSECONDS, samples, [5.0, 5.0])

    assert figure.wrong == {"unanswered": 3}
    assert Results({}, (figure,)).went_wrong() == ["request-50: 3 unanswered"]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    full = Sample(20.5, 1000.0, 1.25, 2.5, {"unanswered": 1}, {"handshakes": 0})
    results = Results(
        {"load": "dtlsload"},
        (
            summarize("request-50", MICROSECONDS, [full], [5.0]),
            summarize("idle", KIBIBYTES, [Sample(2.5)], [5.0]),
        ),
    )

    write_results(results, tmp_path / "results.json")

    assert read_results(tmp_path / "results.json") == results
