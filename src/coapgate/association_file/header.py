"""The first page of an association file: whose it is, and whether it can be believed.

    offset  octets
         0       8  "coapgate"
         8       4  version of the file's format: 2
        12       4  octets of a slot
        16       8  id of the registry's key that the file's key is derived from
        24      32  salt of that
        56      16  which file this is: a copy is another one, and so is that of the next run
        72       -  zero
      4076       4  CRC-32 of all before it
      4080       8  word: under which boot of the machine the file is open; 0: it was closed
      4088       8  word: slots that have their place on the disk

The two words change while the file is in use, each by one store of the machine; the rest never
does. All is in the order of octets of the machine, as the slots behind it are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from coapgate.dtls.store_format import MAX_VALUE, SLOT_LENGTH, WORD_LENGTH, value_of, word
from coapgate.errors import StoreDamaged

HEADER_LENGTH = 4096
VERSION = 2
KEY_ID_LENGTH = 8
SALT_LENGTH = 32

BOOT, RESERVED = 4080 // WORD_LENGTH, 4088 // WORD_LENGTH
"""The words, by their place in the file."""

CLOSED = 0
"""The boot of a file that was closed in good order."""

_MAGIC = b"coapgate"
_FIXED = struct.Struct(f"=8sII{KEY_ID_LENGTH}s{SALT_LENGTH}s16s")
_CHECKED = struct.Struct("=4076sI")
_WORDS = struct.Struct("=QQ")
_FILE = struct.Struct("=Q8s")
_FS_IOC_GETVERSION = 0x80087601  # linux/fs.h; the generation of an inode, told by most file systems


@dataclass(frozen=True, slots=True)
class Header:
    """What the page says. `boot` is a `boot_value` or CLOSED, `file` what `which_file` told."""

    key_id: bytes
    salt: bytes
    boot: int
    reserved: int = 0
    file: bytes = bytes(16)

    def encode(self) -> bytes:
        """The page."""
        fixed = _FIXED.pack(_MAGIC, VERSION, SLOT_LENGTH, self.key_id, self.salt, self.file)
        fixed = fixed.ljust(HEADER_LENGTH - _WORDS.size - 4, b"\0")
        words = _WORDS.pack(word(self.boot), word(self.reserved))
        return _CHECKED.pack(fixed, zlib.crc32(fixed)) + words


def parse_header(page: bytes) -> Header:
    """Raises StoreDamaged if it is not one of ours, of this version, whole."""
    if len(page) < HEADER_LENGTH or not page.startswith(_MAGIC):
        raise StoreDamaged("is no association file, or was cut short")
    _, version, slot_length, key_id, salt, file = _FIXED.unpack_from(page)
    if (version, slot_length) != (VERSION, SLOT_LENGTH):
        raise StoreDamaged(f"has format version {version}, not {VERSION}")
    fixed, checksum = _CHECKED.unpack_from(page)
    if checksum != zlib.crc32(fixed):
        raise StoreDamaged("is damaged: its header does not check")
    try:
        boot, reserved = map(value_of, _WORDS.unpack_from(page, _CHECKED.size))
    except StoreDamaged as error:
        raise StoreDamaged("is damaged: its header does not check") from error
    return Header(key_id, salt, boot, reserved, file)


def boot_value(boot_id: str) -> int:
    """One boot of the machine as a word's value; never CLOSED."""
    digest = hashlib.sha256(boot_id.encode()).digest()
    return int.from_bytes(digest[:6], "big") % MAX_VALUE + 1


def which_file(descriptor: int) -> bytes:
    """What a file keeps when it is moved, and a copy does not have: 16 octets.

    The inode's number alone is soon given to another file; its generation is not.
    """
    generation = bytearray(8)
    with suppress(OSError):  # a file system that does not tell
        fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, generation)
    return _FILE.pack(os.fstat(descriptor).st_ino, bytes(generation))
