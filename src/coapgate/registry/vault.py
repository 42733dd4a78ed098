"""The keys of one registry: made with its first secret or derived key, loaded when needed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path

from coapgate.errors import KeyFileError
from coapgate.registry.keyfile import create_key_file, load_key_file
from coapgate.registry.wrapping import KEY_ID_LENGTH, Keyring


class Vault:
    """Wraps and unwraps secrets of one registry. Mutable: the keyring, read again when short."""

    def __init__(self, path: Path, registry_id: bytes) -> None:
        """`path` of the key file, which need not exist yet; 16 octets that tell the registry."""
        self._path = path
        self._registry_id = registry_id
        self._keyring = Keyring()

    def verify(self, connection: sqlite3.Connection) -> None:
        """Read the key file if there is a secret that needs it, before a device does.

        Raises KeyFileError if it cannot be used, or does not hold a key of this registry.
        """
        # Only then: before the first secret is written another process may be making the file.
        if _holds_secrets(connection):
            self._load(connection)

    def prepare(self, connection: sqlite3.Connection, now: float) -> None:
        """Make ready to wrap, in a write transaction; a registry without secrets gets its key.

        `now` in Unix seconds.

        Raises KeyFileError.
        """
        self.read(connection, create=True)
        if not _holds_secrets(connection):
            # No row needs a key of before, wherever that has gone.
            connection.execute("DELETE FROM wrapping_key")
        connection.execute(
            "INSERT OR IGNORE INTO wrapping_key (key_id, added_at) VALUES (?, ?)",
            (self._keyring.newest, now),
        )

    def read(self, connection: sqlite3.Connection, *, create: bool) -> None:
        """Read the key file again, in a write transaction: else another process may be making it.

        Where there is none it is made if `create`, but never while a secret needs the one there
        was. Without it, and without a secret, the keyring stays what it was.

        Raises KeyFileError.
        """
        if _holds_secrets(connection):
            self._load(connection)
        elif os.path.lexists(self._path):
            self._keyring = Keyring(load_key_file(self._path))
        elif create:
            self._keyring = Keyring(create_key_file(self._path))

    @property
    def newest_root(self) -> bytes | None:
        """The root id (8 octets) of the newest key that was read; None: none was yet.

        What `derive` knows a key of the key file by. Another registry beside the same key file
        knows it by another, and derives other keys from it.
        """
        newest = self._keyring.newest
        return None if newest is None else self._root_id(newest)

    def derive(self, root_id: bytes, salt: bytes, purpose: bytes) -> bytes | None:
        """As `Keyring.derive`, from a key that was read, for this registry alone."""
        for key_id in self._keyring.ids:
            if self._root_id(key_id) == root_id:
                return self._keyring.derive(key_id, salt, purpose + self._registry_id)
        return None

    def wrap(self, secret: bytes, tenant: str, device: str, identity: bytes) -> bytes:
        """Seal a secret; `prepare` comes first."""
        return self._keyring.wrap(secret, tenant, device, identity)

    def unwrap(self, wrapped: bytes, tenant: str, device: str, identity: bytes) -> bytes:
        """Open a secret.

        Raises KeyFileError if the key file is needed and cannot be used, RegistryError if the
        secret does not open.
        """
        if not self._keyring.knows(wrapped):
            # The command line made the file, or added a key to it, while we were running.
            self._keyring = Keyring(load_key_file(self._path))
        return self._keyring.unwrap(wrapped, tenant, device, identity)

    def _root_id(self, key_id: bytes) -> bytes:
        own = b"coapgate registry root id" + self._registry_id + key_id
        return hashlib.sha256(own).digest()[:KEY_ID_LENGTH]

    def _load(self, connection: sqlite3.Connection) -> None:
        keyring = Keyring(load_key_file(self._path))
        for (key_id,) in connection.execute("SELECT key_id FROM wrapping_key"):
            if not keyring.holds(key_id):
                raise KeyFileError(
                    f"key file {str(self._path)!r} does not hold key {key_id.hex()}, "
                    "which keys in the registry are encrypted with",
                    "restore the key file that belongs to this registry",
                )
        self._keyring = keyring


def _holds_secrets(connection: sqlite3.Connection) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM psk_credential)"
        " OR EXISTS (SELECT 1 FROM batch WHERE secret IS NOT NULL)"
    ).fetchone()
    return bool(row[0])
