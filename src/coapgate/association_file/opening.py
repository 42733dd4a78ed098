"""Opening the association file: what is in it goes on, is dropped, or is put aside."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from coapgate.association_file.mapping import STEP, Allocate, MappedFile, map_file
from coapgate.association_file.ownership import OwnedFile
from coapgate.dtls.store import AssociationStore
from coapgate.dtls.store_format import SLOT_LENGTH, SLOT_WORDS
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


@contextmanager
def open_associations(
    path: Path,
    capacity: int,
    keys: StoreKeys,
    *,
    boot_id: str,
    wall: float,
    allocate: Allocate = os.posix_fallocate,
) -> Iterator[AssociationStore]:
    """Own the file while the context is open; the store has been checked, `recover` from it.

    It has at least `capacity` slots. What cannot be trusted is set aside and a new file begun; what
    the machine may have lost is dropped. At the end everything is synced, and only then said to be
    closed in good order. `wall` is Unix seconds.

    Raises StartError if another process owns the file or it cannot be written, and what `keys`
    raises.
    """
    file = OwnedFile(path)
    file.open()
    try:
        mapped = _open(file, capacity, keys, boot_value(boot_id), wall, allocate)
        try:
            yield mapped.store
        finally:
            mapped.close()
    finally:
        file.close()


def _open(
    file: OwnedFile, capacity: int, keys: StoreKeys, boot: int, wall: float, allocate: Allocate
) -> MappedFile:
    try:
        return _open_as_it_is(file, capacity, keys, boot, wall, allocate)
    except StoreDamaged as error:
        file.set_aside(str(error))
    try:
        return _open_as_it_is(file, capacity, keys, boot, wall, allocate)
    except StoreDamaged as error:
        raise StartError(
            f"association file {str(file.path)!r} {error}, although it is new",
            "this file system cannot keep it: set `dtls.association_store` to another place",
        ) from error


def _open_as_it_is(
    file: OwnedFile, capacity: int, keys: StoreKeys, boot: int, wall: float, allocate: Allocate
) -> MappedFile:
    """Raises StoreDamaged if what is there cannot be trusted."""
    file.check_access()
    try:
        header = _read_header(file, boot)
        if header is None:
            header = _write_header(file.descriptor, keys.newest_key_id(), boot)
        key = keys.derive_key(header.key_id, header.salt)
        if key is None:
            raise StoreDamaged(
                f"is encrypted under key {header.key_id.hex()}, "
                "which the key file of the registry does not hold"
            )
        memory = map_file(file.descriptor, max(capacity, _slots(file.descriptor)))
        mapped = MappedFile(file, memory, key, header.reserved, allocate)
        try:
            mapped.begin(boot, wall)
        except BaseException:
            mapped.release()
            raise
    except OSError as error:
        raise StartError(
            f"association file {str(file.path)!r} cannot be written: {error.strerror}",
            "make room for it, or set `dtls.association_store` to another place",
        ) from error
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
        if count := _count(descriptor, header.reserved):
            log.warning(
                "associations dropped",
                extra={
                    "file": str(file.path),
                    "count": count,
                    "reason": "the machine went down while they were in use",
                    "hint": "their devices do a handshake again",
                },
            )
        os.ftruncate(descriptor, 0)
        return None
    if (size - HEADER_LENGTH) % SLOT_LENGTH or _slots(descriptor) < header.reserved:
        raise StoreDamaged("is damaged: it was cut short")
    return header


def _write_header(descriptor: int, key_id: bytes, boot: int) -> Header:
    """In an empty file, and on the disk: half of it would be taken for damage."""
    header = Header(key_id, os.urandom(SALT_LENGTH), which_file(descriptor), boot)
    os.fchmod(descriptor, 0o600)  # a umask may have taken more than it should
    if os.pwrite(descriptor, header.encode(), 0) != HEADER_LENGTH:
        os.ftruncate(descriptor, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)
    return header


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
