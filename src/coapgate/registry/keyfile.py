"""The file with the keys to a registry's secrets: created once, readable by its owner alone.

Text, one key a line, newest last: the version 1, then the key in base64. Its backup belongs
elsewhere than the registry's: together they are worth what plain keys are.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from coapgate.errors import KeyFileError
from coapgate.registry.wrapping import KEY_LENGTH, WrappingKey

MAX_FILE_SIZE = 65536

_HEADER = (
    "# coapgate registry key file. Without it the keys in the registry cannot be read.\n"
    "# Keep a copy, apart from the copies of the registry.\n"
)
_VERSION = "1"


def load_key_file(path: Path) -> tuple[WrappingKey, ...]:
    """Read the keys, newest last.

    Raises KeyFileError if it is missing or unreadable, no regular file, of another owner, open
    to group or others, or damaged.
    """
    try:
        # Non-blocking, so that a named pipe in its place holds nobody up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileError(
            f"key file {str(path)!r} is missing",
            "the keys in the registry were encrypted with it: restore it from its backup",
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"key file {str(path)!r} cannot be read: {error.strerror}",
            "run as the user that owns it",
        ) from error
    try:
        _check_access(path, os.fstat(descriptor))
        octets = os.read(descriptor, MAX_FILE_SIZE + 1)
    finally:
        os.close(descriptor)
    return _parse(path, octets)


def create_key_file(path: Path) -> tuple[WrappingKey, ...]:
    """Write a new key file with one key, mode 0600, and sync it and its folder.

    Raises KeyFileError if it exists or cannot be written; then no half of it is left.
    """
    key = WrappingKey.generate()
    line = f"{_VERSION} {base64.b64encode(key.key).decode()}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KeyFileError(
            f"key file {str(path)!r} cannot be created: {error.strerror}",
            "`registry.key_file` in the configuration says where it is",
        ) from error
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)  # a umask may have taken more than it should
            file.write(_HEADER + line)
            file.flush()
            os.fsync(descriptor)
        _sync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyFileError(
            f"key file {str(path)!r} cannot be written: {error.strerror}",
            "make room for it; nothing was encrypted with it yet",
        ) from error
    return (key,)


def _check_access(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(
            f"key file {str(path)!r} is not a regular file",
            "`registry.key_file` in the configuration says where it is",
        )
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"key file {str(path)!r} belongs to another user (uid {status.st_uid})",
            f"run as that user, or `chown {os.geteuid()} {path}`",
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(
            f"key file {str(path)!r} is open to group or others "
            f"(mode {stat.S_IMODE(status.st_mode):04o})",
            f"`chmod 600 {path}`, and think who may have read it",
        )


def _parse(path: Path, octets: bytes) -> tuple[WrappingKey, ...]:
    keys: list[WrappingKey] = []
    damaged = len(octets) > MAX_FILE_SIZE
    for line in octets.split(b"\n"):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        try:
            version, text = words
            key = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            damaged = True
            continue
        damaged |= version != _VERSION.encode() or len(key) != KEY_LENGTH
        keys.append(WrappingKey(key))
    if damaged or not keys:
        raise KeyFileError(
            f"key file {str(path)!r} is damaged",
            "restore it from its backup; delete it only if the registry holds no PSK yet",
        )
    return tuple(keys)


def _sync_folder(folder: Path) -> None:
    """Without this a power cut may lose the file's name, though not its octets."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
