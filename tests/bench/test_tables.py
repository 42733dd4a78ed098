"""Tables, and where in a document they go."""

from __future__ import annotations

import pytest

from tests.bench.documents import DOCUMENT as PERFORMANCE
from tests.bench.documents import place
from tests.bench.figures import MICROSECONDS, Results, Sample, summarize
from tests.bench.tables import HEADINGS, markdown, rows, shown

DOCUMENT = "before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n"


def test_a_figure_is_one_row_and_what_is_unknown_a_dash() -> None:
    sample = Sample(21.0, 26_897.0, 1.414, None)
    results = Results({}, (summarize("request-50", MICROSECONDS, [sample], [5.0]),))

    assert rows(results, {"request-50": "request, 50 devices"}) == [
        ("request, 50 devices", "21.0 us", "21.0 to 21.0", "4.2", "26,897", "1.41", "-")
    ]


def test_every_row_has_a_cell_for_each_heading() -> None:
    table = markdown(HEADINGS, [("x",) * len(HEADINGS)])

    assert {line.count("|") for line in table.splitlines()} == {len(HEADINGS) + 1}


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.50"), (9.994, "9.99"), (31.46, "31.5"), (1291.4, "1,291")]
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_block_takes_the_place_of_the_one_before() -> None:
    placed = place(DOCUMENT, "figures", "new\n")

    assert placed == "before\n<!-- figures -->\n\nnew\n\n<!-- end of figures -->\nafter\n"
    assert place(placed, "figures", "new") == placed


@pytest.mark.parametrize("document", ["", DOCUMENT.replace("end of", "begin"), DOCUMENT * 2])
def test_a_document_without_one_place_is_left_alone(document: str) -> None:
    with pytest.raises(ValueError, match="no place between"):
        place(document, "figures", "new")


@pytest.mark.parametrize("name", ["figures", "peers"])
def test_the_document_has_a_place_for_each_table(name: str) -> None:
    document = PERFORMANCE.read_text()

    assert "new" in place(document, name, "new")
