"""Batches in a SQLite registry: each function is one statement, or a few in the caller's
transaction."""

# ruff: noqa: S608  every f-string joins constants of this module; values are parameters

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace

from coapgate.model import Batch, DeviceId, Tenant
from coapgate.registry import reading, refusals
from coapgate.registry.batches import MAX_ACTIVE_BATCHES, BatchBook, may_overlap
from coapgate.registry.vault import Vault

Connection = sqlite3.Connection
Row = tuple[object, ...]

_PAGE = 1000

_COLUMNS = (
    "number, name, tenant, prefix, suffix, max_devices, device_count, state, not_before,"
    " not_after, move_time, added_at"
)
_IDENTITY = b"batch "  # what its key is bound to, where that of a device is to its identity


def every(connection: Connection) -> tuple[Batch, ...]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM batch ORDER BY name").fetchall()
    return tuple(_batch(row) for row in rows)


def active(connection: Connection) -> list[Row]:
    """Of each active batch its columns, then its wrapped key: `load` reads them."""
    # Not how many devices it has: that changes with each.
    columns = _COLUMNS.replace("device_count", "0")
    return connection.execute(
        f"SELECT {columns}, secret FROM batch WHERE state = 'active' AND secret IS NOT NULL"
        " ORDER BY number"
    ).fetchall()


def load(vault: Vault, row: Row) -> tuple[Batch, bytes]:
    """A batch, and its master key. Raises RegistryError, of which KeyFileError is one."""
    batch, wrapped = _batch(row[:-1]), row[-1]
    assert isinstance(wrapped, bytes), "the table is STRICT"
    return batch, unwrap(vault, wrapped, batch.tenant, batch.name)


def unwrap(vault: Vault, wrapped: bytes, tenant: str, name: str) -> bytes:
    """The master key of a batch. Raises RegistryError."""
    return vault.unwrap(wrapped, tenant, "", _IDENTITY + name.encode())


def get(connection: Connection, name: str) -> Batch:
    """Raises NotFound."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM batch WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise refusals.batch_not_found(name)
    return _batch(row)


def get_by_number(connection: Connection, number: int) -> Batch:
    """One that there was: batches are never removed."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM batch WHERE number = ?", (number,)).fetchone()
    return _batch(row)


def get_secret(connection: Connection, vault: Vault, name: str) -> bytes:
    """Raises NotFound, KeyFileError."""
    batch = get(connection, name)
    (wrapped,) = connection.execute(
        "SELECT secret FROM batch WHERE number = ?", (batch.number,)
    ).fetchone()
    return unwrap(vault, wrapped, batch.tenant, name)


def add(connection: Connection, vault: Vault, batch: Batch, secret: bytes, now: float) -> Batch:
    """Raises AlreadyExists, KeyFileError, RegistryError if as many are active as may be."""
    others = every(connection)
    if sum(other.state == "active" for other in others) >= MAX_ACTIVE_BATCHES:
        raise refusals.too_many_batches()
    for other in others:
        if other.name == batch.name:
            raise refusals.batch_name_taken(batch.name)
        if other.state == "active" and may_overlap(batch, other):
            raise refusals.batches_overlap(batch, other)
    vault.prepare(connection, now)
    wrapped = vault.wrap(secret, batch.tenant, "", _IDENTITY + batch.name.encode())
    (number,) = connection.execute(
        "INSERT INTO batch (name, tenant, prefix, suffix, max_devices, not_before, not_after,"
        " move_time, added_at, secret) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
        (
            batch.name,
            batch.tenant,
            batch.prefix,
            batch.suffix,
            batch.max_devices,
            batch.not_before,
            batch.not_after,
            batch.move_time,
            now,
            wrapped,
        ),
    ).fetchone()
    return replace(batch, number=number, device_count=0, state="active", added_at=now)


def revoke(connection: Connection, name: str) -> Batch:
    """Raises NotFound."""
    batch = get(connection, name)
    if batch.state != "revoked":
        connection.execute("UPDATE batch SET state = 'revoked' WHERE number = ?", (batch.number,))
    return replace(batch, state="revoked")


def match(connection: Connection) -> BatchBook:
    """The active batches, to be asked which one an identity fits: their keys are not read."""
    return BatchBook((batch, b"") for batch in every(connection) if batch.state == "active")


def keep_identities(connection: Connection, tenant: Tenant, device: DeviceId) -> None:
    """Before a device is removed: for its identities no batch derives a key any more.

    Else what was revoked, or stolen with its factory key, would come back with it.

    Raises NotFound.
    """
    number = reading.get_device_number(connection, tenant, device)
    rows = connection.execute(
        "SELECT identity, max(batch) FROM psk_credential WHERE device = ? GROUP BY identity",
        (number,),
    ).fetchall()
    book = match(connection) if rows else BatchBook()
    for identity, batch in rows:
        if batch is None:
            found = book.find(identity)
            batch = None if found is None else found.batch.number
        if batch is not None:
            connection.execute(
                "INSERT INTO removed_identity (identity, batch) VALUES (?, ?)"
                " ON CONFLICT DO NOTHING",
                (identity, batch),
            )


def removed(connection: Connection, number: int) -> Iterator[bytes]:
    """The identities of removed devices of a batch, in order, in pages."""
    after = b""
    while True:
        rows = connection.execute(
            "SELECT identity FROM removed_identity WHERE batch = ? AND identity > ?"
            f" ORDER BY identity LIMIT {_PAGE}",
            (number, after),
        ).fetchall()
        for (identity,) in rows:
            yield identity
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


def find_removed(connection: Connection, identity: bytes) -> str | None:
    """The name of the batch that an identity of a removed device is of."""
    row = connection.execute(
        "SELECT b.name FROM removed_identity AS r JOIN batch AS b ON b.number = r.batch"
        " WHERE r.identity = ?",
        (identity,),
    ).fetchone()
    return row[0] if row else None


def restore(connection: Connection, identity: bytes) -> str:
    """Let an identity of a removed device be derived again: the name of its batch.

    Raises NotFound.
    """
    name = find_removed(connection, identity)
    if name is None:
        raise refusals.identity_not_removed(identity)
    connection.execute("DELETE FROM removed_identity WHERE identity = ?", (identity,))
    return name


def _batch(row: Row) -> Batch:
    number, name, tenant, *rest = row
    return Batch(number, name, Tenant(tenant), *rest)  # type: ignore[arg-type]  # STRICT, in order
