"""Each run of the gateway has an association file of its own: what goes on is copied into it.

A header names its file, so that whatever was copied from it is known to be a copy. A copy that is
written back into the same file would not be, if that file served the next run too.
"""

from __future__ import annotations

import os
from dataclasses import replace

from coapgate.association_file.header import HEADER_LENGTH, Header, which_file
from coapgate.association_file.mapping import STEP, Allocate
from coapgate.association_file.ownership import OwnedFile
from coapgate.dtls.store_format import SLOT_LENGTH

_PIECE = STEP * SLOT_LENGTH


def renew(file: OwnedFile, header: Header, slots: int, allocate: Allocate) -> None:
    """Put another file in the place of `file`, of so many slots, with those that `header` reserves.

    They have their place on the disk there; the rest has none in either file. After a kill or a
    crash at any instant there is the one file or the other, and each is whole.

    Raises StartError, OSError: then the one before is still there.
    """
    before = file.descriptor
    end = HEADER_LENGTH + header.reserved * SLOT_LENGTH
    with file.renewed() as descriptor:
        _write(descriptor, replace(header, file=which_file(descriptor)).encode(), 0)
        if header.reserved:
            allocate(descriptor, HEADER_LENGTH, end - HEADER_LENGTH)
        # Read and written: a copy that shares its place with another file until it is changed, as
        # some file systems make it, would have none of its own.
        for at in range(HEADER_LENGTH, end, _PIECE):
            _write(descriptor, os.pread(before, min(_PIECE, end - at), at), at)
        os.ftruncate(descriptor, HEADER_LENGTH + slots * SLOT_LENGTH)


def _write(descriptor: int, octets: bytes, at: int) -> None:
    """All of it."""
    written = 0
    while written < len(octets):
        written += os.pwrite(descriptor, octets[written:], at + written)
