"""`coapgate check` reads everything, opens nothing, and says what would be served."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from coapgate.cli.check import check
from coapgate.errors import ConfigError
from coapgate.model import DEFAULT_TENANT, Batch, DeviceId, DeviceIdSource
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import FactoryCa
from coapgate.registry.sqlite import SqliteRegistry

YEAR = 31_557_600.0
"""Seconds."""


def written(folder: Path, text: str = "") -> Path:
    file = folder / "coapgate.toml"
    file.write_text(text)
    return file


def with_certificate(folder: Path, created_at: float | None = None) -> Path:
    ca = FactoryCa.create("gateway CA", wall=created_at or time.time())
    ca.issue_server(("gateway.example",)).write(folder, "gateway")
    return written(folder, '[dtls]\ncertificate = "gateway.pem"\nprivate_key = "gateway.key"\n')


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    pairs = (re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines())
    return {pair[0]: pair[1] for pair in pairs}


def problems(file: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(typer.Exit) as caught:
        check(file)
    assert caught.value.exit_code == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_the_smallest_configuration_says_what_would_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(written(tmp_path))

    assert list(rows(capsys)) == [
        "devices connect to",
        "and prove themselves",
        "registry",
        "broker",
        "topics",
        "metrics and health",
        "log",
    ]


def test_nothing_is_made_by_looking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path)

    check(file)

    assert list(tmp_path.iterdir()) == [file]
    assert "made by the first run" in capsys.readouterr().out


def test_devices_and_anchors_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path)
    with SqliteRegistry.open(
        "sqlite:///registry.db", tmp_path / "registry.key", tmp_path
    ) as opened:
        opened.add_psk(
            DEFAULT_TENANT, DeviceId("sensor-1"), b"sensor-1", bytes(16), create_device=True
        )

    check(file)

    shown = rows(capsys)
    assert shown["registry"] == f"{tmp_path / 'registry.db'}, 1 device"
    assert shown["trust anchors"] == "none"


def test_a_server_certificate_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(with_certificate(tmp_path))

    out = capsys.readouterr().out
    assert "by a key or a certificate" in out
    assert "EC secp256r1, until 20" in out


def test_an_rsa_key_of_the_server_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_certificate(tmp_path)
    (tmp_path / "gateway.key").write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )

    error, hint = problems(file, capsys)

    assert "is not EC P-256 or P-384" in error
    assert hint.startswith("hint: ")


def test_every_problem_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "registry.db").write_text("not a database, but long enough to be looked at" * 40)
    file = written(
        tmp_path,
        """
        [dtls]
        certificate = "missing.pem"
        private_key = "missing.key"
        [mqtt]
        url = "mqtts://127.0.0.1"
        ca = "missing-ca.pem"
        """,
    )

    errors = [line for line in problems(file, capsys) if line.startswith("error: ")]

    assert len(errors) == 3


def test_a_configuration_that_cannot_be_used_is_left_to_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        check(written(tmp_path, "nonsense = 1\n"))


def test_a_server_certificate_that_is_not_valid_now_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_certificate(tmp_path, created_at=time.time() - 40 * YEAR)

    error, hint = problems(file, capsys)

    assert "is valid from " in error
    assert hint == "hint: have it renewed: devices refuse it"


def test_batches_anchors_and_their_lists_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path)
    ca = FactoryCa.create("Factory")
    crl = tmp_path / "factory.crl"
    crl.write_bytes(ca.sign_list({7: ca.created_at}).public_bytes(serialization.Encoding.PEM))
    anchor = parse_anchor(
        ca.certificate_pem,
        name="factory",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=False,
        wall=time.time(),
    )
    with SqliteRegistry.open("sqlite:///registry.db", tmp_path / "registry.key", tmp_path) as books:
        books.add_anchor(replace(anchor, crl_files=(str(crl),)))
        books.add_batch(Batch(0, "line-1", DEFAULT_TENANT, "a-", "", 5), bytes(32))

    check(file)
    shown = rows(capsys)
    assert shown["trust anchors"] == "factory (default)"
    assert shown["batches"] == "line-1 (default)"
    assert shown["revoked below factory"].startswith("1 certificate, by lists until ")

    crl.write_bytes(
        FactoryCa.create("Factory").sign_list({}).public_bytes(serialization.Encoding.PEM)
    )
    assert any("factory.crl" in line for line in problems(file, capsys))
