"""Which registry it is: what was let in by one does not go on under another."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coapgate.association_file import open_associations
from coapgate.dtls.store import Recovered
from coapgate.errors import RegistryUnavailable
from coapgate.model import Device
from coapgate.registry import reading, schema, writing
from coapgate.registry.sqlite import SqliteRegistry
from tests.dtls.store_book import PATHS, established
from tests.registry.conftest import open_sqlite
from tests.registry.values import DEFAULT, KEY_1, KEY_2, NOW, SENSOR_1, SENSOR_2

SALT = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


def remove(path: Path) -> None:
    for file in path.parent.glob("registry.db*"):
        file.unlink()


def registry_id(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        return reading.registry_id(connection)


def open_first_version(path: Path) -> sqlite3.Connection:
    """A registry as programs had it that knew no id, open as in one of them."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    schema.migrate(connection, path, sorted(schema.scripts())[:1])
    return connection


def recover(folder: Path, registry: SqliteRegistry, *, add: bool = False) -> list[Recovered]:
    """What a gateway finds in the association file beside its registry; it may `add` one."""
    with open_associations(
        folder / "associations.store", 8, registry, boot_id="the boot of the tests", wall=NOW
    ) as store:
        recovered = list(store.recover())
        if add:
            assert store.add(established(0), PATHS[0], 0) >= 0
        return recovered


@pytest.mark.expects_warnings("association file set aside")
def test_associations_of_a_registry_do_not_go_on_under_one_made_anew_beside_its_key_file(
    tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its credentials are numbered from 1 again: its `psk-1` is another key."""
    with open_sqlite(tmp_path) as registry:
        leaked = registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
        recover(tmp_path, registry, add=True)
        assert len(recover(tmp_path, registry)) == 1
    remove(path)

    with open_sqlite(tmp_path) as registry:
        new = registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_2, create_device=True)
        assert new.number == leaked.number
        assert recover(tmp_path, registry) == []

    (record,) = caplog.records
    assert "is of another registry" in record.__dict__["reason"]


def test_registries_beside_one_key_file_derive_different_keys_from_it(
    tmp_path: Path, path: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        first = registry.newest_key_id()
        derived = registry.derive_key(first, SALT)
    remove(path)

    with open_sqlite(tmp_path) as registry:
        assert registry.derive_key(first, SALT) is None
        second = registry.newest_key_id()
        assert second != first
        # Also if a file's header, which is not encrypted, were made to name the other id.
        assert registry.derive_key(second, SALT) not in (derived, None)


def test_a_registry_keeps_its_id_and_no_other_has_it(tmp_path: Path, path: Path) -> None:
    seen = set()
    for _ in range(3):
        open_sqlite(tmp_path).close()
        own = registry_id(path)
        assert len(own) == 16
        with open_sqlite(tmp_path) as registry:
            registry.add_device(Device(DEFAULT, SENSOR_1))
        assert registry_id(path) == own
        seen.add(own)
        remove(path)

    assert len(seen) == 3


def test_a_registry_of_the_first_version_gets_an_id_once(tmp_path: Path, path: Path) -> None:
    with closing(open_first_version(path)) as old:
        writing.add_device(old, Device(DEFAULT, SENSOR_1), NOW)

    with open_sqlite(tmp_path) as registry:
        assert [entry.device.device for entry in registry.devices()] == [SENSOR_1]
        key_id = registry.newest_key_id()
    own = registry_id(path)

    with open_sqlite(tmp_path) as registry:
        assert registry.newest_key_id() == key_id
    assert registry_id(path) == own


def test_an_older_gateway_goes_on_while_its_registry_is_brought_up_to_date(
    tmp_path: Path, path: Path
) -> None:
    """A command of a newer program does that; to the older one it is one more table."""
    with closing(open_first_version(path)) as gateway:
        writing.add_device(gateway, Device(DEFAULT, SENSOR_1), NOW)

        with open_sqlite(tmp_path) as administration:
            administration.add_device(Device(DEFAULT, SENSOR_2))

            assert reading.find_device(gateway, DEFAULT, SENSOR_2) == Device(DEFAULT, SENSOR_2)
            writing.enable_device(gateway, DEFAULT, SENSOR_2, enabled=False)
            assert not administration.get_device(DEFAULT, SENSOR_2).device.enabled


def test_a_registry_of_the_first_version_that_cannot_be_written_now_is_left_as_it_is(
    tmp_path: Path, path: Path
) -> None:
    with closing(open_first_version(path)) as old:
        old.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnavailable, match="database is locked") as caught:
            SqliteRegistry.open(
                "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=0
            )
        assert "another coapgate command is writing" in caught.value.hint
        old.execute("ROLLBACK")
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
    open_sqlite(tmp_path).close()


def test_a_registry_of_the_first_version_that_is_read_only_is_unavailable(
    tmp_path: Path, path: Path
) -> None:
    """`coapgate check` says so too, and not that all is well: the gateway could not start."""
    open_first_version(path).close()
    reader = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)

    with closing(reader), pytest.raises(sqlite3.OperationalError, match="readonly") as caught:
        schema.migrate(reader, path, sorted(schema.scripts()))
    error = schema.unavailable(caught.value, path)
    assert isinstance(error, RegistryUnavailable)
    assert "run as the user that owns it" in error.hint
    open_sqlite(tmp_path).close()


def test_a_registry_without_its_id_is_unavailable(tmp_path: Path, path: Path) -> None:
    open_sqlite(tmp_path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE registry")

    with pytest.raises(RegistryUnavailable, match="no such table: registry"):
        open_sqlite(tmp_path)
