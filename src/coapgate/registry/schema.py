"""Opening a SQLite registry: where it is, who may read it, and which version it has.

The version is `PRAGMA user_version`: the number of the last script of `migrations/` it has seen.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from coapgate.errors import RegistryError, RegistryUnavailable

APPLICATION_ID = 0x436F4170
"""`CoAp`: `file` and sqlite3 tell a registry from any other database by it."""

_SCRIPT = re.compile(r"(\d{4})_\w+\.sql")
_WAL_INTERVAL = 0.01  # seconds between two attempts to switch a new registry to WAL mode
_MINIMAL_SQLITE = (3, 37, 0)  # STRICT tables


def parse_url(url: str, base: Path) -> Path:
    """The file that `sqlite:///relative.db` or `sqlite:////absolute.db` names.

    Raises RegistryError.
    """
    name = url.removeprefix("sqlite:///")
    if name == url or not name or "\0" in name:
        raise RegistryError(
            f"registry.url {url!r} is not understood",
            "write sqlite:///registry.db (beside the configuration) or sqlite:////var/lib/...",
        )
    return base / name


def connect(path: Path, *, create: bool, busy_timeout: float) -> sqlite3.Connection:
    """Open a registry for writing, at the version of this program.

    `create` makes a new file (mode 0600) where there is none. The caller sees to it that one
    thread at a time uses the connection.

    Raises RegistryError if it is missing, no registry or newer than this program, and
    RegistryUnavailable if it cannot be opened now.
    """
    if sqlite3.sqlite_version_info < _MINIMAL_SQLITE:
        raise RegistryError(
            f"SQLite {sqlite3.sqlite_version} is too old",
            "Python's sqlite3 module must be built on SQLite 3.37 or newer",
        )
    _find_or_create(path, create=create)
    connection = _connect(path, busy_timeout, any_thread=True)
    try:
        _check_kind(connection, path)
        _use_wal(connection, busy_timeout)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        migrate(connection, path, sorted(scripts()))
    except sqlite3.Error as error:
        connection.close()
        raise unavailable(error, path) from error
    except RegistryError:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """A second connection to a registry that is open, for look-ups alone.

    Raises RegistryUnavailable.
    """
    connection = _connect(path, busy_timeout, any_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cache_size = -16384")  # KiB: the upper tree of a million rows
    except sqlite3.Error as error:
        connection.close()
        raise unavailable(error, path) from error
    return connection


def migrate(
    connection: sqlite3.Connection, path: Path, numbered: Sequence[tuple[int, str]]
) -> None:
    """Run the scripts that a registry has not seen, in one transaction.

    Raises RegistryError if it has seen more than there are.
    """
    newest = numbered[-1][0]
    if _version(connection) == newest:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)  # again: another process may have been faster
        if version > newest:
            raise RegistryError(
                f"registry {str(path)!r} has version {version}; this program knows {newest}",
                "a newer coapgate has used it: install that one, or restore a backup",
            )
        for number, script in numbered:
            if number > version:
                for statement in _statements(script):
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {newest}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it itself when the disk is full
            connection.execute("ROLLBACK")
        raise


def scripts() -> Iterator[tuple[int, str]]:
    """(number, SQL) of each script, in no order."""
    for file in resources.files("coapgate.registry.migrations").iterdir():
        match = _SCRIPT.fullmatch(file.name)
        if match:
            yield int(match[1]), file.read_text(encoding="utf-8")


def unavailable(error: sqlite3.Error, path: Path) -> Exception:
    """What an error of SQLite means to whoever asked; a mistake in our SQL stays what it is."""
    if isinstance(
        error, sqlite3.ProgrammingError | sqlite3.InterfaceError | sqlite3.NotSupportedError
    ):
        return error
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = "another coapgate command is writing: try again when it is done"
    elif code == sqlite3.SQLITE_FULL:
        hint = "the disk is full"
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        hint = "run as the user that owns it and its folder"
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        hint = "restore it from its backup"
    else:
        hint = "see whether its disk is well"
    return RegistryUnavailable(f"registry {str(path)!r} cannot be used: {error}", hint)


def _find_or_create(path: Path, *, create: bool) -> None:
    try:
        path.stat()
        return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RegistryUnavailable(
            f"registry {str(path)!r} cannot be used: {error.strerror}",
            "run as the user that owns it and its folder",
        ) from error
    if not create:
        raise RegistryError(
            f"there is no registry {str(path)!r}",
            "the first `coapgate device add`, `psk add` or `anchor add` creates it",
        )
    try:
        # Before SQLite would, which takes the umask's mode; its WAL gets the mode of this file.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return  # another process was faster
    except OSError as error:
        raise RegistryError(
            f"registry {str(path)!r} cannot be created: {error.strerror}",
            "`registry.url` in the configuration says where it is",
        ) from error


def _connect(path: Path, busy_timeout: float, *, any_thread: bool) -> sqlite3.Connection:
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=busy_timeout,
            isolation_level=None,  # transactions are begun by name
            check_same_thread=not any_thread,
        )
    except sqlite3.Error as error:
        raise unavailable(error, path) from error


def _use_wal(connection: sqlite3.Connection, busy_timeout: float) -> None:
    """Switch a new registry to WAL mode, which stays. For this lock SQLite itself never waits."""
    give_up_at = time.monotonic() + busy_timeout
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Another process is making the same registry.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(_WAL_INTERVAL)


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    # One look at both: between two another process may have made the tables.
    connection.execute("BEGIN")
    (kind,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.execute("COMMIT")
    if kind == APPLICATION_ID:
        return
    if kind != 0 or tables:
        raise RegistryError(
            f"{str(path)!r} is a database, but no coapgate registry",
            "`registry.url` in the configuration says where it is",
        )


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
