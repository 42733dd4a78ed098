"""A process that changes an association file and is killed by SIGKILL in the midst of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import coapgate.association_file
from coapgate.association_file import open_associations
from coapgate.dtls.store import AssociationStore
from coapgate.errors import StartError
from tests.dtls.store_book import PATHS, Script, adopt, established, verify
from tests.store_hammer import BATCH, BOOT_ID, CAPACITY, draws
from tests.store_keys import Keys

ROOT = Path(__file__).parents[1]


class Hammer:
    """A process that changes the file. Mutable: `count`, the operations that it had done."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "associations.store"
        self._progress = folder / "progress"
        self.opened = 0
        self.wall = 1_800_000_000
        self.count = 0

    @contextmanager
    def running(self, seed: int, batches: int) -> Iterator[None]:
        """It has done so many batches; at the end it is killed, wherever it is."""
        self._progress.write_bytes(bytes(8))
        arguments = (self.file, self._progress, seed, self.opened, self.wall)
        command = [sys.executable, "-m", "tests.store_hammer", *map(str, arguments)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            dots = process.stdout.read(batches)
            yield
            process.kill()
        assert dots == b"." * batches, "it ended by itself"
        self.count = int.from_bytes(self._progress.read_bytes(), sys.byteorder)

    def opened_again(self) -> AbstractContextManager[AssociationStore]:
        """By the process that comes after it."""
        return open_associations(self.file, CAPACITY, Keys(), boot_id=BOOT_ID, wall=self.wall)


@pytest.fixture
def hammer(tmp_path: Path) -> Hammer:
    return Hammer(tmp_path)


def test_a_process_that_is_killed_at_any_instant_leaves_a_store_that_goes_on_safely(
    hammer: Hammer,
) -> None:
    chance = random.Random(20261122)
    book, _ = adopt(())
    for seed in range(12):
        with hammer.running(seed, batches=chance.randint(1, 40)):
            pass
        assert hammer.count >= BATCH
        script = Script(book, CAPACITY, hammer.opened, hammer.wall)
        operations = script.operations(draws(seed))
        # Each is in the script's book once the next is asked for.
        done_and_cut_short = islice(operations, hammer.count + 1)
        (cut_short,) = deque(done_and_cut_short, maxlen=1)
        hammer.opened, hammer.wall = script.opened, script.wall

        with hammer.opened_again() as store:
            recovered = list(store.recover())

        verify(script.book, cut_short, recovered)
        book, _ = adopt(recovered)


def test_a_process_owns_the_file_until_it_is_killed(hammer: Hammer) -> None:
    with (
        hammer.running(1, batches=1),
        pytest.raises(StartError, match="used by another gateway"),
        hammer.opened_again(),
    ):
        pass

    with hammer.opened_again() as store:
        assert store.count > 0


# --- killed while it opens the file


def open_and_die(file: Path, lines: int) -> None:
    """Be killed before that line of `association_file`; end well if there are fewer."""
    folder = str(Path(coapgate.association_file.__file__).parent)
    left = lines

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event == "call" and not frame.f_code.co_filename.startswith(folder):
            return None
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    with open_associations(file, CAPACITY, Keys(), boot_id=BOOT_ID, wall=0):
        os._exit(0)


def open_and_die_everywhere(file: Path) -> None:
    """Be killed at each line in turn; after each, what was there goes on. Ends when none is left.

    As a process of its own: it forks.
    """
    lines = 0
    is_killed = True
    while is_killed:
        lines += 1
        if not (child := os.fork()):
            open_and_die(file, lines)
        _, status = os.waitpid(child, 0)
        is_killed = os.WIFSIGNALED(status)
        with open_associations(file, CAPACITY, Keys(), boot_id=BOOT_ID, wall=0) as store:
            (recovered,) = store.recover()
            assert recovered.established == established(1), lines
        assert [each.name for each in file.parent.iterdir()] == [file.name], lines
    print(lines)


def test_a_process_that_is_killed_anywhere_as_it_opens_the_file_loses_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "associations.store"
    with open_associations(file, CAPACITY, Keys(), boot_id=BOOT_ID, wall=0) as store:
        store.add(established(1), PATHS[0], 0)
    script = (
        "import sys, pathlib; from tests.test_association_file_killed import *;"
        "open_and_die_everywhere(pathlib.Path(sys.argv[1]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, file], cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert int(done.stdout) > 100
    assert not done.stderr, "nothing was set aside"
