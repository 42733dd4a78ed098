"""First contacts that wait to be written: as many as wait go into one transaction.

Each is synced to the disk before its device is let in, and a whole shelf of devices may be switched
on at once. One transaction for each would be as many as the disk syncs in a second.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from coapgate.errors import RegistryError

MAX_TOGETHER = 256
"""In one transaction: it holds up other writers for some milliseconds."""

_T = TypeVar("_T")
_Write = Callable[[sqlite3.Connection], Any]


class FirstContacts:
    """Asked by the loop's thread, written by another one, which calls `write` once for each that
    was added. Mutable: those that wait."""

    def __init__(self, writing: Callable[[], AbstractContextManager[sqlite3.Connection]]) -> None:
        """`writing` is one write transaction, which raises RegistryError."""
        self._writing = writing
        self._waiting: deque[tuple[_Write, Future[Any]]] = deque()

    def add(self, contact: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        """What `contact` will answer in the transaction; to be cancelled until it is written."""
        registered: Future[_T] = Future()
        self._waiting.append((contact, registered))
        return registered

    def cancel(self) -> None:
        """Those that wait are never written."""
        while self._waiting:
            self._waiting.popleft()[1].cancel()

    def write(self) -> None:
        """Write what waits, if anything still does. Raises nothing."""
        taken: list[tuple[_Write, Future[Any]]] = []
        while self._waiting and len(taken) < MAX_TOGETHER:
            contact, registered = self._waiting.popleft()
            if registered.set_running_or_notify_cancel():
                taken.append((contact, registered))
        if not taken:
            return
        try:
            with self._writing() as connection:
                outcomes = [_register(connection, contact) for contact, _ in taken]
        except BaseException as error:  # none of them is written, and each must hear of it
            for _, registered in taken:
                registered.set_exception(error)
            return
        for (_, registered), outcome in zip(taken, outcomes, strict=True):
            if isinstance(outcome, RegistryError):
                registered.set_exception(outcome)
            else:
                registered.set_result(outcome)


def _register(connection: sqlite3.Connection, contact: _Write) -> Any:
    """What is refused, with a RegistryError, leaves nothing behind, and the others alone."""
    connection.execute("SAVEPOINT contact")
    try:
        return contact(connection)
    except RegistryError as error:
        connection.execute("ROLLBACK TO contact")
        return error
    finally:
        if connection.in_transaction:  # SQLite ends it itself when the disk is full
            connection.execute("RELEASE contact")
