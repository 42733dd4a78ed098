"""Show what everything costs now, beside what it may, and the functions it goes to."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.guard.budget import ASSOCIATIONS, BUDGETS, REMEMBERED_REQUEST, STEADY_REQUEST, UNITS
from tests.guard.costs import measure
from tests.guard.memory import by_associations, by_requests
from tests.guard.whole import whole


def show(folder: Path, console: Console) -> None:
    for number, (kind, budget) in enumerate(BUDGETS.items()):
        own = folder / str(number)
        own.mkdir()
        cost = measure(kind, own)
        table = Table("per operation", "counted", "allowed", "most of it", title=str(kind))
        for name, unit in UNITS.items():
            most = "\n".join(f"{n} {count:.4g}" for n, count in cost.where.get(name, {}).items())
            counted, allowed = getattr(cost, name), getattr(budget, name)
            table.add_row(unit.name, f"{counted:.6g}", f"{allowed:.6g}", most)
        console.print(table)
    show_memory(folder, console)


def show_memory(folder: Path, console: Console) -> None:
    table = Table("what stays", "octets", "allowed", "objects", title="memory")
    for name, warm, allowed in (
        ("request that is remembered", False, REMEMBERED_REQUEST),
        ("request", True, STEADY_REQUEST),
    ):
        own = folder / name
        own.mkdir()
        with whole(own) as gateway:
            left = by_requests(gateway, warm=warm)
        table.add_row(name, f"{left.octets:.4g}", f"{allowed:.4g}", f"{left.objects:.4g}")
    for (method, cid), (allowed, _) in ASSOCIATIONS.items():
        name = f"idle {method.value} association {'with' if cid else 'without'} Connection ID"
        own = folder / name
        own.mkdir()
        with whole(own) as gateway:
            left = by_associations(gateway, method, cid=cid)
        table.add_row(name, f"{left.octets:.4g}", f"{allowed:.4g}", f"{left.objects:.4g}")
    console.print(table)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="coapgate-guard-") as temporary:
        show(Path(temporary), Console(width=None if sys.stdout.isatty() else 120))
