"""Where results stand in docs/performance.md: between two marks, and in a picture beside it."""

from __future__ import annotations

from collections.abc import Mapping

from tests.bench import chart, tables
from tests.bench.figures import Results
from tests.bench.loads import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "performance.png"


def write_figures(results: Results, what: Mapping[str, str]) -> None:
    """Put table and chart into the document; `what` describes each figure by its name."""
    about = results.about
    where = (
        f"Commit {about['commit']}, {about['at']}: {about['machine']}, {about['python']}; "
        f"load by {about['load']} on {about['cores']}; {about['repeats']} repetitions.\n\n"
    )
    write_block("figures", where + tables.markdown(tables.HEADINGS, tables.rows(results, what)))
    chart.draw(results, what, CHART)


def write_block(name: str, block: str) -> None:
    """Put a block into the document, in the place of that name."""
    DOCUMENT.write_text(place(DOCUMENT.read_text(), name, block))


def place(document: str, name: str, block: str) -> str:
    """Put `block` between the marks `<!-- name -->` and `<!-- end of name -->`.

    Raises ValueError if the document does not have each of them once, in that order.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = document.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended) or begin in after or end in before + after:
        raise ValueError(f"the document has no place between {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{block.strip()}\n\n{end}{after}"
