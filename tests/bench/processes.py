"""What a process costs, as the kernel counts it, and which cores it may run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all threads that it has now (proc(5))."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except OSError:  # a kernel without schedstats counts hundredths of a second only
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_kib(pid: int) -> int:
    """KiB of memory that a process occupies."""
    return _status(pid, "VmRSS")


@dataclass(frozen=True, slots=True)
class Resident:
    """KiB of memory that a process occupies: its own, and pages of files that it has mapped."""

    anonymous: int
    of_files: int

    @property
    def total(self) -> int:
        return self.anonymous + self.of_files


def resident(pid: int) -> Resident:
    """Whose a process's memory is; a file of a file system in memory is a file too."""
    of_files = _status(pid, "RssFile") + _status(pid, "RssShmem")
    return Resident(_status(pid, "RssAnon"), of_files)


def peak_resident_kib(pid: int) -> int:
    """KiB of memory that a process has occupied at most."""
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0  # it has ended


@dataclass(frozen=True, slots=True)
class Cores:
    """Where each part runs; with one core all of them share it, and `are_apart` is false."""

    server: int
    load: int
    broker: int

    @property
    def are_apart(self) -> bool:
        return self.server != self.load


def choose_cores(available: set[int]) -> Cores:
    """One core for the server alone; the broker gets its own if there are three."""
    server, *others = sorted(available)
    if not others:
        return Cores(server, server, server)
    return Cores(server, others[0], others[-1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile stays on that core, with all the threads it will have."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
