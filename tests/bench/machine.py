"""What was measured, and on what: the commit, the processor, the programs."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
import time
from pathlib import Path

from tests.bench.loads import ROOT, Load
from tests.bench.processes import Cores


def describe(load: Load, cores: Cores, repeats: int) -> dict[str, str]:
    """The machine, the commit, and how it was measured."""
    return {
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "load": load.name,
        "cores": "a core of its own" if cores.are_apart else "the same core",
        "repeats": str(repeats),
    }


def commit() -> str:
    """The commit that is checked out, with + if files differ from it; empty outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
