"""What changes a SQLite registry; each function runs inside a write transaction of its caller."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

from coapgate.model import AnchorState, Device, DeviceId, Tenant, TrustAnchor
from coapgate.registry import reading, refusals

Connection = sqlite3.Connection


def add_device(connection: Connection, device: Device, now: float) -> int:
    """The number of the new row. Raises AlreadyExists."""
    row = connection.execute(
        "INSERT INTO device (tenant, device, enabled, labels, added_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING number",
        (device.tenant, device.device, device.enabled, _render_labels(device.labels), now),
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


def device_number(
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
        " auto_provision, state, device_id_template, tenant_template, tenants, labels,"
        " max_validity, crl_files, crl_mode, proof_code, added_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            anchor.name,
            anchor.tenant,
            anchor.key_id,
            anchor.certificate,
            str(anchor.device_id_source),
            anchor.auto_provision,
            str(anchor.state),
            anchor.device_id_template,
            anchor.tenant_template,
            json.dumps(anchor.tenants),
            _render_labels(anchor.labels),
            anchor.max_validity,
            json.dumps(anchor.crl_files),
            anchor.crl_mode,
            anchor.proof_code,
            now,
        ),
    )


def remove_anchor(connection: Connection, name: str) -> TrustAnchor:
    anchor = reading.get_anchor(connection, name)
    connection.execute("DELETE FROM anchor WHERE name = ?", (name,))
    return anchor


def set_anchor_state(
    connection: Connection, name: str, state: AnchorState, was: TrustAnchor | None
) -> TrustAnchor:
    """Raises NotFound, RegistryError."""
    anchor = reading.get_anchor(connection, name)
    refusals.check_anchor_is(anchor, was)
    if anchor.state != state:
        connection.execute("UPDATE anchor SET state = ? WHERE name = ?", (str(state), name))
    return replace(anchor, state=state)


def change_anchor(connection: Connection, anchor: TrustAnchor) -> None:
    """Raises NotFound."""
    changed = connection.execute(
        "UPDATE anchor SET certificate = ?, auto_provision = ?, labels = ?, max_validity = ?,"
        " crl_files = ?, crl_mode = ? WHERE name = ? AND key_id = ?",
        (
            anchor.certificate,
            anchor.auto_provision,
            _render_labels(anchor.labels),
            anchor.max_validity,
            json.dumps(anchor.crl_files),
            anchor.crl_mode,
            anchor.name,
            anchor.key_id,
        ),
    )
    if changed.rowcount == 0:
        raise refusals.anchor_not_found(anchor.name)


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
    anchor = reading.get_anchor(connection, name)
    if not anchor.serves(tenant):
        raise refusals.anchor_serves_another(anchor, tenant)
    value = anchor.pair_value(tenant, value)
    owner = reading.find_certificate_device(connection, anchor.key_id, value)
    if owner is None:
        number = device_number(connection, tenant, device, now, or_create=create_device)
        _add_pair(connection, anchor.key_id, value, number, now)
        return True
    if (owner.tenant, owner.device) != (tenant, device):
        raise refusals.value_taken(name, value, owner.tenant, owner.device)
    return False


def distrust(
    connection: Connection, tenant: Tenant, device: DeviceId, name: str, value: str
) -> None:
    """Raises NotFound."""
    anchor = reading.get_anchor(connection, name)
    number = reading.get_device_number(connection, tenant, device)
    deleted = connection.execute(
        "DELETE FROM certificate_device WHERE key_id = ? AND value = ? AND device = ?",
        (anchor.key_id, anchor.pair_value(tenant, value), number),
    )
    if deleted.rowcount == 0:
        raise refusals.value_not_trusted(name, value, device)


def provision(
    connection: Connection,
    anchor: TrustAnchor,
    device: DeviceId,
    value: str,
    tenant: Tenant,
    now: float,
) -> Device:
    found = reading.find_certificate_device(connection, anchor.key_id, value)
    if found is not None:
        return found  # parallel first contacts: one of them was faster
    created = Device(tenant, device, labels=anchor.labels)
    number = add_device(connection, created, now)
    _add_pair(connection, anchor.key_id, value, number, now)
    return created


def write_uses(
    connection: Connection, uses: dict[tuple[bytes, str], float], interval: float
) -> int:
    """Write when certificates were used, unless that was written within `interval` seconds."""
    written = 0
    for (key_id, value), used_at in uses.items():
        written += connection.execute(
            "UPDATE certificate_device SET used_at = ? WHERE key_id = ? AND value = ?"
            " AND (used_at IS NULL OR used_at <= ?)",
            (used_at, key_id, value, used_at - interval),
        ).rowcount
    return written


def _add_pair(connection: Connection, key_id: bytes, value: str, device: int, now: float) -> None:
    connection.execute(
        "INSERT INTO certificate_device (key_id, value, device, added_at) VALUES (?, ?, ?, ?)",
        (key_id, value, device, now),
    )


def _render_labels(labels: tuple[tuple[str, str], ...]) -> str | None:
    return json.dumps(dict(labels), ensure_ascii=False) if labels else None
