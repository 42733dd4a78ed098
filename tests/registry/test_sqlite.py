"""A registry in a file: who may read it, its version, and several processes at once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from coapgate.errors import AlreadyExists, BatchFull, RegistryError, RegistryUnavailable
from coapgate.model import Batch, Device, DeviceId, PskState, Tenant
from coapgate.registry import reading, schema
from coapgate.registry.base import (
    MAX_CHANGES,
    MAX_REVOKED_CERTIFICATES,
    Change,
    HeldRequest,
    RevokedCertificate,
)
from coapgate.registry.batches import MAX_ACTIVE_BATCHES
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.registry.vault import Vault
from tests.registry.conftest import open_sqlite
from tests.registry.values import DEFAULT, FACTORY, KEY_1, KEY_2, SENSOR_1, SENSOR_2
from tests.waiting import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


# The file.


def test_a_registry_is_its_owners_alone_whatever_the_umask(tmp_path: Path, path: Path) -> None:
    before = os.umask(0)
    try:
        with open_sqlite(tmp_path) as registry:
            registry.add_device(Device(DEFAULT, SENSOR_1))
            for file in tmp_path.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
            assert len(list(tmp_path.iterdir())) == 3  # with its WAL and the WAL's index
    finally:
        os.umask(before)
    assert [file.name for file in tmp_path.iterdir()] == ["registry.db"]


def test_a_registry_is_a_coapgate_registry_to_those_who_ask(tmp_path: Path, path: Path) -> None:
    open_sqlite(tmp_path).close()

    assert path.read_bytes()[68:72] == b"CoAp"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///registry.db", "/base/registry.db"),
        ("sqlite:///data/a b%20?#.db", "/base/data/a b%20?#.db"),
        ("sqlite:////var/lib/coapgate/registry.db", "/var/lib/coapgate/registry.db"),
    ],
)
def test_a_url_names_a_file_beside_the_configuration_or_anywhere(url: str, name: str) -> None:
    assert str(schema.parse_url(url, Path("/base"))) == name


@pytest.mark.parametrize(
    "url", ["", "registry.db", "sqlite://registry.db", "sqlite:///", "postgresql://h/d"]
)
def test_another_url_is_an_error_that_shows_the_forms(url: str) -> None:
    with pytest.raises(RegistryError, match="is not understood") as caught:
        schema.parse_url(url, Path("/base"))
    assert "sqlite:///registry.db" in caught.value.hint


def test_a_file_name_may_hold_what_means_something_in_a_url(tmp_path: Path) -> None:
    name = "a b%20?mode=ro#.db"
    with SqliteRegistry.open(f"sqlite:///{name}", tmp_path / "key", tmp_path) as registry:
        registry.add_device(Device(DEFAULT, SENSOR_1))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_registry_that_does_not_exist_is_made_only_if_asked_to(
    tmp_path: Path, path: Path
) -> None:
    with pytest.raises(RegistryError, match="there is no registry"):
        SqliteRegistry.open("sqlite:///registry.db", tmp_path / "key", tmp_path, create=False)
    assert not path.exists()


def test_a_registry_in_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be created: No such file"):
        open_sqlite(tmp_path / "nowhere")


def test_a_registry_that_cannot_be_looked_for_is_unavailable(tmp_path: Path, path: Path) -> None:
    path.touch()

    with pytest.raises(RegistryUnavailable, match="Not a directory"):
        open_sqlite(path)


def test_a_registry_that_others_never_stop_making_is_unavailable(
    tmp_path: Path, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM sqlite_master").fetchall()

    with pytest.raises(RegistryUnavailable, match="database is locked"):
        SqliteRegistry.open(
            "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=0.03
        )
    other.close()
    open_sqlite(tmp_path).close()


def test_a_registry_opens_while_another_process_writes(tmp_path: Path, path: Path) -> None:
    with open_sqlite(tmp_path) as registry:
        registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with SqliteRegistry.open(
            "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=0
        ) as gateway:
            assert len(list(gateway.devices())) == 1
        other.close()


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path, path: Path) -> None:
    path.write_text("hello, " * 100)

    with pytest.raises(RegistryUnavailable, match="file is not a database"):
        open_sqlite(tmp_path)
    assert path.read_text() == "hello, " * 100


def test_a_database_of_something_else_is_left_alone(tmp_path: Path, path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE device (id)")
    other.close()
    before = path.read_bytes()

    with pytest.raises(RegistryError, match="is a database, but no coapgate registry"):
        open_sqlite(tmp_path)
    assert path.read_bytes() == before


# Its version.


def test_a_registry_that_a_newer_program_has_used_is_refused(tmp_path: Path, path: Path) -> None:
    open_sqlite(tmp_path).close()
    with sqlite3.connect(path) as other:
        (version,) = other.execute("PRAGMA user_version").fetchone()
        other.execute(f"PRAGMA user_version = {version + 1}")
    other.close()

    with pytest.raises(
        RegistryError, match=f"has version {version + 1}; this program knows {version}"
    ) as caught:
        open_sqlite(tmp_path)
    assert "newer coapgate" in caught.value.hint


def test_migrations_are_numbered_once_each() -> None:
    numbers = sorted(number for number, _ in schema.scripts())

    assert numbers == list(range(1, len(numbers) + 1))


def test_a_migration_that_fails_leaves_nothing_behind(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection, path, [(1, "CREATE TABLE a (b);\nCREATE NONSENSE;\n")])

    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    connection.close()


def test_a_registry_is_taken_through_the_versions_it_has_not_seen(path: Path) -> None:
    first = (1, "CREATE TABLE a (b); -- one; two\nINSERT INTO a VALUES (';');\n")
    second = (2, "ALTER TABLE a ADD COLUMN c;\n")
    connection = sqlite3.connect(path, isolation_level=None)

    schema.migrate(connection, path, [first])
    schema.migrate(connection, path, [first, second])
    schema.migrate(connection, path, [first, second])

    assert connection.execute("SELECT b, c FROM a").fetchall() == [(";", None)]
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


async def test_a_registry_of_an_earlier_version_keeps_what_it_holds(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as registry:
        registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
        (wrapped,) = registry._writer.execute("SELECT secret FROM psk_credential").fetchone()
        registry_id = reading.registry_id(registry._writer)
        (key_row,) = registry._writer.execute("SELECT * FROM wrapping_key").fetchall()
    path = tmp_path / "registry.db"
    path.unlink()
    old = sqlite3.connect(path, isolation_level=None)
    schema.migrate(old, path, sorted(schema.scripts())[:2])
    old.execute("UPDATE registry SET id = ?", (registry_id,))
    old.execute("INSERT INTO wrapping_key VALUES (?, ?)", key_row)
    old.execute("INSERT INTO device (tenant, device, added_at) VALUES ('default', 'sensor-1', 1)")
    old.execute("UPDATE psk_number SET last = 2")
    for number, state in ((1, "active"), (2, "pending")):
        old.execute(
            "INSERT INTO psk_credential (identity, slot, number, device, secret, state, added_at)"
            " VALUES (CAST('sensor-1' AS BLOB), ?, ?, 1, ?, ?, 2)",
            (number, number, wrapped, state),
        )
    old.execute(
        "INSERT INTO anchor (name, tenant, key_id, certificate, device_id_source, auto_provision,"
        " state, added_at) VALUES (?, ?, ?, ?, ?, 1, 'active', 3)",
        ("factory", DEFAULT, FACTORY.key_id, FACTORY.certificate, "serial-number"),
    )
    old.close()

    with open_sqlite(tmp_path) as registry:
        keys = await registry.find_psk(b"sensor-1")
        assert [(key.number, key.state, key.secret) for key in keys] == [
            (1, "active", KEY_1),
            (2, "backup", KEY_1),
        ]
        assert await registry.anchors() == (FACTORY,)
        assert registry.newest_change() == 0
        assert await registry.promote(2, 60.0)


def test_the_change_log_forgets_what_is_old(sqlite: SqliteRegistry) -> None:
    sqlite.add_device(Device(DEFAULT, SENSOR_1))
    sqlite._writer.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO change (kind, tenant) SELECT 'batch', 'default' FROM n",
        (MAX_CHANGES + 5,),
    )

    assert sqlite.newest_change() == MAX_CHANGES + 5
    assert sqlite.changes(4) is None
    kept = sqlite.changes(5)
    assert kept is not None
    assert len(kept) == MAX_CHANGES
    with closing(sqlite3.connect(sqlite.path)) as other:
        assert other.execute("SELECT count(*) FROM change").fetchone() == (MAX_CHANGES,)


def test_so_many_certificates_are_revoked_one_by_one_and_no_more(sqlite: SqliteRegistry) -> None:
    sqlite._writer.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO revoked_certificate (key_id, serial, added_at)"
        " SELECT ?, CAST(i AS BLOB), 0 FROM n",
        (MAX_REVOKED_CERTIFICATES, FACTORY.key_id),
    )

    with pytest.raises(RegistryError, match="100000 certificates are revoked") as refused:
        sqlite.revoke_certificate(RevokedCertificate(FACTORY.key_id, fingerprint=b"f" * 8))

    assert "CRL" in refused.value.hint
    assert len(sqlite.revoked_certificates_all()) == MAX_REVOKED_CERTIFICATES


def test_changes_of_a_registry_that_breaks_are_unavailable(sqlite: SqliteRegistry) -> None:
    sqlite._reader.execute("PRAGMA query_only = OFF")
    sqlite._reader.execute("DROP TABLE change")

    with pytest.raises(RegistryUnavailable):
        sqlite.newest_change()
    with pytest.raises(RegistryUnavailable):
        sqlite.changes(0)


def test_a_change_shows_to_another_process(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as gateway, open_sqlite(tmp_path) as administration:
        administration.add_device(Device(DEFAULT, SENSOR_1))
        before = gateway.newest_change()

        administration.enable_device(DEFAULT, SENSOR_1, enabled=False)

        assert gateway.changes(before) == (Change(before + 1, "device", DEFAULT, SENSOR_1),)
        assert gateway.newest_change() == before + 1


async def test_fifty_first_contacts_in_four_processes_register_a_device_once(
    tmp_path: Path,
) -> None:
    batch = Batch(0, "line-1", DEFAULT, "acme-", "", max_devices=3)
    with open_sqlite(tmp_path) as administration:
        administration.add_batch(batch, KEY_2)
    gateways = [open_sqlite(tmp_path) for _ in range(4)]
    try:
        candidates = [await gateway.find_psk(b"acme-1") for gateway in gateways]
        answers = await asyncio.gather(
            *(
                gateways[number % 4].register_derived(candidates[number % 4][0])
                for number in range(50)
            )
        )
        assert len({key.number for key, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1
        assert [entry.device.device for entry in gateways[0].devices()] == ["acme-1"[5:]]
    finally:
        for gateway in gateways:
            gateway.close()


async def test_first_contacts_that_wait_are_written_together(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as gateway, open_sqlite(tmp_path) as other:
        other.add_batch(Batch(0, "line-1", DEFAULT, "acme-", "", 250), KEY_2)
        other.add_device(Device(DEFAULT, DeviceId("7")))
        candidates = [(await gateway.find_psk(b"acme-%d" % each))[0] for each in range(300)]
        statements: list[str] = []
        gateway._writer.set_trace_callback(statements.append)
        other._writer.execute("BEGIN IMMEDIATE")
        contacts = [
            asyncio.ensure_future(gateway.register_derived(candidate)) for candidate in candidates
        ]
        await until(gateway._lock.locked, "the first is being written")
        contacts[-1].cancel()  # while it waits
        other._writer.execute("ROLLBACK")

        answers = await asyncio.gather(*contacts, return_exceptions=True)

        assert statements.count("COMMIT") <= 3
        assert isinstance(answers[7], AlreadyExists)
        assert isinstance(answers[-1], asyncio.CancelledError)
        assert sum(isinstance(answer, BatchFull) for answer in answers) == 300 - 250 - 2
        assert len({answer[0].number for answer in answers if isinstance(answer, tuple)}) == 250
        assert gateway.get_batch("line-1").device_count == 250
        assert len(list(gateway.devices())) == 251


async def test_devices_that_certificates_bring_into_being_are_written_together(
    tmp_path: Path,
) -> None:
    with open_sqlite(tmp_path) as gateway, open_sqlite(tmp_path) as other:
        other.add_anchor(FACTORY)
        other.add_device(Device(FACTORY.tenant, DeviceId("7")))
        statements: list[str] = []
        gateway._writer.set_trace_callback(statements.append)
        other._writer.execute("BEGIN IMMEDIATE")
        contacts = [
            asyncio.ensure_future(gateway.provision(FACTORY, DeviceId(str(each)), str(each)))
            for each in (*range(100), *range(100))
        ]
        await until(gateway._lock.locked, "the first is being written")
        other._writer.execute("ROLLBACK")

        answers = await asyncio.gather(*contacts, return_exceptions=True)

        assert statements.count("COMMIT") <= 2
        assert [answers.index(each) for each in answers if isinstance(each, AlreadyExists)] == [
            7,
            107,
        ]
        assert len(list(gateway.devices())) == 100


async def test_first_contacts_that_cannot_be_written_are_all_told(tmp_path: Path) -> None:
    with (
        SqliteRegistry.open(
            "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=0.05
        ) as gateway,
        open_sqlite(tmp_path) as other,
    ):
        other.add_batch(Batch(0, "line-1", DEFAULT, "acme-", "", 250), KEY_2)
        candidates = [(await gateway.find_psk(b"acme-%d" % each))[0] for each in range(20)]
        other._writer.execute("BEGIN IMMEDIATE")

        answers = await asyncio.gather(
            *map(gateway.register_derived, candidates), return_exceptions=True
        )

        assert all(isinstance(answer, RegistryUnavailable) for answer in answers)
        other._writer.execute("ROLLBACK")
        assert (await gateway.register_derived(candidates[0]))[1]


async def test_a_batch_shows_to_a_gateway_at_once(tmp_path: Path) -> None:
    with (
        SqliteRegistry.open(
            "sqlite:///registry.db",
            tmp_path / "registry.key",
            tmp_path,
            refresh_interval=3600.0,
        ) as gateway,
        open_sqlite(tmp_path) as administration,
    ):
        assert await gateway.find_psk(b"acme-1") == ()
        administration.add_batch(Batch(0, "line-1", DEFAULT, "acme-", "", 3), KEY_2)
        assert len(await gateway.find_psk(b"acme-1")) == 1

        administration.revoke_batch("line-1")
        assert await gateway.find_psk(b"acme-1") == ()


async def test_a_registry_without_its_key_file_is_unavailable_to_devices_of_a_batch(
    tmp_path: Path,
) -> None:
    with open_sqlite(tmp_path) as administration:
        administration.add_batch(Batch(0, "line-1", DEFAULT, "acme-", "", 3), KEY_2)
    with open_sqlite(tmp_path) as gateway:
        (tmp_path / "registry.key").rename(tmp_path / "lost.key")
        gateway._snapshot._vault = Vault(tmp_path / "registry.key", bytes(16))

        with pytest.raises(RegistryUnavailable, match="key file"):
            await gateway.find_psk(b"acme-1")
        assert await gateway.anchors() == ()  # what needs no key goes on

        (tmp_path / "lost.key").rename(tmp_path / "registry.key")
        assert len(await gateway.find_psk(b"acme-1")) == 1


async def test_a_locked_registry_promotes_later(tmp_path: Path) -> None:
    with (
        SqliteRegistry.open(
            "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=0.05
        ) as gateway,
        open_sqlite(tmp_path) as other,
    ):
        other.add_psk(DEFAULT, SENSOR_1, b"a", KEY_1, create_device=True)
        backup = other.add_psk(DEFAULT, SENSOR_1, b"a", KEY_2, state=PskState.BACKUP)
        other._writer.execute("BEGIN IMMEDIATE")

        with pytest.raises(RegistryUnavailable, match="locked"):
            await gateway.promote(backup.number, 60.0)
        assert [key.state for key in await gateway.find_psk(b"a")] == ["active", "backup"]

        other._writer.execute("ROLLBACK")
        assert await gateway.promote(backup.number, 60.0)


async def test_a_backup_is_promoted_once_over_four_processes(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as administration:
        administration.add_psk(DEFAULT, SENSOR_1, b"a", KEY_1, create_device=True)
        backup = administration.add_psk(DEFAULT, SENSOR_1, b"a", KEY_2, state=PskState.BACKUP)
    gateways = [open_sqlite(tmp_path) for _ in range(4)]
    try:
        answers = await asyncio.gather(
            *(gateways[number % 4].promote(backup.number, 60.0) for number in range(40))
        )
        assert sum(answers) == 1
    finally:
        for gateway in gateways:
            gateway.close()


async def test_every_identity_costs_one_statement_whether_it_is_known_or_not(
    sqlite: SqliteRegistry,
) -> None:
    sqlite.add_batch(Batch(0, "line-1", DEFAULT, "acme-", "", max_devices=3), KEY_2)
    sqlite.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
    (derived,) = await sqlite.find_psk(b"acme-1")
    await sqlite.register_derived(derived)
    await sqlite.find_psk(b"stranger")
    statements: list[str] = []
    sqlite._reader.set_trace_callback(statements.append)

    for number, identity in enumerate((b"sensor-1", b"acme-1", b"acme-2", b"stranger")):
        statements.clear()
        await sqlite.find_psk(identity)
        assert len(statements) == 1

        sqlite.add_device(Device(DEFAULT, DeviceId(f"other-{number}")))
        statements.clear()
        await sqlite.find_psk(identity)
        assert len(statements) == 1  # and whatever others have written


async def test_batches_that_changed_are_read_by_whoever_comes_next(
    sqlite: SqliteRegistry,
) -> None:
    sqlite.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
    statements: list[str] = []
    for number, identity in enumerate((b"sensor-1", b"stranger", b"batch-2-1")):
        sqlite.add_batch(Batch(0, f"line-{number}", DEFAULT, f"batch-{number}-", "", 3), KEY_2)
        sqlite._reader.set_trace_callback(statements.append)
        statements.clear()
        await sqlite.find_psk(identity)
        await sqlite.find_psk(identity)
        assert len(statements) == 3
        sqlite._reader.set_trace_callback(None)


async def test_no_more_than_a_thousand_batches_are_active(sqlite: SqliteRegistry) -> None:
    sqlite.add_batch(Batch(0, "line-0", DEFAULT, "0-", "", 3), KEY_2)
    sqlite._writer.executemany(
        "INSERT INTO batch (tenant, name, prefix, secret, max_devices, added_at)"
        " VALUES ('default', ?, ?, (SELECT secret FROM batch), 3, 0)",
        ((f"line-{number}", f"{number}-") for number in range(1, MAX_ACTIVE_BATCHES)),
    )
    with pytest.raises(RegistryError, match="1000 batches are active"):
        sqlite.add_batch(Batch(0, "line-x", DEFAULT, "x-", "", 3), KEY_2)

    sqlite.revoke_batch("line-7")
    sqlite.add_batch(Batch(0, "line-x", DEFAULT, "x-", "", 3), KEY_2)


async def test_a_write_that_has_begun_is_waited_for_by_whoever_is_cancelled(
    tmp_path: Path,
) -> None:
    with open_sqlite(tmp_path) as gateway, open_sqlite(tmp_path) as other:
        other.add_psk(DEFAULT, SENSOR_1, b"a", KEY_1, create_device=True)
        backup = other.add_psk(DEFAULT, SENSOR_1, b"a", KEY_2, state=PskState.BACKUP)
        other._writer.execute("BEGIN IMMEDIATE")
        begun = asyncio.ensure_future(gateway.promote(backup.number, 60.0))
        queued = asyncio.ensure_future(gateway.promote(backup.number, 60.0))
        await until(gateway._lock.locked, "the write has begun")

        begun.cancel()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued  # nothing was written for it, and nothing will be
        other._writer.execute("ROLLBACK")

        assert await begun
        assert not await gateway.promote(backup.number, 60.0)


def test_the_schema_itself_gives_an_identity_one_device(
    sqlite: SqliteRegistry,
) -> None:
    sqlite.add_psk(DEFAULT, SENSOR_1, b"one", KEY_1, create_device=True)
    sqlite.add_device(Device(DEFAULT, SENSOR_2))

    for device, identity, slot, message in (
        (2, b"one", 2, "the identity belongs to another device"),
        (1, b"one", 1, "UNIQUE constraint failed"),
        (3, b"two", 1, "FOREIGN KEY constraint failed"),
        (1, b"", 1, "CHECK constraint failed"),
        (1, b"i" * 129, 1, "CHECK constraint failed"),
    ):
        with pytest.raises(sqlite3.IntegrityError, match=message):
            sqlite._writer.execute(
                "INSERT INTO psk_credential (identity, slot, number, device, secret, added_at)"
                " VALUES (?, ?, 99, ?, x'00', 0)",
                (identity, slot, device),
            )


# Several processes.


async def test_two_connections_see_each_others_changes(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as gateway, open_sqlite(tmp_path) as administration:
        assert await gateway.anchors() == ()
        assert gateway.max_keys_per_identity() == 1

        administration.add_anchor(FACTORY)
        administration.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
        administration.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_2)

        anchors = await gateway.anchors()
        assert anchors == (FACTORY,)
        assert gateway.max_keys_per_identity() == 2
        assert len(await gateway.find_psk(b"sensor-1")) == 2
        assert await gateway.anchors() is anchors  # nothing has changed: nothing is read

        await gateway.provision(FACTORY, SENSOR_2, "sensor-2")
        assert administration.get_device(DEFAULT, SENSOR_2).certificate_count == 1
        administration.remove_anchor("factory")
        assert await gateway.anchors() == ()


def test_one_more_key_shows_in_the_work_of_all_within_the_refresh_interval(tmp_path: Path) -> None:
    now = 100.0
    with (
        SqliteRegistry.open(
            "sqlite:///registry.db",
            tmp_path / "registry.key",
            tmp_path,
            refresh_interval=0.5,
            clock=lambda: now,
        ) as gateway,
        open_sqlite(tmp_path) as administration,
    ):
        assert gateway.max_keys_per_identity() == 1
        administration.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
        administration.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_2)

        now = 100.25
        assert gateway.max_keys_per_identity() == 1
        now = 100.5
        assert gateway.max_keys_per_identity() == 2


def add_devices_in_processes(folder: Path) -> None:
    """20 devices each by 4 processes, all at once."""
    program = (
        "import sys, pathlib\n"
        "from coapgate.registry.sqlite import SqliteRegistry\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with SqliteRegistry.open('sqlite:///registry.db', folder / 'registry.key', folder) as r:\n"
        "    for number in range(20):\n"
        "        name = f'{sys.argv[2]}-{number}'\n"
        "        r.add_psk('default', name, name.encode(), b'k' * 16, create_device=True)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), f"process{number}"])
        for number in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4


async def test_processes_that_make_a_registry_and_its_key_file_at_once_share_it(
    tmp_path: Path,
) -> None:
    add_devices_in_processes(tmp_path)

    with open_sqlite(tmp_path) as gateway:
        for process in range(4):
            for number in range(20):
                (key,) = await gateway.find_psk(f"process{process}-{number}".encode())
                assert key.secret == b"k" * 16
        assert sorted(entry.number for entry in gateway.psks()) == list(range(1, 81))


async def test_a_writer_that_does_not_let_go_stops_no_look_up(tmp_path: Path, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    with SqliteRegistry.open(
        "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=0.05
    ) as gateway:
        gateway.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
        other.execute("BEGIN EXCLUSIVE")

        assert len(await gateway.find_psk(b"sensor-1")) == 1
        assert await gateway.anchors() == ()
        with pytest.raises(RegistryUnavailable, match="database is locked") as caught:
            gateway.add_device(Device(DEFAULT, SENSOR_2))
        assert "another coapgate command is writing" in caught.value.hint

        other.execute("ROLLBACK")
        gateway.add_device(Device(DEFAULT, SENSOR_2))
    other.close()


async def test_a_locked_registry_does_not_hold_the_loop_up_while_it_provisions(
    tmp_path: Path, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    with SqliteRegistry.open(
        "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, write_timeout=30
    ) as gateway:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.TaskGroup() as tasks:
            provisioning = tasks.create_task(gateway.provision(FACTORY, SENSOR_1, "sensor-1"))
            await asyncio.sleep(0)
            assert await gateway.find_device(DEFAULT, SENSOR_1) is None
            assert not provisioning.done()
            other.execute("ROLLBACK")
        assert provisioning.result() == Device(DEFAULT, SENSOR_1)
    other.close()


async def test_a_registry_that_breaks_is_unavailable_and_never_an_empty_answer(
    sqlite: SqliteRegistry,
) -> None:
    sqlite.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
    for table in ("psk_credential", "certificate_device", "anchor", "device"):
        sqlite._writer.execute(f"ALTER TABLE {table} RENAME TO lost_{table}")

    with pytest.raises(RegistryUnavailable):
        await sqlite.find_psk(b"sensor-1")
    with pytest.raises(RegistryUnavailable):
        await sqlite.find_psk_number(1)
    with pytest.raises(RegistryUnavailable):
        await sqlite.find_device(DEFAULT, SENSOR_1)
    with pytest.raises(RegistryUnavailable):
        await sqlite.find_certificate_device(FACTORY.key_id, "sensor-1")
    with pytest.raises(RegistryUnavailable):
        await sqlite.anchors()
    with pytest.raises(RegistryUnavailable):
        sqlite.max_keys_per_identity()
    with pytest.raises(RegistryUnavailable):
        await sqlite.provision(FACTORY, SENSOR_2, "sensor-2")


async def test_a_secret_that_is_moved_to_another_device_proves_nothing(
    sqlite: SqliteRegistry,
) -> None:
    sqlite.add_psk(DEFAULT, SENSOR_1, b"one", KEY_1, create_device=True)
    sqlite.add_psk(DEFAULT, SENSOR_2, b"two", KEY_2, create_device=True)
    sqlite._writer.execute(
        "UPDATE psk_credential SET secret ="
        " (SELECT secret FROM psk_credential WHERE identity = x'6f6e65')"
        " WHERE identity = x'74776f'"
    )

    with pytest.raises(RegistryUnavailable, match="key of device 'sensor-2' does not open"):
        await sqlite.find_psk(b"two")
    assert len(await sqlite.find_psk(b"one")) == 1


async def test_a_key_that_is_kept_for_the_record_proves_nothing(sqlite: SqliteRegistry) -> None:
    number = sqlite.add_psk(DEFAULT, SENSOR_1, b"one", KEY_1, create_device=True).number
    sqlite._writer.execute("UPDATE psk_credential SET slot = 5")

    assert await sqlite.find_psk(b"one") == ()
    found = await sqlite.find_psk_number(number)
    assert found is not None
    assert found.state == "revoked"


async def test_a_key_is_found_by_its_number_although_its_secret_cannot_be_read(
    tmp_path: Path,
) -> None:
    with open_sqlite(tmp_path) as administration:
        administration.add_psk(DEFAULT, SENSOR_1, b"one", KEY_1, create_device=True)
        os.unlink(tmp_path / "registry.key")
        with SqliteRegistry.open(
            "sqlite:///registry.db", tmp_path / "registry.key", tmp_path, verify_key_file=False
        ) as gateway:
            found = await gateway.find_psk_number(1)

    assert found is not None
    assert (found.device, found.secret) == (SENSOR_1, b"")


def test_a_write_that_is_refused_leaves_nothing_behind(sqlite: SqliteRegistry) -> None:
    """The device that `add_psk` creates goes with the key that cannot be added."""
    sqlite._writer.execute(
        "CREATE TRIGGER full BEFORE INSERT ON psk_credential BEGIN"
        " SELECT RAISE (ABORT, 'full'); END"
    )

    with pytest.raises(RegistryUnavailable):
        sqlite.add_psk(DEFAULT, SENSOR_1, b"one", KEY_1, create_device=True)

    assert list(sqlite.devices()) == []


async def test_a_listing_that_is_taken_slowly_lets_others_write(sqlite: SqliteRegistry) -> None:
    for number in range(3):
        sqlite.add_device(Device(DEFAULT, DeviceId(f"sensor-{number}")))

    listing = sqlite.devices()
    next(listing)
    sqlite.remove_device(DEFAULT, DeviceId("sensor-1"))
    sqlite._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert sqlite._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


async def test_a_look_up_is_answered_inline_and_fast(sqlite: SqliteRegistry) -> None:
    """About 10 us of CPU; the bound is for machines that are busy."""
    sqlite.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
    started_at = time.process_time()
    for _ in range(1000):
        assert await sqlite.find_psk(b"sensor-1")
        sqlite.max_keys_per_identity()
    assert (time.process_time() - started_at) / 1000 < 100e-6


HELD = HeldRequest(
    7,
    Tenant("acme"),
    DeviceId("sensor-1"),
    "PUT",
    "led",
    "unit=C",
    42,
    b"\x00on",
    "coapgate/acme/reply/app",
    b"\xff",
    1_767_225_600.5,
)


async def test_requests_that_wait_outlive_the_process(tmp_path: Path) -> None:
    other = HELD._replace(number=9, content_format=None, response_topic=None, correlation=None)
    with open_sqlite(tmp_path) as registry:
        await registry.change_held_requests(0, [HELD, other], [], [])
        await registry.change_held_requests(1, [HELD._replace(number=1)], [], [])
    with open_sqlite(tmp_path) as registry:
        assert registry.held_requests(0) == [HELD, other]
        await registry.change_held_requests(0, [], [(7, "answered")], [])
        concluded, _ = registry.held_requests(0)
        assert concluded == HELD._replace(payload=b"", outcome="answered")
        await registry.change_held_requests(0, [HELD._replace(number=11)], [], [7, 9, 99])
        assert [held.number for held in registry.held_requests(0)] == [11]
        assert [held.number for held in registry.held_requests(1)] == [1]
