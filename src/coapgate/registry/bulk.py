"""Many new devices in one transaction of a SQLite registry.

They are staged in a temporary table first, secrets encrypted: reading a long file takes no lock,
and what is refused is found by joining the stage with the registry.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from coapgate.registry import refusals
from coapgate.registry.base import BadLine, NewDevice
from coapgate.registry.vault import Vault

_CHUNK = 2000  # lines between two reports of progress


@contextmanager
def staged(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """The connection with an empty stage, which goes at the end."""
    connection.execute("DROP TABLE IF EXISTS temp.stage")
    connection.execute(
        "CREATE TEMP TABLE stage (line INTEGER PRIMARY KEY, tenant TEXT, device TEXT,"
        " identity BLOB, secret BLOB)"
    )
    try:
        yield connection
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("DROP TABLE temp.stage")


def stage(
    connection: sqlite3.Connection,
    vault: Vault,
    lines: Iterable[NewDevice | BadLine],
    progress: Callable[[int], None] | None,
) -> list[BadLine]:
    """Take the good lines; the answer is the bad ones."""
    problems: list[BadLine] = []
    remaining = iter(lines)
    count = 0
    while chunk := list(islice(remaining, _CHUNK)):
        rows = []
        for line in chunk:
            if isinstance(line, BadLine):
                problems.append(line)
                continue
            wrapped = vault.wrap(line.secret, line.tenant, line.device, line.identity)
            rows.append((line.line, line.tenant, line.device, line.identity, wrapped))
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO temp.stage VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
        count += len(chunk)
        if progress is not None:
            progress(count)
    return problems


def repeated(connection: sqlite3.Connection) -> list[BadLine]:
    """Lines whose device or identity an earlier line has, and the registry has not."""
    devices = connection.execute(
        "SELECT line, tenant, device, first FROM (SELECT line, tenant, device,"
        " min(line) OVER (PARTITION BY tenant, device) AS first FROM temp.stage) AS s"
        " WHERE line > first AND NOT EXISTS (SELECT 1 FROM main.device AS d"
        " WHERE d.tenant = s.tenant AND d.device = s.device)"
    )
    problems = [refusals.device_on_earlier_line(*row) for row in devices]
    identities = connection.execute(
        "SELECT line, identity, first FROM (SELECT line, identity,"
        " min(line) OVER (PARTITION BY identity) AS first FROM temp.stage) AS s"
        " WHERE line > first AND NOT EXISTS (SELECT 1 FROM main.psk_credential AS c"
        " WHERE c.identity = s.identity)"
    )
    problems += [refusals.identity_on_earlier_line(*row) for row in identities]
    return problems


def conflicting(connection: sqlite3.Connection) -> list[BadLine]:
    """Lines whose device or identity the registry has; in the transaction that inserts."""
    devices = connection.execute(
        "SELECT s.line, s.tenant, s.device FROM temp.stage AS s"
        " JOIN main.device AS d ON d.tenant = s.tenant AND d.device = s.device"
    )
    problems = [refusals.device_exists_on(*row) for row in devices]
    identities = connection.execute(
        "SELECT DISTINCT s.line, s.identity, d.tenant, d.device FROM temp.stage AS s"
        " JOIN main.psk_credential AS c ON c.identity = s.identity"
        " JOIN main.device AS d ON d.number = c.device"
    )
    problems += [refusals.identity_taken_on(*row) for row in identities]
    return problems


def insert(connection: sqlite3.Connection, now: float) -> int:
    """All that is staged; the answer is how many. Each table in the order of its index."""
    connection.execute(
        "INSERT INTO main.device (tenant, device, added_at)"
        " SELECT tenant, device, ? FROM temp.stage ORDER BY tenant, device",
        (now,),
    )
    connection.execute(
        "INSERT INTO main.psk_credential (identity, slot, number, device, secret, added_at)"
        " SELECT s.identity, 1, last + row_number() OVER (ORDER BY s.line), d.number, s.secret, ?"
        " FROM temp.stage AS s CROSS JOIN main.psk_number"
        " JOIN main.device AS d ON d.tenant = s.tenant AND d.device = s.device"
        " ORDER BY s.identity",
        (now,),
    )
    (count,) = connection.execute("SELECT count(*) FROM temp.stage").fetchone()
    connection.execute("UPDATE main.psk_number SET last = last + ?", (count,))
    added: int = count
    return added
