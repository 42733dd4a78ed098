"""A process that changes an association file and is killed by SIGKILL in the midst of it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

import pytest

from coapgate.association_file import open_associations
from coapgate.dtls.store import AssociationStore
from coapgate.errors import StartError
from tests.dtls.store_book import Script, adopt, verify
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
