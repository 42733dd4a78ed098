"""Lock files name packages, versions and hashes, and nowhere to get them from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = (
    "requirements.lock",
    "requirements-test.lock",
    "requirements-peers.lock",
    "requirements-bench.lock",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

PIN = re.compile(r"([a-z0-9-]+)==([^ ;]+)( ; [^\\]+?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def pins(lock: str) -> dict[str, str]:
    """Package -> version; fails if the file holds anything else than pins with their hashes."""
    text = (ROOT / lock).read_text()
    assert PIN.sub("", text) == ""
    return {found[1]: found[2] for found in PIN.finditer(text)}


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9_.-]+", requirement) for requirement in requirements)
    return {re.sub("[-_.]+", "-", match[0]).lower() for match in found if match}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_with_hashes_and_nothing_else(lock: str) -> None:
    assert pins(lock)


def test_the_locks_hold_what_the_project_asks_for() -> None:
    extras = PROJECT["optional-dependencies"]

    assert names(PROJECT["dependencies"]) <= pins("requirements.lock").keys()
    assert names(extras["test"]) <= pins("requirements-test.lock").keys()
    assert names(extras["peers"]) <= pins("requirements-peers.lock").keys()


def test_what_the_project_is_built_with_is_locked_too() -> None:
    assert {"hatchling", "editables"} <= pins("requirements.lock").keys()
    assert {"cython", "setuptools"} <= pins("requirements-peers.lock").keys()


def test_tests_run_with_the_versions_that_users_get() -> None:
    assert pins("requirements.lock").items() <= pins("requirements-test.lock").items()
