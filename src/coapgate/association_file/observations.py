"""Observations that outlive the process: a journal beside the association file.

Each registration and each end of one is appended, so that the process may be killed at any instant;
what is over is left out when the journal is written anew. A record counts only if it is whole, and
only for an association that goes on: the journal holds no secret and proves nothing.

    magic (8)   then records: CRC-32 of what follows (4), length of what follows that (2),
                kind (1), association id (8), length of the token (1), token; and if it is ADDED:
                block size exponent or NONE (1), Content-Format or MANY (4), length of the ETag (1),
                ETag, path
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coapgate.model import KeptObservation

MAGIC = b"cgobs\0\0\1"
MAX_LENGTH = 1 << 28
"""Octets of a journal that are read."""
REWRITE_FROM = 1 << 20
"""Octets from which a journal that has doubled is written anew."""

ADDED, REMOVED = 1, 0
NONE, MANY = 0xFF, 0xFFFFFFFF

_HEAD = struct.Struct("=IH")
_KEY = struct.Struct("=B8sB")
_KEPT = struct.Struct("=BIB")
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

_Kept = tuple[bytes, KeptObservation]

log = logging.getLogger(__name__)


class ObservationJournal:
    """The open journal, as the message layer's `Journal`.

    What an earlier process left is `take`n by association id; then `begin` writes the journal anew
    from `current`, what is observed now. If it cannot be written, that is said once, and the
    observations of this process end with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._length = 0
        self._rewrite_at = REWRITE_FROM
        self._left: dict[bytes, dict[bytes, KeptObservation]] = {}
        self._current: Callable[[], Iterable[_Kept]] = tuple

    def read(self) -> None:
        """Read what an earlier process left, if anything."""
        try:
            descriptor = os.open(self.path, _READ_FLAGS)
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)
            return
        try:
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file")
                octets = file.read(MAX_LENGTH + 1)
        except OSError as error:
            self._give_up(error)
            return
        for association_id, token, kept in parse_journal(octets[:MAX_LENGTH]):
            own = self._left.setdefault(association_id, {})
            own.pop(token, None)
            if kept is not None:
                own[token] = kept

    def take(self, association_id: bytes) -> tuple[KeptObservation, ...]:
        """What an association observed when the earlier process ended, in order."""
        return tuple(self._left.pop(association_id, {}).values())

    def begin(self, current: Callable[[], Iterable[_Kept]]) -> None:
        """Go on from what is observed now; what nobody took is dropped."""
        self._left.clear()
        self._current = current
        self._rewrite()

    def added(self, association_id: bytes, kept: KeptObservation) -> None:
        """There is one more, or another in the place of one with that token."""
        self._append(encode_added(association_id, kept))

    def removed(self, association_id: bytes, token: bytes) -> None:
        """There is one less."""
        self._append(_record(REMOVED, association_id, token))

    def close(self) -> None:
        """Write it as it is now, with what devices were told last."""
        if self._descriptor >= 0:
            self._rewrite()
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, record: bytes) -> None:
        if self._descriptor < 0:
            return
        try:
            if os.write(self._descriptor, record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._give_up(error)
            return
        self._length += len(record)
        if self._length > self._rewrite_at:
            self._rewrite()

    def _rewrite(self) -> None:
        new = self.path.with_name(self.path.name + ".new")
        descriptor = -1
        try:
            with suppress(FileNotFoundError):
                new.unlink()
            descriptor = os.open(new, _FLAGS | os.O_EXCL | os.O_APPEND, 0o600)
            octets = MAGIC + b"".join(encode_added(*kept) for kept in self._current())
            rest = memoryview(octets)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            new.replace(self.path)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            self._give_up(error)
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._length = len(octets)
        self._rewrite_at = max(REWRITE_FROM, 2 * len(octets))

    def _give_up(self, error: OSError) -> None:
        """A full disk is no reason to serve nobody."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        log.warning(
            "observations are not kept",
            extra={
                "file": str(self.path),
                "reason": error.strerror,
                "hint": "devices register again after the next start of the gateway",
            },
        )


@contextmanager
def open_observations(association_file: Path) -> Iterator[ObservationJournal]:
    """The journal beside an association file, whose owner alone may open it."""
    journal = ObservationJournal(
        association_file.with_name(association_file.name + ".observations")
    )
    journal.read()
    try:
        yield journal
    finally:
        journal.close()


def encode_added(association_id: bytes, kept: KeptObservation) -> bytes:
    """A record of one more observation."""
    exponent = NONE if kept.exponent is None else kept.exponent
    accept = MANY if kept.accept is None else kept.accept
    told = _KEPT.pack(exponent, accept, len(kept.etag)) + kept.etag
    return _record(ADDED, association_id, kept.token, told + kept.path.encode())


def parse_journal(octets: bytes) -> Iterator[tuple[bytes, bytes, KeptObservation | None]]:
    """Association id, token and observation of each record that is whole; None: it has ended.

    The first one that is not ends the journal: what follows was never written.
    """
    if not octets.startswith(MAGIC):
        return
    position = len(MAGIC)
    while position + _HEAD.size <= len(octets):
        checksum, length = _HEAD.unpack_from(octets, position)
        position += _HEAD.size
        body = octets[position : position + length]
        position += length
        if zlib.crc32(body) != checksum or len(body) != length:
            return
        try:
            yield _parse(body)
        except (struct.error, UnicodeDecodeError):
            return


def _parse(body: bytes) -> tuple[bytes, bytes, KeptObservation | None]:
    kind, association_id, length = _KEY.unpack_from(body)
    at = _KEY.size + length
    token = body[_KEY.size : at]
    if kind == REMOVED:
        return association_id, token, None
    exponent, accept, length = _KEPT.unpack_from(body, at)
    at += _KEPT.size
    kept = KeptObservation(
        token,
        body[at + length :].decode(),
        None if exponent == NONE else exponent,
        None if accept == MANY else accept,
        body[at : at + length],
    )
    return association_id, token, kept


def _record(kind: int, association_id: bytes, token: bytes, rest: bytes = b"") -> bytes:
    body = _KEY.pack(kind, association_id, len(token)) + token + rest
    return _HEAD.pack(zlib.crc32(body), len(body)) + body
