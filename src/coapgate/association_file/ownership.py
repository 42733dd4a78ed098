"""A file that one process owns, that gives way to another one or is put aside.

The lock (flock) is the file's own, is held for as long as the file is open, and ends with the
process however that ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coapgate.errors import StartError, StoreDamaged

MAX_SET_ASIDE = 1000
"""Files that are put aside beside one; then somebody has to look."""

_ATTEMPTS = 10  # a file that was put aside by its owner between our opening it and locking it
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

log = logging.getLogger(__name__)


class OwnedFile:
    """The open file; mutable: `descriptor`, when another one takes its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def open(self) -> None:
        """Open and lock the file; it is made, and empty, if there is none.

        Raises StartError: another process owns it, it cannot be opened, or is no regular file.
        """
        try:
            self.descriptor = _open_and_lock(self.path)
        except OSError as error:
            raise StartError(
                f"association file {str(self.path)!r} cannot be opened: {error.strerror}",
                "`dtls.association_store` in the configuration says where it is",
            ) from error

    def check_access(self) -> None:
        """Raises StoreDamaged if somebody else may have read or written it."""
        status = os.fstat(self.descriptor)
        if status.st_uid != os.geteuid():
            raise StoreDamaged(f"belongs to another user (uid {status.st_uid})")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.S_IMODE(status.st_mode)
            raise StoreDamaged(f"is open to group or others (mode {mode:04o})")
        if status.st_nlink != 1:
            raise StoreDamaged("has another name too (a hard link)")

    def set_aside(self, reason: str) -> None:
        """Rename the file beside itself, say so, and open a new one in its place.

        Raises StartError.
        """
        aside = _set_aside(self.path)
        log.warning(
            "association file set aside",
            extra={
                "file": str(self.path),
                "reason": reason,
                "moved_to": aside.name,
                "hint": "its devices do a handshake again; look at it, then delete it",
            },
        )
        self.close()  # only now: whoever opens that name from here on opens another file
        self.open()

    @contextmanager
    def renewed(self) -> Iterator[int]:
        """Write another file, empty at first, that takes the place of this one at the end.

        Yields its descriptor. It is locked before it has the name, and on the disk; this one keeps
        its lock until then, and is never written. If the context raises nothing has happened.

        Raises StartError, OSError.
        """
        path = self.path.with_name(f"{self.path.name}.new")
        with suppress(FileNotFoundError):  # of a process that was killed here
            _check_regular(path, os.lstat(path))
            path.unlink()
        descriptor = os.open(path, _FLAGS | os.O_EXCL, 0o600)
        try:
            _lock(path, descriptor)
            os.fchmod(descriptor, 0o600)  # a umask may have taken more than it should
            yield descriptor
            os.fsync(descriptor)
            if not _is_there(self.path, self.descriptor):
                raise _is_always_another(self.path)
            path.rename(self.path)
            # Else the one before might be there again after a crash, as if it had not been used.
            _sync_folder(self.path.parent)
        except BaseException:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                path.unlink()
            raise
        self.close()
        self.descriptor = descriptor

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _open_and_lock(path: Path) -> int:
    for _ in range(_ATTEMPTS):
        # Looked at before it is opened: opening a device may do things.
        with suppress(FileNotFoundError):
            _check_regular(path, os.lstat(path))
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            _check_regular(path, os.fstat(descriptor))
            _lock(path, descriptor)
            if _is_there(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise _is_always_another(path)


def _is_always_another(path: Path) -> StartError:
    return StartError(
        f"association file {str(path)!r} is another one each time it is looked at",
        "stop whatever renames or deletes it",
    )


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StartError(
            f"association file {str(path)!r} is not a regular file",
            "`dtls.association_store` in the configuration says where it is",
        )


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(
            f"association file {str(path)!r} is used by another gateway",
            "stop that one, or give this one a `node` or `dtls.association_store` of its own",
        ) from None


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is still the one of that name."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(path: Path) -> Path:
    """Never over a file that is there: the new name is taken first, by an empty file."""
    try:
        for number in range(1, MAX_SET_ASIDE + 1):
            aside = path.with_name(f"{path.name}.set-aside-{number}")
            with suppress(FileExistsError):
                os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                path.rename(aside)
                return aside
    except OSError as error:
        raise StartError(
            f"association file {str(path)!r} cannot be set aside: {error.strerror}",
            "move it away",
        ) from error
    raise StartError(
        f"association file {str(path)!r} was set aside {MAX_SET_ASIDE} times already",
        "delete what was set aside, and find out why",
    )
