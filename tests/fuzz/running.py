"""Runs a fuzz target under atheris, with libFuzzer's own arguments."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def corpus_of(fuzzer: str) -> list[Path]:
    """The seed inputs of a fuzz target, by the last name of its module: `fuzz_records`."""
    return sorted((CORPUS / fuzzer.removeprefix("fuzz_")).glob("*"))


def fuzz(target: Callable[[bytes], None], file: str) -> None:
    """Fuzz `target` of the program `file` until `-max_total_time` or a finding; never returns.

    It starts from the program's corpus in this folder unless a corpus is named: what libFuzzer
    finds goes there then, and nothing is ever written into this folder.
    """
    import atheris

    fuzzer, arguments = Path(file).stem, list(sys.argv)
    seeds = corpus_of(fuzzer)
    if seeds and all(argument.startswith("-") for argument in arguments[1:]):
        arguments.append("-seed_inputs=" + ",".join(map(str, seeds)))
    # The program that calls us has imported everything without instruments: import it again.
    for name in list(sys.modules):
        if name.partition(".")[0] in ("coapgate", "tests"):
            del sys.modules[name]
    with atheris.instrument_imports(include=["coapgate"]):
        instrumented = importlib.import_module(f"tests.fuzz.{fuzzer}")
    atheris.Setup(arguments, getattr(instrumented, target.__name__))
    atheris.Fuzz()
