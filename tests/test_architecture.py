"""The layers are what ARCHITECTURE.md says they are."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "coapgate"

MODULES = sorted(PACKAGE.rglob("*.py"))

OUTSIDE = {"asyncio", "socket", "time", "select", "threading", "multiprocessing", "subprocess"}
"""What would let the core look at a clock, wait, or touch the network by itself."""


def contracts() -> list[dict[str, object]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, object]] = project["tool"]["importlinter"]["contracts"]
    return found


def core() -> list[Path]:
    """The files of the modules that take time and octets as arguments."""
    (contract,) = (each for each in contracts() if "takes time and bytes" in str(each["name"]))
    modules = contract["source_modules"]
    assert isinstance(modules, list)
    files = []
    for module in modules:
        place = PACKAGE.joinpath(*str(module).split(".")[1:])
        files += sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return files


def imports(file: Path) -> Iterator[str]:
    """Top-level names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield (node.module or "").split(".")[0]


def test_layers_import_downwards_only() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None

    linted = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_layers_are_those_of_the_architecture_page() -> None:
    (contract,) = (each for each in contracts() if each["name"] == "layers import downwards only")
    layers = contract["layers"]
    assert isinstance(layers, list)
    page = (ROOT / "ARCHITECTURE.md").read_text().partition("## Layers")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")][1:]

    assert [set(re.findall(r"`([a-z._]+)`", row)) for row in rows] == [
        set(layer.split(" | ")) for layer in layers
    ]


@pytest.mark.parametrize("file", core(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_core_touches_neither_clock_nor_network(file: Path) -> None:
    assert not set(imports(file)) & OUTSIDE


def test_only_coap_knows_aiocoap() -> None:
    knowing = {file for file in MODULES if "aiocoap" in imports(file)}

    assert all(PACKAGE / "coap" in file.parents for file in knowing)


def test_no_private_symbol_of_a_library_is_used() -> None:
    """An upgrade may take away what a library never promised."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("coapgate"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{file}: {private}"


def test_every_module_says_its_idea_in_its_first_line() -> None:
    for file in MODULES:
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        if file.name == "__init__.py" and not file.read_text().strip():
            continue
        assert docstring, file
        assert docstring.splitlines()[0].rstrip(".:"), file


def test_nothing_asks_for_later_work() -> None:
    for file in MODULES:
        text = file.read_text()
        for word in ("TODO", "FIXME", "XXX"):
            assert word not in text, f"{file}: {word}"
