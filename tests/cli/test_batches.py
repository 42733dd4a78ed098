"""Keys that are derived on the machine that makes the devices, and on the gateway's."""

from __future__ import annotations

import asyncio
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coapgate.cli import main
from coapgate.cli.keys import Source
from coapgate.model import DEFAULT_TENANT, Batch
from coapgate.registry.batches import BatchBook
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.simulated.fleet.credentials import read_identities

MASTER_KEY = bytes(range(32))


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """A machine that has a master key and the names of devices, and nothing of a gateway."""
    folder = tmp_path / "factory"
    folder.mkdir()
    (folder / "master.key").write_text(f"hex:{MASTER_KEY.hex()}\n")
    (folder / "identities.txt").write_text("acme-sensor-1\n\nhex:c0ffee\nacme-é\n")
    return folder


def derive(
    factory: Path, *arguments: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    environment = {key: text for key, text in os.environ.items() if key != "COAPGATE_CONFIG"}
    return subprocess.run(
        [sys.executable, "-m", "coapgate", "batch", "derive", *arguments],
        cwd=factory,
        env=environment,
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_keys_are_derived_without_registry_or_configuration(factory: Path) -> None:
    done = derive(factory, "--master-key-file", "master.key", "--identities", "identities.txt")

    assert (done.returncode, done.stderr) == (0, b"")
    assert [line.split(",")[0] for line in done.stdout.decode().splitlines()] == [
        "identity",
        "acme-sensor-1",
        "hex:c0ffee",
        "acme-é",
    ]
    assert sorted(file.name for file in factory.iterdir()) == ["identities.txt", "master.key"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="install openssl")
def test_a_derived_key_is_the_hmac_that_openssl_computes(factory: Path) -> None:
    done = derive(factory, "--master-key-file", "master.key", "--identities", "identities.txt")
    rows = list(csv.DictReader(done.stdout.decode().splitlines()))

    for row, octets in zip(
        rows, (b"acme-sensor-1", b"\xc0\xff\xee", "acme-é".encode()), strict=True
    ):
        computed = subprocess.run(
            [
                *("openssl", "dgst", "-sha256", "-mac", "HMAC"),
                *("-macopt", f"hexkey:{MASTER_KEY.hex()}", "-binary"),
            ],
            input=octets,
            capture_output=True,
            check=True,
        ).stdout
        assert row["key"] == f"hex:{computed.hex()}"


def test_identities_are_read_from_another_program(factory: Path) -> None:
    done = derive(
        factory, "--master-key-file", "master.key", "--identities", "-", given=b"a-1\na-2\n"
    )

    (factory / "keys.csv").write_bytes(done.stdout)
    assert [key.identity for key in read_identities(factory / "keys.csv", None)] == [b"a-1", b"a-2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"a-1\n\xff\n", b"error: line 2: the line is not UTF-8"),
        (b"a-1\n" + b"x" * 129 + b"\n", b"error: line 2: the identity has 129 octets"),
        (b"a-1\n" + b"x" * 10_000, b"error: line 2: the line is too long"),
        (b"hex:0\n", b"error: line 1: the identity is not hexadecimal"),
    ],
)
def test_a_bad_line_is_named(factory: Path, lines: bytes, message: bytes) -> None:
    done = derive(factory, "--master-key-file", "master.key", "--identities", "-", given=lines)

    assert done.returncode == 2
    assert done.stderr.startswith(message)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is Linux's")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_key_that_cannot_be_printed_is_good_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
) -> None:
    monkeypatch.setenv("COAPGATE_CONFIG", str(tmp_path / "coapgate.toml"))
    (tmp_path / "coapgate.toml").write_text('[mqtt]\nurl = "mqtt://127.0.0.1:1883"\n')
    for command, undone in (
        ("batch create line-1 --pattern acme-{device} --max-devices 5", "batch 'line-1'"),
        ("psk add sensor-1 --generate", "psk-1"),
        ("psk add sensor-1 --key text:correct-horse-battery", None),
        ("psk rotate sensor-1", "psk-3"),
    ):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "coapgate", *command.split(), *as_json],
                stdout=full if undone else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        if undone is None:
            assert done.returncode == 0
            continue
        assert done.returncode == 1
        error, hint = done.stderr.decode().splitlines()[-2:]
        assert error == "error: the key cannot be printed: No space left on device"
        assert hint.startswith(f"hint: {undone} was revoked")

    with SqliteRegistry.open(
        "sqlite:///registry.db", tmp_path / "registry.key", tmp_path
    ) as registry:
        assert registry.get_batch("line-1").state == "revoked"
        assert [key.state for key in registry.psks()] == ["revoked", "active", "revoked"]


def test_no_octet_of_a_master_key_shows_in_a_repr() -> None:
    batch = Batch(1, "line-1", DEFAULT_TENANT, "acme-", "", 1)
    derived = BatchBook([(batch, MASTER_KEY)]).find(b"acme-1")
    assert derived is not None
    source = Source(f"hex:{MASTER_KEY.hex()}", None, False, False, 16)
    for shown in (repr(derived), repr(source)):
        assert "secret" not in shown
        assert MASTER_KEY.hex() not in shown
        assert "key=" not in shown


def test_no_octet_of_a_master_key_shows_in_an_error(factory: Path) -> None:
    (factory / "master.key").write_text(MASTER_KEY.hex())

    done = derive(factory, "--master-key-file", "master.key", "--identities", "identities.txt")

    assert (done.returncode, done.stdout) == (2, b"")
    assert b"a key says how it is written" in done.stderr
    assert MASTER_KEY.hex().encode() not in done.stderr


def test_the_gateway_knows_the_key_that_the_factory_derives(
    factory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "coapgate.toml"
    config.write_text('[mqtt]\nurl = "mqtt://127.0.0.1:1"\n')
    create = ("batch", "create", "line-1", "--config", str(config), "--max-devices", "9")
    assert (
        main([*create, "--pattern", "acme-{device}", "--key-file", str(factory / "master.key")])
        == 0
    )

    done = derive(
        factory, "--master-key-file", "master.key", "--identities", "-", given=b"acme-1\n"
    )

    (row,) = csv.DictReader(done.stdout.decode().splitlines())
    with SqliteRegistry.open("sqlite:///registry.db", tmp_path / "registry.key", tmp_path) as books:
        (found,) = asyncio.run(books.find_psk(b"acme-1"))
    assert row["key"] == f"hex:{found.secret.hex()}"
    assert MASTER_KEY.hex() not in capsys.readouterr().out
    assert MASTER_KEY not in (tmp_path / "registry.db").read_bytes()
