"""The key file: made once, its owner's alone, and missed when it is missing."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coapgate.errors import KeyFileError, RegistryUnavailable
from coapgate.model import DeviceId
from coapgate.registry.base import NewDevice
from coapgate.registry.keyfile import create_key_file, load_key_file
from coapgate.registry.sqlite import SqliteRegistry
from tests.registry.conftest import open_sqlite
from tests.registry.values import DEFAULT, KEY_1, KEY_2, SENSOR_1, SENSOR_2


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "registry.key"


def test_a_key_file_reads_back_as_it_was_created(key_file: Path) -> None:
    (key,) = create_key_file(key_file)

    assert load_key_file(key_file) == (key,)
    assert key_file.read_text().startswith("# coapgate registry key file.")


def test_a_key_file_is_its_owners_alone_whatever_the_umask(key_file: Path) -> None:
    for umask in (0, 0o777):
        before = os.umask(umask)
        try:
            create_key_file(key_file)
        finally:
            os.umask(before)
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        key_file.unlink()


def test_a_key_file_is_created_exclusively(key_file: Path) -> None:
    create_key_file(key_file)
    before = key_file.read_bytes()

    with pytest.raises(KeyFileError, match="cannot be created: File exists"):
        create_key_file(key_file)
    assert key_file.read_bytes() == before

    key_file.unlink()
    key_file.symlink_to("elsewhere")
    with pytest.raises(KeyFileError, match="cannot be created"):
        create_key_file(key_file)


def test_a_key_file_in_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be created: No such file") as caught:
        create_key_file(tmp_path / "nowhere" / "registry.key")
    assert "registry.key_file" in caught.value.hint


def test_several_keys_live_in_a_key_file_newest_last(key_file: Path) -> None:
    (old,) = create_key_file(key_file)
    other = key_file.with_name("other.key")
    (new,) = create_key_file(other)
    with key_file.open("a") as file:
        file.write("\n# added later\n" + other.read_text())

    assert load_key_file(key_file) == (old, new)


def test_a_missing_key_file_is_an_error(key_file: Path) -> None:
    with pytest.raises(KeyFileError, match="is missing") as caught:
        load_key_file(key_file)
    assert "restore it" in caught.value.hint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_key_file_that_is_open_to_others_is_refused(key_file: Path, mode: int) -> None:
    create_key_file(key_file)
    key_file.chmod(mode)

    with pytest.raises(KeyFileError, match=f"open to group or others \\(mode {mode:04o}\\)") as e:
        load_key_file(key_file)
    assert "chmod 600" in e.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_file_of_another_owner_is_refused(key_file: Path) -> None:
    create_key_file(key_file)
    os.chown(key_file, 65534, -1)

    with pytest.raises(KeyFileError, match="belongs to another user \\(uid 65534\\)"):
        load_key_file(key_file)


def test_what_is_no_regular_file_is_refused(key_file: Path) -> None:
    key_file.mkdir(mode=0o700)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_key_file(key_file)

    key_file.rmdir()
    os.mkfifo(key_file, 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_key_file(key_file)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"# only a comment\n",
        b"1 AAAA\n",
        b"1\n",
        b"2 " + b"A" * 43 + b"=\n",
        b"1 " + b"A" * 43 + b"= more\n",
        b"1 " + b"A" * 43 + b"=\ngarbage \xff\n",
        b"#" * 65537,
    ],
)
def test_a_damaged_key_file_is_an_error_that_shows_none_of_it(
    key_file: Path, octets: bytes
) -> None:
    key_file.touch(0o600)
    key_file.write_bytes(octets)

    with pytest.raises(KeyFileError, match="is damaged") as caught:
        load_key_file(key_file)
    assert "AAAA" not in str(caught.value) + caught.value.hint


# The key file and its registry.


def add(registry: SqliteRegistry, device: DeviceId = SENSOR_1) -> None:
    registry.add_psk(DEFAULT, device, device.encode(), KEY_1, create_device=True)


def test_a_registry_without_secrets_needs_no_key_file(tmp_path: Path, key_file: Path) -> None:
    with open_sqlite(tmp_path):
        pass
    with open_sqlite(tmp_path):
        assert not key_file.exists()


def test_the_first_secret_creates_the_key_file(tmp_path: Path, key_file: Path) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)

    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert KEY_1 not in (tmp_path / "registry.db").read_bytes()
    assert KEY_1.hex().encode() not in (tmp_path / "registry.db").read_bytes()


def test_a_key_file_missing_while_secrets_exist_is_never_made_again(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
        key_file.unlink()
        with pytest.raises(KeyFileError, match="is missing"):
            add(registry, SENSOR_2)
        with pytest.raises(KeyFileError, match="is missing"):
            registry.import_devices([NewDevice(2, DEFAULT, SENSOR_2, b"2", KEY_2)])
        assert [entry.device.device for entry in registry.devices()] == [SENSOR_1]

    with pytest.raises(KeyFileError, match="is missing"):
        open_sqlite(tmp_path)
    assert not key_file.exists()


def test_a_registry_whose_key_file_is_lost_can_still_be_administered(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
    key_file.unlink()

    with SqliteRegistry.open(
        "sqlite:///registry.db", key_file, tmp_path, verify_key_file=False
    ) as registry:
        assert len(list(registry.psks())) == 1
        registry.remove_device(DEFAULT, SENSOR_1)
        add(registry)  # no secret is left: a new key may be made

    with open_sqlite(tmp_path):
        assert key_file.exists()


def test_a_key_file_of_another_registry_is_refused(tmp_path: Path, key_file: Path) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
    key_file.unlink()
    create_key_file(key_file)

    with pytest.raises(KeyFileError, match=r"does not hold key [0-9a-f]{16}"):
        open_sqlite(tmp_path)


def test_a_key_file_that_is_open_to_others_stops_the_start(tmp_path: Path, key_file: Path) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
    key_file.chmod(0o644)

    with pytest.raises(KeyFileError, match="open to group or others"):
        open_sqlite(tmp_path)


async def test_a_running_gateway_takes_up_a_key_file_that_appears_and_grows(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as gateway:
        with open_sqlite(tmp_path) as administration:
            add(administration)
        assert len(await gateway.find_psk(b"sensor-1")) == 1

        other = tmp_path / "other.key"
        create_key_file(other)
        with key_file.open("a") as file:
            file.write(other.read_text())
        with open_sqlite(tmp_path) as administration:
            add(administration, SENSOR_2)
        assert len(await gateway.find_psk(b"sensor-2")) == 1
        assert len(await gateway.find_psk(b"sensor-1")) == 1


async def test_a_gateway_that_cannot_read_a_secret_says_unavailable(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as gateway:
        with open_sqlite(tmp_path) as administration:
            add(administration)
        os.unlink(key_file)

        with pytest.raises(RegistryUnavailable, match="is missing"):
            await gateway.find_psk(b"sensor-1")
        assert await gateway.find_psk(b"unknown") == ()


# Keys derived from it.

SALT = bytes(range(32))


def open_gateway(folder: Path) -> SqliteRegistry:
    """As `open_sqlite`, but waits for nobody's transaction."""
    return SqliteRegistry.open(
        "sqlite:///registry.db", folder / "registry.key", folder, write_timeout=0
    )


def append_key(key_file: Path) -> None:
    """Add a key to a key file as an operator would."""
    other = key_file.with_name("other.key")
    create_key_file(other)
    with key_file.open("a") as file:
        file.write(other.read_text())
    other.unlink()


def test_a_registry_without_secrets_gets_a_key_file_when_a_key_is_to_be_derived(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        key_id = registry.newest_key_id()
        derived = registry.derive_key(key_id, SALT)

    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    (key,) = load_key_file(key_file)
    assert len(key_id) == 8
    assert key_id != key.id  # which would be the same beside another registry
    assert derived is not None
    assert len(derived) == 32
    with open_sqlite(tmp_path) as registry:
        assert registry.derive_key(key_id, SALT) == derived
        assert registry.newest_key_id() == key_id
        assert registry.derive_key(key_id, SALT[::-1]) not in (derived, None)


async def test_the_first_secret_takes_the_key_that_was_derived_from(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as gateway:
        key_id = gateway.newest_key_id()
        derived = gateway.derive_key(key_id, SALT)
        keys = load_key_file(key_file)
        with open_sqlite(tmp_path) as administration:
            add(administration)

        assert load_key_file(key_file) == keys
        assert len(await gateway.find_psk(b"sensor-1")) == 1
    with open_sqlite(tmp_path) as gateway:
        assert gateway.derive_key(key_id, SALT) == derived


def test_to_open_to_read_and_to_derive_makes_no_key_file(tmp_path: Path, key_file: Path) -> None:
    for verify in (True, False):
        with SqliteRegistry.open(
            "sqlite:///registry.db", key_file, tmp_path, verify_key_file=verify
        ) as registry:
            assert list(registry.devices()) == []
            assert registry.derive_key(bytes(8), SALT) is None
            assert registry.derive_key(b"", b"") is None
    assert not key_file.exists()


def test_no_key_file_is_made_to_derive_from_while_secrets_need_the_one_there_was(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
    key_file.unlink()

    with SqliteRegistry.open(
        "sqlite:///registry.db", key_file, tmp_path, verify_key_file=False
    ) as registry:
        with pytest.raises(KeyFileError, match="is missing") as caught:
            registry.newest_key_id()
        assert "restore it from its backup" in caught.value.hint
        with pytest.raises(KeyFileError, match="is missing"):
            registry.derive_key(bytes(8), SALT)
    assert not key_file.exists()


def test_any_key_of_the_key_file_is_derived_from_also_one_that_was_just_added(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
        old = registry.newest_key_id()
        derived = registry.derive_key(old, SALT)

        append_key(key_file)
        with open_sqlite(tmp_path) as other_process:
            new = other_process.newest_key_id()

        assert new != old
        assert registry.derive_key(new, SALT) not in (derived, None)
        assert registry.newest_key_id() == new
        assert registry.derive_key(old, SALT) == derived
        assert registry.derive_key(bytes(8), SALT) is None


def test_a_key_that_was_only_derived_from_may_leave_the_key_file(
    tmp_path: Path, key_file: Path
) -> None:
    """No secret is encrypted with it: what is kept under it is what is lost."""
    with open_sqlite(tmp_path) as registry:
        add(registry)
        before = key_file.read_bytes()
        append_key(key_file)
        new = registry.newest_key_id()
    key_file.write_bytes(before)

    with open_sqlite(tmp_path) as registry:
        assert registry.derive_key(new, SALT) is None
        assert registry.newest_key_id() != new


def test_a_key_file_that_was_lost_before_the_first_secret_is_made_anew(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        lost = registry.newest_key_id()
    key_file.unlink()

    with open_sqlite(tmp_path) as registry:
        assert registry.derive_key(lost, SALT) is None
        assert not key_file.exists()
        assert registry.newest_key_id() != lost


def test_a_key_file_of_another_registry_is_not_derived_from_and_spoils_nothing(
    tmp_path: Path, key_file: Path
) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
        own = registry.newest_key_id()
        key_file.rename(tmp_path / "moved")
        create_key_file(key_file)

        with pytest.raises(KeyFileError, match="does not hold key"):
            registry.newest_key_id()
        with pytest.raises(KeyFileError, match="does not hold key"):
            registry.derive_key(bytes(8), SALT)
        assert registry.derive_key(own, SALT) is not None


def test_a_key_file_that_is_open_to_others_is_not_derived_from(
    tmp_path: Path, key_file: Path
) -> None:
    create_key_file(key_file)
    key_file.chmod(0o640)

    with open_sqlite(tmp_path) as registry:
        with pytest.raises(KeyFileError, match="open to group or others"):
            registry.newest_key_id()
        with pytest.raises(KeyFileError, match="open to group or others"):
            registry.derive_key(bytes(8), SALT)


def test_a_key_file_that_another_process_may_be_making_is_not_read_half(
    tmp_path: Path, key_file: Path
) -> None:
    """It is made in a write transaction, and nobody looks at it before that ends."""
    open_sqlite(tmp_path).close()
    maker = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    with open_gateway(tmp_path) as gateway:
        maker.execute("BEGIN IMMEDIATE")
        key_file.touch(0o600)

        with pytest.raises(RegistryUnavailable, match="database is locked"):
            gateway.newest_key_id()
        with pytest.raises(RegistryUnavailable, match="database is locked"):
            gateway.derive_key(bytes(8), SALT)

        key_file.unlink()
        create_key_file(key_file)
        maker.execute("ROLLBACK")
        assert gateway.derive_key(gateway.newest_key_id(), SALT) is not None
    maker.close()


def test_a_key_that_is_known_is_derived_from_while_another_process_writes(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as registry:
        add(registry)
        key_id = registry.newest_key_id()
    writer = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    with open_gateway(tmp_path) as gateway:
        assert gateway.derive_key(key_id, SALT) is not None
    writer.close()


def test_processes_that_make_a_key_file_at_once_share_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from coapgate.registry.sqlite import SqliteRegistry\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with SqliteRegistry.open('sqlite:///registry.db', folder / 'registry.key', folder) as r:\n"
        "    print(r.newest_key_id().hex())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    told = {process.communicate(timeout=60)[0].strip() for process in processes}

    assert [process.returncode for process in processes] == [0] * 4
    with open_sqlite(tmp_path) as registry:
        assert told == {registry.newest_key_id().hex()}
