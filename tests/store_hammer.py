"""A process that does nothing but change an association file, until it is killed.

    python -m tests.store_hammer FILE PROGRESS SEED OPENED WALL

PROGRESS is a file of 8 octets: how many operations are done. A dot is written to standard output
for each batch of them.
"""

from __future__ import annotations

import mmap
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from coapgate.association_file import open_associations
from tests.dtls.store_book import KINDS, Draw, Script, adopt, perform
from tests.store_keys import Keys

CAPACITY = 16
BATCH = 256
BOOT_ID = "the boot of the tests"


def draws(seed: int) -> Iterator[Draw]:
    """The same for the same seed, without end."""
    chance = random.Random(seed)
    while True:
        bits = 48 if chance.random() < 0.01 else 8
        yield Draw(chance.choice(KINDS), chance.randrange(2 * CAPACITY), chance.getrandbits(bits))


def main(file: Path, progress: Path, seed: int, opened: int, wall: int) -> None:
    with (
        open_associations(file, CAPACITY, Keys(), boot_id=BOOT_ID, wall=wall) as store,
        progress.open("r+b") as counted,
        mmap.mmap(counted.fileno(), 8) as memory,
        memoryview(memory).cast("Q") as done,
    ):
        book, slots = adopt(store.recover())
        operations = Script(book, CAPACITY, opened, wall).operations(draws(seed))
        count = 0
        while True:
            # Drawn beforehand, so that a kill mostly strikes in the store.
            for operation in tuple(islice(operations, BATCH)):
                perform(store, slots, operation)
                count += 1
                done[0] = count
            sys.stdout.write(".")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
