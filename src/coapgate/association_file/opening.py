"""Opening the association file: what is in it goes on, is dropped, or is put aside."""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coapgate.association_file.header import (
    CLOSED,
    HEADER_LENGTH,
    SALT_LENGTH,
    Header,
    boot_value,
    parse_header,
    which_file,
)
from coapgate.association_file.mapping import STEP, Allocate, MappedFile
from coapgate.association_file.ownership import OwnedFile
from coapgate.association_file.paths import SocketPaths
from coapgate.association_file.renewal import renew
from coapgate.dtls.store import AssociationStore
from coapgate.dtls.store_format import SLOT_LENGTH, SLOT_WORDS, PathCodec
from coapgate.errors import StartError, StoreDamaged

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


class StoreKeys(Protocol):
    """Where a file's key comes from: the registry, which has a file of keys.

    Both raise KeyFileError or RegistryUnavailable.
    """

    def newest_key_id(self) -> bytes:
        """8 octets."""

    def derive_key(self, key_id: bytes, salt: bytes) -> bytes | None:
        """32 octets; None: that id is unknown."""


def read_boot_id(source: Path = BOOT_ID) -> str:
    """The kernel's name for the time since the machine was started.

    Where it is not told, another one each time: nothing outlives a kill then.
    """
    try:
        return source.read_text().strip()
    except OSError:
        return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """How the file is to be; `boot` is a `boot_value`, `wall` Unix seconds."""

    capacity: int
    keys: StoreKeys
    paths: PathCodec
    boot: int
    wall: float
    allocate: Allocate

    def fresh_header(self) -> Header:
        """Of a file with nothing in it."""
        return Header(self.keys.newest_key_id(), os.urandom(SALT_LENGTH), self.boot)


@contextmanager
def open_associations(
    path: Path,
    capacity: int,
    keys: StoreKeys,
    *,
    boot_id: str,
    wall: float,
    binds: Sequence[tuple[str, int]] | None = None,
    allocate: Allocate = os.posix_fallocate,
) -> Iterator[AssociationStore]:
    """Own the file while the context is open; the store has been checked, `recover` from it.

    It has at least `capacity` slots. What goes on does so in a new file under the same name. What
    cannot be trusted is set aside and a new file begun; what the machine may have lost is dropped.
    At the end everything is synced, and only then said to be closed in good order. `wall` is Unix
    seconds, `binds` as in `SocketPaths`.

    Raises StartError if another process owns the file or it cannot be written, and what `keys`
    raises.
    """
    wanted = _Wanted(capacity, keys, SocketPaths(binds), boot_value(boot_id), wall, allocate)
    file = OwnedFile(path)
    file.open()
    try:
        mapped = _open(file, wanted)
        try:
            yield mapped.store
        finally:
            mapped.close()
    finally:
        file.close()


def _open(file: OwnedFile, wanted: _Wanted) -> MappedFile:
    try:
        return _open_as_it_is(file, wanted)
    except StoreDamaged as error:
        file.set_aside(str(error))
    try:
        return _open_as_it_is(file, wanted)
    except StoreDamaged as error:
        raise StartError(
            f"association file {str(file.path)!r} {error}, although it is new",
            "this file system cannot keep it: set `dtls.association_store` to another place",
        ) from error


def _open_as_it_is(file: OwnedFile, wanted: _Wanted) -> MappedFile:
    """Raises StoreDamaged if what is there cannot be trusted."""
    file.check_access()
    try:
        header = _read_header(file, wanted.boot)
        try:
            return _go_on(file, header or wanted.fresh_header(), wanted)
        except OSError as error:
            # A full disk is no reason to serve nobody.
            if header is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _warn_of_dropped(file, header, f"there is no room to copy them: {error.strerror}")
            return _go_on(file, wanted.fresh_header(), wanted)
    except OSError as error:
        raise StartError(
            f"association file {str(file.path)!r} cannot be written: {error.strerror}",
            "make room for it, or set `dtls.association_store` to another place",
        ) from error


def _go_on(file: OwnedFile, header: Header, wanted: _Wanted) -> MappedFile:
    """In a new file, with the slots that `header` reserves. Raises StoreDamaged, OSError."""
    key = wanted.keys.derive_key(header.key_id, header.salt)
    if key is None:
        raise StoreDamaged(
            "is of another registry, or encrypted under a key that the key file does not hold"
        )
    slots = max(wanted.capacity, _slots(file.descriptor))
    renew(file, header, slots, wanted.allocate)
    memory = mmap.mmap(file.descriptor, HEADER_LENGTH + slots * SLOT_LENGTH)
    mapped = MappedFile(file, memory, key, header.reserved, wanted.allocate, wanted.paths)
    try:
        mapped.begin(wanted.boot, wanted.wall)
    except BaseException:
        mapped.release()
        raise
    return mapped


def _read_header(file: OwnedFile, boot: int) -> Header | None:
    """None: there is nothing in the file, or nothing that is known to be as it was written."""
    descriptor = file.descriptor
    size = os.fstat(descriptor).st_size
    if size == 0:
        return None
    header = parse_header(os.pread(descriptor, HEADER_LENGTH, 0))
    if header.file != which_file(descriptor):
        raise StoreDamaged("is a copy: what it holds may have been used since it was made")
    if header.boot not in (CLOSED, boot):
        _warn_of_dropped(file, header, "the machine went down while they were in use")
        return None
    if (size - HEADER_LENGTH) % SLOT_LENGTH or _slots(descriptor) < header.reserved:
        raise StoreDamaged("is damaged: it was cut short")
    return header


def _warn_of_dropped(file: OwnedFile, header: Header, reason: str) -> None:
    """If there are any."""
    if count := _count(file.descriptor, header.reserved):
        log.warning(
            "associations dropped",
            extra={
                "file": str(file.path),
                "count": count,
                "reason": reason,
                "hint": "their devices do a handshake again",
            },
        )


def _slots(descriptor: int) -> int:
    return (os.fstat(descriptor).st_size - HEADER_LENGTH) // SLOT_LENGTH


def _count(descriptor: int, reserved: int) -> int:
    """How many slots are in use, as far as one can tell."""
    count = 0
    for slot in range(0, reserved, STEP):
        octets = os.pread(descriptor, STEP * SLOT_LENGTH, HEADER_LENGTH + slot * SLOT_LENGTH)
        words = memoryview(octets[: len(octets) // SLOT_LENGTH * SLOT_LENGTH]).cast("Q")
        count += sum(1 for number in words[::SLOT_WORDS] if number)
    return count
