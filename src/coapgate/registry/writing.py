"""What changes a SQLite registry; each function runs inside a write transaction of its caller."""

from __future__ import annotations

import hmac
import json
import sqlite3

from coapgate.model import (
    MAX_KEYS_PER_IDENTITY,
    Device,
    DeviceId,
    Tenant,
    TrustAnchor,
)
from coapgate.registry import reading, refusals
from coapgate.registry.base import PskEntry
from coapgate.registry.vault import Vault

Connection = sqlite3.Connection


def add_device(connection: Connection, device: Device, now: float) -> int:
    """The number of the new row. Raises AlreadyExists."""
    labels = json.dumps(dict(device.labels), ensure_ascii=False) if device.labels else None
    row = connection.execute(
        "INSERT INTO device (tenant, device, enabled, labels, added_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING number",
        (device.tenant, device.device, device.enabled, labels, now),
    ).fetchone()
    if row is None:
        raise refusals.device_exists(device.tenant, device.device)
    number: int = row[0]
    return number


def remove_device(connection: Connection, tenant: Tenant, device: DeviceId) -> None:
    number = reading.get_device_number(connection, tenant, device)
    connection.execute("DELETE FROM device WHERE number = ?", (number,))  # credentials with it


def enable_device(
    connection: Connection, tenant: Tenant, device: DeviceId, *, enabled: bool
) -> None:
    number = reading.get_device_number(connection, tenant, device)
    connection.execute("UPDATE device SET enabled = ? WHERE number = ?", (enabled, number))


def add_psk(
    connection: Connection,
    vault: Vault,
    tenant: Tenant,
    device: DeviceId,
    identity: bytes,
    secret: bytes,
    now: float,
    *,
    create_device: bool,
) -> PskEntry:
    owner = reading.find_identity_owner(connection, identity)
    if owner not in (None, (tenant, device)):
        raise refusals.identity_taken(identity, *owner)
    number = _number_of(connection, tenant, device, now, or_create=create_device)
    vault.prepare(connection, now)
    slot = _find_slot(connection, vault, tenant, device, identity, secret)
    (credential,) = connection.execute(
        "UPDATE psk_number SET last = last + 1 RETURNING last"
    ).fetchone()
    connection.execute(
        "INSERT INTO psk_credential (identity, slot, number, device, secret, added_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (identity, slot, credential, number, vault.wrap(secret, tenant, device, identity), now),
    )
    return PskEntry(credential, tenant, device, identity, "active", now)


def _number_of(
    connection: Connection, tenant: Tenant, device: DeviceId, now: float, *, or_create: bool
) -> int:
    """Of a device that is there, or is created if no tenant has one of that name."""
    number = reading.find_device_number(connection, tenant, device)
    if number is not None:
        return number
    elsewhere = reading.tenants_of(connection, device)
    if elsewhere or not or_create:
        raise refusals.device_not_found(tenant, device, elsewhere)
    return add_device(connection, Device(tenant, device), now)


def _find_slot(
    connection: Connection,
    vault: Vault,
    tenant: Tenant,
    device: DeviceId,
    identity: bytes,
    secret: bytes,
) -> int:
    """The first free place among the keys of an identity, none of which is this secret."""
    held = connection.execute(
        "SELECT slot, number, secret FROM psk_credential WHERE identity = ? AND slot <= ?",
        (identity, MAX_KEYS_PER_IDENTITY),
    ).fetchall()
    for _, number, wrapped in held:
        if hmac.compare_digest(vault.unwrap(wrapped, tenant, device, identity), secret):
            raise refusals.key_exists(identity, number)
    taken = {slot for slot, _, _ in held}
    for slot in range(1, MAX_KEYS_PER_IDENTITY + 1):
        if slot not in taken:
            return slot
    raise refusals.too_many_keys(identity, device)


def add_anchor(connection: Connection, anchor: TrustAnchor, now: float) -> None:
    row = connection.execute(
        "SELECT name FROM anchor WHERE key_id = ?", (anchor.key_id,)
    ).fetchone()
    if row is not None:
        raise refusals.anchor_key_taken(row[0])
    if reading.find_anchor(connection, anchor.name) is not None:
        raise refusals.anchor_name_taken(anchor.name)
    connection.execute(
        "INSERT INTO anchor (name, tenant, key_id, certificate, device_id_source,"
        " auto_provision, state, added_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            anchor.name,
            anchor.tenant,
            anchor.key_id,
            anchor.certificate,
            str(anchor.device_id_source),
            anchor.auto_provision,
            anchor.state,
            now,
        ),
    )


def remove_anchor(connection: Connection, name: str) -> TrustAnchor:
    anchor = reading.find_anchor(connection, name)
    if anchor is None:
        raise refusals.anchor_not_found(name)
    connection.execute("DELETE FROM anchor WHERE name = ?", (name,))
    return anchor


def trust(
    connection: Connection,
    tenant: Tenant,
    device: DeviceId,
    name: str,
    value: str,
    now: float,
    *,
    create_device: bool,
) -> bool:
    anchor = reading.find_anchor(connection, name)
    if anchor is None:
        raise refusals.anchor_not_found(name)
    if anchor.tenant != tenant:
        raise refusals.anchor_serves_another(anchor, tenant)
    owner = reading.find_certificate_device(connection, anchor.key_id, value)
    if owner is None:
        number = _number_of(connection, tenant, device, now, or_create=create_device)
        _add_pair(connection, anchor.key_id, value, number, now)
        return True
    if (owner.tenant, owner.device) != (tenant, device):
        raise refusals.value_taken(name, value, owner.tenant, owner.device)
    return False


def provision(
    connection: Connection, anchor: TrustAnchor, device: DeviceId, value: str, now: float
) -> Device:
    found = reading.find_certificate_device(connection, anchor.key_id, value)
    if found is not None:
        return found  # parallel first contacts: one of them was faster
    created = Device(anchor.tenant, device)
    number = add_device(connection, created, now)
    _add_pair(connection, anchor.key_id, value, number, now)
    return created


def _add_pair(connection: Connection, key_id: bytes, value: str, device: int, now: float) -> None:
    connection.execute(
        "INSERT INTO certificate_device (key_id, value, device, added_at) VALUES (?, ?, ?, ?)",
        (key_id, value, device, now),
    )
