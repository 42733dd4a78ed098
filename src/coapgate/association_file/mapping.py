"""The association file in memory, and what has its place on the disk of it."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable

from coapgate.association_file.header import BOOT, CLOSED, HEADER_LENGTH, RESERVED
from coapgate.association_file.ownership import OwnedFile
from coapgate.dtls.store import AssociationStore
from coapgate.dtls.store_format import SLOT_LENGTH, PathCodec, word
from coapgate.errors import StoreDamaged

STEP = 4096
"""Slots that get their place on the disk at a time: 2 MiB."""

log = logging.getLogger(__name__)

Allocate = Callable[[int, int, int], None]
"""As `os.posix_fallocate`: of a descriptor, from an offset, so many octets."""


class MappedFile:
    """The file in memory. It is as long as its capacity from the start, but takes its place on the
    disk step by step: a slot is touched only then, for a write that finds the disk full kills."""

    def __init__(
        self,
        file: OwnedFile,
        mapped: mmap.mmap,
        key: bytes,
        reserved: int,
        allocate: Allocate,
        paths: PathCodec,
    ) -> None:
        """`reserved` slots have their place on the disk already."""
        self._file = file
        self._map = mapped
        self._allocate = allocate
        self._reserved = reserved
        self._is_short = False
        whole = memoryview(mapped)
        slots = whole[HEADER_LENGTH:]
        self._words, slot_words = whole.cast("Q"), slots.cast("Q")
        self._views = (slot_words, slots, self._words, whole)
        self.store = AssociationStore(slots, slot_words, key, paths, self._reserve)

    def begin(self, boot: int, wall: float) -> None:
        """Mark the file as open, on the disk too, and look at what is in it.

        Raises StoreDamaged.
        """
        self._words[BOOT] = word(boot)
        # Always: a process that was killed just here may have left it in the page cache only, and
        # what is on the disk would be believed after a crash of the machine.
        self._map.flush(0, HEADER_LENGTH)
        self.store.begin(wall)
        try:
            self.store.check()
        except StoreDamaged as error:
            raise StoreDamaged(f"is damaged: {error}") from error

    def close(self) -> None:
        """Sync everything, and only then mark the file as closed in good order."""
        try:
            self._map.flush()
            self._words[BOOT] = word(CLOSED)
            self._map.flush(0, HEADER_LENGTH)
        except OSError as error:
            log.warning(
                "association file not synced",
                extra={
                    "file": str(self._file.path),
                    "reason": error.strerror,
                    "hint": "when the machine is started anew its devices do a handshake again",
                },
            )
        finally:
            self.release()

    def release(self) -> None:
        for view in self._views:
            view.release()
        self._map.close()

    def _reserve(self, count: int) -> int:
        """For the store: give the first `count` slots their place, if there is any."""
        if count > self._reserved:
            wanted = min(-(-count // STEP) * STEP, self.store.capacity)
            begin = HEADER_LENGTH + self._reserved * SLOT_LENGTH
            length = (wanted - self._reserved) * SLOT_LENGTH
            try:
                self._allocate(self._file.descriptor, begin, length)
            except OSError as error:
                self._warn_that_it_is_short(error)
            else:
                self._reserved = wanted
                self._words[RESERVED] = word(wanted)
                self._is_short = False
        return self._reserved

    def _warn_that_it_is_short(self, error: OSError) -> None:
        """Once, until there was room again."""
        if not self._is_short:
            self._is_short = True
            log.warning(
                "association file cannot grow",
                extra={
                    "file": str(self._file.path),
                    "reason": error.strerror,
                    "slots": self._reserved,
                    "hint": "make room: what does not fit in does not outlive a restart",
                },
            )
