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

from coapgate.errors import RegistryError
from coapgate.model import PskCredential
from coapgate.registry import rotation

MAX_TOGETHER = 256
"""In one transaction: it holds up other writers for some milliseconds."""

Registered = tuple[int, bool]
"""The number of the key, and whether its device was made for it."""


class FirstContacts:
    """Asked by the loop's thread, written by another one, which calls `write` once for each that
    was added. Mutable: those that wait."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        wall: Callable[[], float],
    ) -> None:
        """`writing` is one write transaction, which raises RegistryError."""
        self._writing = writing
        self._wall = wall
        self._waiting: deque[tuple[PskCredential, Future[Registered]]] = deque()

    def add(self, derived: PskCredential) -> Future[Registered]:
        """What `rotation.register_derived` will answer; to be cancelled until it is written."""
        registered: Future[Registered] = Future()
        self._waiting.append((derived, registered))
        return registered

    def cancel(self) -> None:
        """Those that wait are never written."""
        while self._waiting:
            self._waiting.popleft()[1].cancel()

    def write(self) -> None:
        """Write what waits, if anything still does. Raises nothing."""
        taken: list[tuple[PskCredential, Future[Registered]]] = []
        while self._waiting and len(taken) < MAX_TOGETHER:
            derived, registered = self._waiting.popleft()
            if registered.set_running_or_notify_cancel():
                taken.append((derived, registered))
        if not taken:
            return
        outcomes: list[Registered | RegistryError] = []
        try:
            with self._writing() as connection:
                outcomes += [_register(connection, each, self._wall()) for each, _ in taken]
        except BaseException as error:  # none of them is written, and each must hear of it
            for _, registered in taken:
                registered.set_exception(error)
            return
        for (_, registered), outcome in zip(taken, outcomes, strict=True):
            if isinstance(outcome, RegistryError):
                registered.set_exception(outcome)
            else:
                registered.set_result(outcome)


def _register(
    connection: sqlite3.Connection, derived: PskCredential, now: float
) -> Registered | RegistryError:
    """What is refused leaves nothing behind, and the others alone."""
    connection.execute("SAVEPOINT contact")
    try:
        return rotation.register_derived(connection, derived, now)
    except RegistryError as error:
        connection.execute("ROLLBACK TO contact")
        return error
    finally:
        if connection.in_transaction:  # SQLite ends it itself when the disk is full
            connection.execute("RELEASE contact")
