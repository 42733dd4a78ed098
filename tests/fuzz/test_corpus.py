"""Every fuzz target, over its corpus and thousands of seeded variations of it.

What `make fuzz` looks for without end, `make test` looks for as far as a few seconds reach, and
without atheris.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.running import corpus_of
from tests.fuzz.script import Script

RUNS = 2000
OCTETS = (0x00, 0x01, 0x02, 0x7F, 0x80, 0xFE, 0xFF)
FUZZERS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))

each_fuzzer = pytest.mark.parametrize("fuzzer", FUZZERS)


def target_of(fuzzer: str) -> Callable[[bytes], None]:
    """A fuzz target that says with which input it failed."""
    target = importlib.import_module(f"tests.fuzz.{fuzzer}").test_one_input

    def run(data: bytes) -> None:
        try:
            target(data)
        except BaseException as error:
            error.add_note(f"{fuzzer}.test_one_input(bytes.fromhex({data.hex()!r}))")
            raise

    return run


def varied(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A seed after a few changes, or octets that never were one."""
    data = bytearray(chance.choice(seeds))
    if chance.random() < 0.2:
        data = bytearray(chance.choices(range(16), k=chance.randrange(100)))
    for _ in range(chance.randrange(1, 6)):
        at, other = chance.randrange(len(data) + 1), chance.choice(seeds)
        end = min(len(data), at + chance.randrange(1, 32))
        match chance.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(data):
                data[at] = chance.choice(OCTETS)
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 16))
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end]
            case 5:
                data[at:] = other[chance.randrange(len(other) + 1) :]
            case _:
                del data[at:]
    return bytes(data)


@each_fuzzer
def test_the_seeds_hold(fuzzer: str) -> None:
    run = target_of(fuzzer)

    run(b"")
    for path in corpus_of(fuzzer):
        run(path.read_bytes())


@each_fuzzer
def test_thousands_of_variations_of_the_seeds_hold(fuzzer: str) -> None:
    run = target_of(fuzzer)
    chance = random.Random(fuzzer)
    seeds = [path.read_bytes() for path in corpus_of(fuzzer)] or [bytes(64)]

    for _ in range(RUNS):
        run(varied(chance, seeds))


def test_every_corpus_belongs_to_a_fuzzer() -> None:
    folders = {folder.name for folder in (Path(__file__).parent / "corpus").iterdir()}

    assert {f"fuzz_{folder}" for folder in folders} <= set(FUZZERS)
    assert all(corpus_of(f"fuzz_{folder}") for folder in folders)


def test_a_script_is_read_front_to_back_and_is_empty_past_its_end() -> None:
    script = Script(bytes.fromhex("01 0203 0002aabb 0009cc"))

    assert (script.octet(), script.number(), script.octets()) == (1, 0x0203, b"\xaa\xbb")
    assert script.octets() == b"\xcc"
    assert script.at_end
    assert (script.octet(), script.number(), script.octets(), script.rest()) == (0, 0, b"", b"")


@pytest.mark.parametrize(
    ("script", "patched"),
    [
        ("00", b"0123"),
        ("02 0001 ff 0004 01", b"1\xce23"),
        ("04 0002", b"01"),
        ("08 0002 6162", b"0123ab"),
        ("0d 0000 30 0001 0001 61", b"\0a"),
    ],
    ids=["nothing", "two octets", "cut", "longer", "all at once"],
)
def test_a_script_patches_octets(script: str, patched: bytes) -> None:
    assert Script(bytes.fromhex(script)).patched(b"0123") == patched


def test_a_script_patches_nothing_in_no_octets() -> None:
    assert Script(bytes.fromhex("07 0001 ff 0001 ff 0001 ff 0003")).patched(b"") == b""
