"""What a command prints, and where.

- Results go to standard output, everything else to standard error.
- An error is one line `error: ...`; what to do about it, and what is worth knowing after a
  success, is a line `hint: ...`. No capital at the beginning, no full stop at the end.
- A table is for people: no rules and no colours in a pipe, as wide as its longest line.
  `--json` is for programs: one JSON document, every time in RFC 3339.
- Text that came from elsewhere is shown so that it cannot steer the terminal.
- A key is printed only by the command that made it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from coapgate.errors import CoapgateError

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]

_PIPE_WIDTH = 10_000  # columns; nothing is wrapped or cut where nobody looks


def say(text: str) -> None:
    """One line of result."""
    print(printable(text))


def hint(text: str) -> None:
    """One line of advice."""
    print(f"hint: {printable(text)}", file=sys.stderr)


def error(message: str, advice: str = "") -> None:
    """One line of what went wrong, and one of advice if there is any."""
    print(f"error: {printable(message)}", file=sys.stderr)
    if advice:
        hint(advice)


def explain(failure: CoapgateError) -> None:
    """An error of ours with its hint."""
    error(str(failure), failure.hint)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows below upper-case column names; no columns at all for a list of facts."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, show_header=bool(columns))
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    in_terminal = sys.stdout.isatty()
    console = Console(width=None if in_terminal else _PIPE_WIDTH)
    with console.capture() as capture:
        console.print(shown)
    for line in capture.get().splitlines():
        print(line.rstrip())


def document(value: Mapping[str, Value]) -> None:
    """One JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def documents(values: Iterable[Mapping[str, Value]]) -> None:
    """A JSON array, an object a line: it can be read as a stream, however long it is."""
    separator = "["
    for value in values:
        print(separator, json.dumps(value, ensure_ascii=False), sep="\n", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


def time(at: float) -> str:
    """Unix seconds as RFC 3339, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def optional_time(at: float | None) -> str | None:
    return None if at is None else time(at)


def validity(not_before: float | None, not_after: float | None) -> str:
    """When something is good, in as few words as possible."""
    if not_before is None and not_after is None:
        return "always"
    start = "" if not_before is None else f"from {time(not_before)}"
    end = "" if not_after is None else f"until {time(not_after)}"
    return " ".join(part for part in (start, end) if part)


def printable(text: str) -> str:
    """With every character that does not print escaped, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
