"""Requests that wait for their device, in a SQLite registry."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from coapgate.registry.base import HeldRequest

_COLUMNS = ", ".join(HeldRequest._fields)
_PLACES = ", ".join("?" * (1 + len(HeldRequest._fields)))


def load(connection: sqlite3.Connection, node: int) -> list[HeldRequest]:
    """Those of one gateway, in order of number."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM held_request WHERE node = ? ORDER BY number",  # noqa: S608
        (node,),
    )
    return [HeldRequest(*row) for row in rows]


def change(
    connection: sqlite3.Connection,
    node: int,
    added: Iterable[HeldRequest],
    concluded: Iterable[tuple[int, str]],
    removed: Iterable[int],
) -> None:
    """Add some, then note outcomes, then remove some by their numbers."""
    connection.executemany(
        f"INSERT OR REPLACE INTO held_request (node, {_COLUMNS}) VALUES ({_PLACES})",  # noqa: S608
        [(node, *request) for request in added],
    )
    connection.executemany(
        "UPDATE held_request SET outcome = ?, payload = x'' WHERE node = ? AND number = ?",
        [(outcome, node, number) for number, outcome in concluded],
    )
    connection.executemany(
        "DELETE FROM held_request WHERE node = ? AND number = ?",
        [(node, number) for number in removed],
    )
