"""The key file: made once, its owner's alone, and missed when it is missing."""

from __future__ import annotations

import os
import stat
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
