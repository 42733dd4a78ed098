"""Results as a picture: what each operation costs, with the range of the repetitions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.bench.figures import MICROSECONDS, Results
from tests.bench.tables import shown

_WIDTH, _HEIGHT_OF_BAR = 8.0, 0.34
"""Inches."""
_COLOUR = "#3b6ea5"


def is_available() -> bool:
    """Whether charts can be drawn: matplotlib is in the optional dependencies `bench`."""
    try:
        import matplotlib  # noqa: F401 - only those who want a chart have it
    except ImportError:
        return False
    return True


def draw(results: Results, what: Mapping[str, str], file: Path) -> None:
    """Write a PNG: one bar for each figure in us, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [figure for figure in results.figures if figure.unit == MICROSECONDS][::-1]
    picture = Figure(figsize=(_WIDTH, 1.2 + _HEIGHT_OF_BAR * len(drawn)), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    middles = [max(figure.cost.median, 0.1) for figure in drawn]
    down = [
        max(middle - figure.cost.low, 0.0) for middle, figure in zip(middles, drawn, strict=True)
    ]
    up = [
        max(figure.cost.high - middle, 0.0) for middle, figure in zip(middles, drawn, strict=True)
    ]
    labels = [what.get(figure.name, figure.name) for figure in drawn]
    bars = axes.barh(
        labels, middles, xerr=[down, up], color=_COLOUR, error_kw={"lw": 0.8, "capsize": 2}
    )
    axes.bar_label(bars, [shown(middle) for middle in middles], padding=6, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(1, 5 * max(middles))
    axes.set_xlabel("microseconds of server CPU for each operation, and their range")
    axes.set_title(f"coapgate {results.about.get('commit', '')}".strip(), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(file, dpi=110)
