"""What a gateway has in memory of a SQLite registry, until another connection has written.

`PRAGMA data_version` tells, of which every look costs six system calls. What every handshake asks
may therefore be `refresh_interval` seconds old. The batches have a version of their own, which
every look-up of an identity reads along: so nobody can tell by the work which identities are known.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path

from coapgate.errors import RegistryError
from coapgate.model import AnchorState, TrustAnchor
from coapgate.registry import batch_rows, changes, reading, schema
from coapgate.registry.base import Change, RevokedCertificate
from coapgate.registry.batches import BatchBook, Derived
from coapgate.registry.vault import Vault


class Snapshot:
    """Anchors, single revocations, batches, and how many keys an identity has at most.

    Mutable: all of that, and at which version it was read. Whatever asks raises
    RegistryUnavailable if the registry cannot answer.
    """

    def __init__(
        self,
        path: Path,
        reader: sqlite3.Connection,
        vault: Vault,
        refresh_interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._reader = reader
        self._cursor = reader.cursor()
        self._vault = vault
        self._refresh_interval = refresh_interval
        self._clock = clock
        self._refreshed_at = -math.inf
        self._seen_version = -1
        self._anchors: tuple[TrustAnchor, ...] = ()
        self._max_keys = 1
        self._book = BatchBook()
        self._book_version = -1
        self._book_fault: RegistryError | None = None
        self._disabled: frozenset[bytes] = frozenset()
        self._revoked_rows: dict[int, RevokedCertificate] = {}
        self._revoked: tuple[RevokedCertificate, ...] = ()
        self._revoked_version = (0, 0)
        self._changes_version = -1
        self._newest_change = 0

    def anchors(self) -> tuple[TrustAnchor, ...]:
        """Those that may be believed, as they are now."""
        self._refresh()
        return self._anchors

    def disabled(self) -> frozenset[bytes]:
        """The key ids of anchors that are disabled, as they were when somebody asked for these."""
        if self._seen_version < 0:
            self._refresh()
        return self._disabled

    def revoked(self) -> tuple[RevokedCertificate, ...]:
        """As they were when somebody asked for the anchors."""
        if self._seen_version < 0:
            self._refresh()
        return self._revoked

    def max_keys(self) -> int:
        """Of an identity, `refresh_interval` seconds ago at most."""
        if self._clock() - self._refreshed_at >= self._refresh_interval:
            self._refresh()
        return self._max_keys

    def see_batches(self, version: int) -> None:
        """The batches have this version now: read them again if they had another."""
        if version == self._book_version:
            return
        try:
            rows = batch_rows.active(self._reader)
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error
        try:
            self._book = BatchBook(batch_rows.load(self._vault, row) for row in rows)
        except RegistryError as error:  # no matter to whoever has a key of his own
            self._book, self._book_fault = BatchBook(), error
            return  # and the next look-up tries again
        self._book_version, self._book_fault = version, None

    def derive(self, identity: bytes) -> Derived | None:
        """What an identity is by its text, as the batches were seen last.

        Raises RegistryError if the key of a batch cannot be decrypted.
        """
        if self._book_fault is not None:
            raise self._book_fault
        return self._book.find(identity)

    def newest_change(self) -> int:
        """The number of the newest change; one look while nobody has written."""
        try:
            (version,) = self._cursor.execute("PRAGMA data_version").fetchone()
            if version != self._changes_version:
                self._newest_change = changes.newest(self._reader)
                self._changes_version = version
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error
        return self._newest_change

    def changes(self, after: int) -> tuple[Change, ...] | None:
        """As `Registry.changes`; one look while there are none."""
        if after == self.newest_change():
            return ()
        try:
            return changes.after(self._reader, after)
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error

    def _refresh(self) -> None:
        """Read again if another connection has written."""
        now = self._clock()
        try:
            (version,) = self._cursor.execute("PRAGMA data_version").fetchone()
            self._refreshed_at = now
            if version == self._seen_version:
                return
            self._read()
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error
        # The version from before the reading: what was written meanwhile shows next time.
        self._seen_version = version

    def _read(self) -> None:
        """Read everything; what is as it was stays the same object, so that it is seen at once."""
        anchors = reading.anchors(self._reader)
        believed = tuple(anchor for anchor in anchors if anchor.state == AnchorState.ACTIVE)
        if believed != self._anchors:
            self._anchors = believed
        disabled = frozenset(a.key_id for a in anchors if a.state == AnchorState.DISABLED)
        if disabled != self._disabled:
            self._disabled = disabled
        self._max_keys = reading.max_keys_per_identity(self._reader)
        revoked_version = changes.revoked_version(self._reader)
        if revoked_version != self._revoked_version:
            # There may be 100,000: none is read twice.
            known = self._revoked_rows
            known |= changes.revoked(self._reader, self._revoked_version[1])
            if len(known) != revoked_version[0]:
                for restored in known.keys() - changes.revoked_numbers(self._reader):
                    del known[restored]
            self._revoked = tuple(known.values())
            self._revoked_version = revoked_version
