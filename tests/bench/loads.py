"""Where load comes from: a command that takes dtlsload's options and prints one line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import on_core

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("dtlsload.c")

Report = dict[str, float]
"""The numbers of that line, by name."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load generator. They are not alike in speed, so their figures are not compared."""

    name: str
    command: tuple[str, ...]


PYTHON = Load("devices.py", (sys.executable, "-m", "tests.bench.devices"))


def environment() -> dict[str, str]:
    """Of programs that are modules of the tests: they are found, wherever this was started."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


class LoadFailed(Exception):
    """The load generator ended without a result; `str` is what it said last."""


def compile_dtlsload(folder: Path) -> Load | None:
    """The fast one, compiled unless that was done before; None where it cannot be."""
    program = folder / "dtlsload"
    if not (program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime):
        gcc = shutil.which("gcc")
        if gcc is None:
            return None
        options = ["-O2", "-w", "-DUSE_OPENSSL", "-o", str(program), str(SOURCE)]
        done = subprocess.run(
            [gcc, *options, "-lssl", "-lcrypto"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return None
    return Load("dtlsload", (str(program),))


async def run_load(load: Load, core: int, *options: object) -> Report:
    """Let it run to its end on that core. Raises LoadFailed."""
    with on_core(core):
        process = await asyncio.create_subprocess_exec(
            *load.command,
            *map(str, options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
    try:
        output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return parse_report(load, output, errors)


def parse_report(load: Load, output: bytes, errors: bytes = b"") -> Report:
    """The last line of what it printed. Raises LoadFailed."""
    lines = output.splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        said = (errors or output).decode(errors="replace").strip().splitlines()
        raise LoadFailed(f"{load.name}: {said[-1] if said else 'no result'}") from error
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}
