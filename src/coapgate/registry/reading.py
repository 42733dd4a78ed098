"""What is asked of a SQLite registry; each function is one SELECT, read to its end."""

# ruff: noqa: S608  every f-string joins constants of this module; values are parameters

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from coapgate.model import (
    MAX_KEYS_PER_IDENTITY,
    Device,
    DeviceId,
    DeviceIdSource,
    Tenant,
    TrustAnchor,
)
from coapgate.registry import refusals
from coapgate.registry.base import CertificateEntry, DeviceEntry, PskEntry

Connection = sqlite3.Connection

# A key that is derived, and one of a batch that was revoked, is what its batch is.
_STATE = "CASE WHEN b.state = 'revoked' THEN 'revoked' ELSE c.state END"
_VALIDITY = """
  CASE WHEN c.batch IS NULL THEN c.not_before
    ELSE max(coalesce(c.not_before, b.not_before), coalesce(b.not_before, c.not_before)) END,
  CASE WHEN c.batch IS NULL THEN c.not_after
    ELSE min(coalesce(c.not_after, b.not_after), coalesce(b.not_after, c.not_after)) END"""

# One row at least, so that a stranger's identity costs what a device's does: each says which
# version the batches have, and whether the identity was that of a removed device.
LOOK_UP = f"""
SELECT v.version, EXISTS (SELECT 1 FROM removed_identity WHERE identity = ?1),
  c.number, c.secret, {_STATE}, {_VALIDITY}, c.retiring_until, c.batch,
  d.tenant, d.device, d.enabled, b.secret, b.name, b.tenant
FROM batch_version AS v
LEFT JOIN psk_credential AS c ON c.identity = ?1 AND c.slot <= {MAX_KEYS_PER_IDENTITY}
LEFT JOIN device AS d ON d.number = c.device
LEFT JOIN batch AS b ON b.number = c.batch"""

# A key in a slot that no handshake tries is kept for the record, whatever its state.
PSK_OF_NUMBER = f"""
SELECT d.tenant, d.device, c.identity,
  CASE WHEN c.slot <= {MAX_KEYS_PER_IDENTITY} THEN {_STATE} ELSE 'revoked' END,
  {_VALIDITY}, d.enabled, c.retiring_until, c.batch
FROM psk_credential AS c JOIN device AS d ON d.number = c.device
LEFT JOIN batch AS b ON b.number = c.batch
WHERE c.number = ?"""

_DEVICE = "d.tenant, d.device, d.enabled, d.labels"
_ANCHOR = (
    "name, tenant, key_id, certificate, device_id_source, auto_provision, state,"
    " device_id_template, tenant_template, tenants, labels, max_validity, crl_files, crl_mode,"
    " proof_code"
)
_PSK_ENTRY = (
    f"c.number, d.tenant, d.device, c.identity, {_STATE}, c.added_at, c.not_before, c.not_after,"
    " c.retiring_until, b.name, c.follows"
)
_PAGE = 1000

_DEVICE_ENTRIES = f"""
SELECT {_DEVICE}, d.added_at,
  (SELECT count(*) FROM psk_credential AS c WHERE c.device = d.number),
  (SELECT count(*) FROM certificate_device AS c WHERE c.device = d.number)
FROM device AS d"""


def registry_id(connection: Connection) -> bytes:
    """16 octets, which no other registry has."""
    own: bytes = connection.execute("SELECT id FROM registry").fetchone()[0]
    return own


def find_device(connection: Connection, tenant: Tenant, device: DeviceId) -> Device | None:
    row = connection.execute(
        f"SELECT {_DEVICE} FROM device AS d WHERE tenant = ? AND device = ?", (tenant, device)
    ).fetchone()
    return _device(*row) if row else None


def find_device_number(connection: Connection, tenant: Tenant, device: DeviceId) -> int | None:
    row = connection.execute(
        "SELECT number FROM device WHERE tenant = ? AND device = ?", (tenant, device)
    ).fetchone()
    return row[0] if row else None


def get_device_number(connection: Connection, tenant: Tenant, device: DeviceId) -> int:
    """Raises NotFound."""
    number = find_device_number(connection, tenant, device)
    if number is None:
        raise refusals.device_not_found(tenant, device, tenants_of(connection, device))
    return number


def tenants_of(connection: Connection, device: DeviceId) -> list[str]:
    """The tenants that have a device of this name. Reads the whole index: for refusals."""
    rows = connection.execute(
        "SELECT tenant FROM device WHERE device = ? ORDER BY tenant LIMIT 8", (device,)
    )
    return [tenant for (tenant,) in rows]


def find_certificate_device(connection: Connection, key_id: bytes, value: str) -> Device | None:
    row = connection.execute(
        f"SELECT {_DEVICE} FROM certificate_device AS c JOIN device AS d ON d.number = c.device"
        " WHERE c.key_id = ? AND c.value = ?",
        (key_id, value),
    ).fetchone()
    return _device(*row) if row else None


def find_identity_owner(connection: Connection, identity: bytes) -> tuple[Tenant, DeviceId] | None:
    row = connection.execute(
        "SELECT d.tenant, d.device FROM psk_credential AS c JOIN device AS d"
        " ON d.number = c.device WHERE c.identity = ?",
        (identity,),
    ).fetchone()
    return (row[0], row[1]) if row else None


def anchors(connection: Connection) -> tuple[TrustAnchor, ...]:
    rows = connection.execute(f"SELECT {_ANCHOR} FROM anchor ORDER BY name").fetchall()
    return tuple(_anchor(*row) for row in rows)


def find_anchor(connection: Connection, name: str) -> TrustAnchor | None:
    row = connection.execute(f"SELECT {_ANCHOR} FROM anchor WHERE name = ?", (name,)).fetchone()
    return _anchor(*row) if row else None


def get_anchor(connection: Connection, name: str) -> TrustAnchor:
    """Raises NotFound."""
    anchor = find_anchor(connection, name)
    if anchor is None:
        raise refusals.anchor_not_found(name)
    return anchor


def anchor_devices(connection: Connection, key_id: bytes, used_since: float | None) -> int:
    """Reads every pair of the anchor."""
    (count,) = connection.execute(
        "SELECT count(DISTINCT device) FROM certificate_device WHERE key_id = ?"
        f"{'' if used_since is None else ' AND used_at >= ?'}",
        (key_id,) if used_since is None else (key_id, used_since),
    ).fetchone()
    devices: int = count
    return devices


def max_keys_per_identity(connection: Connection) -> int:
    """Read from the last entry of an index, which holds only what is above 1."""
    (slot,) = connection.execute(
        "SELECT max(slot) FROM psk_credential WHERE slot > 1 AND slot <= ?",
        (MAX_KEYS_PER_IDENTITY,),
    ).fetchone()
    return slot or 1


def device_entries(connection: Connection, tenant: Tenant | None) -> Iterator[DeviceEntry]:
    """In pages, so that however slowly they are taken no read transaction holds the WAL."""
    query = (
        f"{_DEVICE_ENTRIES} WHERE (tenant, device) > (?, ?)"
        f"{'' if tenant is None else ' AND tenant = ?'} ORDER BY tenant, device LIMIT {_PAGE}"
    )
    only = () if tenant is None else (tenant,)
    after: tuple[str, str] = (tenant or "", "")
    while True:
        rows = connection.execute(query, (*after, *only)).fetchall()
        for row in rows:
            yield _device_entry(*row)
        if len(rows) < _PAGE:
            return
        after = (rows[-1][0], rows[-1][1])


def get_device_entry(connection: Connection, tenant: Tenant, device: DeviceId) -> DeviceEntry:
    """Raises NotFound."""
    number = get_device_number(connection, tenant, device)
    row = connection.execute(f"{_DEVICE_ENTRIES} WHERE number = ?", (number,)).fetchone()
    return _device_entry(*row)


def get_psk_entry(connection: Connection, number: int) -> PskEntry:
    """That of a key that is there."""
    row = connection.execute(
        f"SELECT {_PSK_ENTRY} FROM psk_credential AS c JOIN device AS d ON d.number = c.device"
        " LEFT JOIN batch AS b ON b.number = c.batch WHERE c.number = ?",
        (number,),
    ).fetchone()
    return PskEntry(*row)


def psk_entries(
    connection: Connection,
    tenant: Tenant | None,
    device: DeviceId | None,
    batch: int | None = None,
) -> Iterator[PskEntry]:
    """In pages, likewise."""
    wanted = {"d.tenant": tenant, "d.device": device, "c.batch": batch}
    given = {column: name for column, name in wanted.items() if name is not None}
    query = (
        f"SELECT {_PSK_ENTRY} FROM device AS d JOIN psk_credential AS c ON c.device = d.number"
        " LEFT JOIN batch AS b ON b.number = c.batch WHERE c.number > ?"
        f"{''.join(f' AND {column} = ?' for column in given)} ORDER BY c.number LIMIT {_PAGE}"
    )
    after = 0
    while True:
        rows = connection.execute(query, (after, *given.values())).fetchall()
        for row in rows:
            yield PskEntry(*row)
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


def certificate_entries(
    connection: Connection, tenant: Tenant, device: DeviceId
) -> tuple[CertificateEntry, ...]:
    rows = connection.execute(
        "SELECT c.key_id, a.name, c.value, c.used_at FROM device AS d"
        " JOIN certificate_device AS c ON c.device = d.number"
        " LEFT JOIN anchor AS a ON a.key_id = c.key_id"
        " WHERE d.tenant = ? AND d.device = ? ORDER BY c.key_id, c.value",
        (tenant, device),
    ).fetchall()
    return tuple(CertificateEntry(*row) for row in rows)


def _device(tenant: str, device: str, enabled: int, labels: str | None) -> Device:
    return Device(Tenant(tenant), DeviceId(device), bool(enabled), _labels(labels))


def _labels(labels: str | None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(json.loads(labels).items())) if labels else ()


def _device_entry(
    tenant: str,
    device: str,
    enabled: int,
    labels: str | None,
    added_at: float,
    psk_count: int,
    certificate_count: int,
) -> DeviceEntry:
    return DeviceEntry(
        _device(tenant, device, enabled, labels), added_at, psk_count, certificate_count
    )


def _anchor(
    name: str,
    tenant: str,
    key_id: bytes,
    certificate: bytes,
    source: str,
    auto_provision: int,
    state: str,
    device_id_template: str,
    tenant_template: str,
    tenants: str,
    labels: str | None,
    max_validity: float | None,
    crl_files: str,
    crl_mode: str,
    proof_code: str,
) -> TrustAnchor:
    return TrustAnchor(
        name,
        Tenant(tenant),
        key_id,
        certificate,
        DeviceIdSource(source),
        bool(auto_provision),
        state,
        device_id_template,
        tenant_template,
        tuple(json.loads(tenants)),
        _labels(labels),
        max_validity,
        tuple(json.loads(crl_files)),
        crl_mode,
        proof_code,
    )
