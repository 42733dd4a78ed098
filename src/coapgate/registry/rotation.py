"""What changes PSK credentials in a SQLite registry, inside a write transaction of the caller."""

# ruff: noqa: S608  every f-string joins constants of this module; values are parameters

from __future__ import annotations

import hmac
import sqlite3
from dataclasses import replace

from coapgate.errors import AlreadyExists
from coapgate.model import (
    MAX_KEYS_PER_IDENTITY,
    Batch,
    Device,
    PskCredential,
    PskState,
)
from coapgate.registry import batch_rows, psk, reading, refusals, writing
from coapgate.registry.base import PskEntry
from coapgate.registry.vault import Vault

Connection = sqlite3.Connection


def add_psk(
    connection: Connection,
    vault: Vault,
    entry: PskEntry,
    secret: bytes,
    *,
    create_device: bool,
) -> PskEntry:
    """Add the key of an `entry`, whose number is not given yet; the answer has it."""
    tenant, device, identity, now = entry.tenant, entry.device, entry.identity, entry.added_at
    owner = reading.find_identity_owner(connection, identity)
    if owner not in (None, (tenant, device)):
        raise refusals.identity_taken(identity, *owner)
    number = writing.device_number(connection, tenant, device, now, or_create=create_device)
    follows = None
    if entry.state == PskState.BACKUP:
        follows = refusals.check_follows(_active_identities(connection, number), entry)
    vault.prepare(connection, now)
    slot = _find_slot(connection, vault, entry, secret)
    credential = _next_number(connection)
    connection.execute(
        "INSERT INTO psk_credential (identity, slot, number, device, secret, state, not_before,"
        " not_after, follows, added_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity,
            slot,
            credential,
            number,
            vault.wrap(secret, tenant, device, identity),
            str(entry.state),
            entry.not_before,
            entry.not_after,
            follows,
            now,
        ),
    )
    return replace(entry, number=credential, follows=follows)


def promote(connection: Connection, number: int, retiring_until: float) -> bool:
    """Make a backup active, and what it follows retiring: keys, and backups that were to."""
    row = connection.execute(
        "UPDATE psk_credential SET state = 'active' WHERE number = ? AND state = 'backup'"
        f" AND slot <= {MAX_KEYS_PER_IDENTITY} RETURNING device, coalesce(follows, identity)",
        (number,),
    ).fetchone()
    if row is None:
        return False
    connection.execute(
        "UPDATE psk_credential SET state = 'retiring', retiring_until = ?"
        " WHERE device = ? AND (identity = ? OR follows = ?) AND number < ?"
        " AND state IN ('active', 'backup')",
        (retiring_until, row[0], row[1], row[1], number),
    )
    return True


def revoke(
    connection: Connection, number: int | None, identity: bytes | None, now: float
) -> tuple[PskEntry, ...]:
    """Revoke one key, or all of an identity. Raises NotFound."""
    column, value = ("number", number) if identity is None else ("identity", identity)
    select = f"SELECT number FROM psk_credential WHERE {column} = ? ORDER BY number"
    found = connection.execute(select, (value,)).fetchall()
    if not found and identity is not None:
        _register_to_revoke(connection, identity, now)
        found = connection.execute(select, (value,)).fetchall()
    if not found:
        raise refusals.psk_not_found(number, identity)
    connection.execute(
        f"UPDATE psk_credential SET state = 'revoked' WHERE {column} = ? AND state <> 'revoked'",
        (value,),
    )
    return tuple(reading.get_psk_entry(connection, number) for (number,) in found)


def register_derived(
    connection: Connection, derived: PskCredential, now: float
) -> tuple[int, bool]:
    """The number of the key of a derived credential, and whether its device was made for it.

    Raises AlreadyExists, NotFound, BatchFull.
    """
    assert derived.batch is not None, "only a key of a batch is derived"
    held = connection.execute(
        "SELECT number, batch FROM psk_credential WHERE identity = ? ORDER BY slot",
        (derived.identity,),
    ).fetchall()
    for number, batch in held:
        if batch == derived.batch:
            return number, False  # parallel first contacts: one of them was faster
    if held:
        raise AlreadyExists("the identity has a key of its own by now")
    if batch_rows.find_removed(connection, derived.identity) is not None:
        raise refusals.identity_removed(derived.identity)
    batch = batch_rows.get_by_number(connection, derived.batch)
    if batch.state != "active":
        raise refusals.batch_revoked(batch.name)
    if batch.device_count >= batch.max_devices:
        raise refusals.batch_full(batch.name, batch.max_devices)
    device = writing.add_device(connection, Device(derived.tenant, derived.device), now)
    return _add_derived(connection, batch, derived.identity, device, now), True


def _add_derived(
    connection: Connection, batch: Batch, identity: bytes, device: int, now: float
) -> int:
    credential = _next_number(connection)
    not_after = None if batch.move_time is None else now + batch.move_time
    connection.execute(
        "INSERT INTO psk_credential (identity, slot, number, device, secret, not_after, batch,"
        " added_at) VALUES (?, 1, ?, ?, x'', ?, ?, ?)",
        (identity, credential, device, not_after, batch.number, now),
    )
    return credential


def _register_to_revoke(connection: Connection, identity: bytes, now: float) -> None:
    """Give an identity that only fits a batch a row of its own; full batches are no hindrance."""
    found = batch_rows.match(connection).find(identity)
    if found is None or batch_rows.find_removed(connection, identity) is not None:
        return
    tenant = found.batch.tenant
    device = reading.find_device_number(connection, tenant, found.device)
    if device is None:
        device = writing.add_device(connection, Device(tenant, found.device), now)
    _add_derived(connection, found.batch, identity, device, now)


def _next_number(connection: Connection) -> int:
    (number,) = connection.execute(
        "UPDATE psk_number SET last = last + 1 RETURNING last"
    ).fetchone()
    given: int = number
    return given


def _active_identities(connection: Connection, number: int) -> list[bytes]:
    rows = connection.execute(
        "SELECT identity FROM psk_credential WHERE device = ? AND state = 'active' ORDER BY number",
        (number,),
    )
    return [identity for (identity,) in rows]


def _find_slot(connection: Connection, vault: Vault, entry: PskEntry, secret: bytes) -> int:
    """A free place among the keys of an identity, none of which is this secret."""
    identity, now = entry.identity, entry.added_at
    held = connection.execute(
        "SELECT slot, number, secret, state, not_after, retiring_until FROM psk_credential"
        f" WHERE identity = ? AND slot <= {MAX_KEYS_PER_IDENTITY} ORDER BY number",
        (identity,),
    ).fetchall()
    for _, number, wrapped, *_ in held:
        # That of a batch is in no row.
        own = vault.unwrap(wrapped, entry.tenant, entry.device, identity) if wrapped else b""
        if hmac.compare_digest(own, secret):
            raise refusals.key_exists(identity, number)
    taken = {slot for slot, *_ in held}
    for slot in range(1, MAX_KEYS_PER_IDENTITY + 1):
        if slot not in taken:
            return slot
    for slot, _, _, state, not_after, retiring_until in held:
        if psk.has_ended(state, not_after, retiring_until, now):
            # Kept for the record, where no handshake tries it: it was refused already.
            connection.execute(
                "UPDATE psk_credential SET slot = (SELECT max(slot) + 1 FROM psk_credential"
                " WHERE identity = ?) WHERE identity = ? AND slot = ?",
                (identity, identity, slot),
            )
            freed: int = slot
            return freed
    raise refusals.too_many_keys(identity, entry.device)
