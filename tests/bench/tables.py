"""Results as tables: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from tests.bench.comparison import Change
from tests.bench.figures import Figure, Results, Spread

HEADINGS = ("what", "cost", "min to max", "x floor", "a second", "p50 ms", "p99 ms")
_NONE = "-"


def rows(results: Results, what: Mapping[str, str]) -> list[tuple[str, ...]]:
    """A line for each figure, under HEADINGS; by what `what` says of it, or by its name."""
    return [
        (
            what.get(figure.name, figure.name),
            f"{shown(figure.cost.median)} {figure.unit}",
            f"{shown(figure.cost.low)} to {shown(figure.cost.high)}",
            _NONE if figure.ratio is None else f"{figure.ratio.median:.1f}",
            _median(figure.rate),
            _median(figure.p50_ms),
            _median(figure.p99_ms),
        )
        for figure in results.figures
    ]


def table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """For a terminal."""
    made = Table(title=title, title_justify="left")
    for heading in headings:
        is_name = heading == headings[0]
        made.add_column(
            heading, justify="left" if is_name else "right", no_wrap=is_name, overflow="fold"
        )
    for line in lines:
        made.add_row(*line)
    return made


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For a document."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *lines))


def changes_table(changes: Sequence[Change]) -> Table:
    """What got worse, by how much, and how much would have been tolerated."""
    lines = [
        (
            change.name,
            f"{change.before:.2f} {change.what}",
            f"{change.now:.2f} {change.what}",
            f"{change.share:+.0%}",
            f"{change.tolerance:+.0%}",
        )
        for change in changes
    ]
    return table("worse than the baseline", ("what", "before", "now", "change", "tolerated"), lines)


def notes(figure: Figure) -> str:
    """What else is known of a figure, in one line."""
    return ", ".join(f"{name} {value:g}" for name, value in figure.notes.items())


def shown(value: float) -> str:
    """Three digits, and thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _median(spread: Spread | None) -> str:
    return _NONE if spread is None else shown(spread.median)
