"""Credentials of a fleet, from the files that an operator has."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from coapgate.dtls.client import PskKey
from coapgate.errors import CertificateError, Misused
from coapgate.pki.factory import FactoryCa
from coapgate.simulated.fleet.credentials import (
    derive_identities,
    read_certificates,
    read_identities,
)

KEY = "hex:00112233445566778899aabbccddeeff"
OCTETS = bytes.fromhex(KEY.removeprefix("hex:"))


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.csv"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "text",
    [
        f"identity,key\nsensor-1,{KEY}\n\nhex:0102,{KEY}\n",
        f"\ufeffkey,identity\r\n{KEY},sensor-1\r\n{KEY},base64:AQI=\r\n",
        f"device,tenant,psk_identity,psk_key\na,,sensor-1,{KEY}\nb,,hex:0102,{KEY}\n",
        f"psk_key,device,tenant,psk_identity\n{KEY},a,t,sensor-1\n{KEY},b,,hex:0102\n",
    ],
)
def test_identities_of_both_kinds_of_file(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)

    assert read_identities(file, None) == [PskKey(b"sensor-1", OCTETS), PskKey(b"\1\2", OCTETS)]
    assert read_identities(file, 1) == [PskKey(b"sensor-1", OCTETS)]


def test_an_identity_is_one_device_whatever_keys_it_has(tmp_path: Path) -> None:
    file = written(tmp_path, f"identity,key\na,{KEY}\na,text:another-key-of-it\nb,{KEY}\n")

    assert [key.identity for key in read_identities(file, None)] == [b"a", b"b"]
    assert read_identities(file, 1)[0].secret == OCTETS


def test_there_are_never_more_devices_than_credentials(tmp_path: Path) -> None:
    file = written(tmp_path, f"identity,key\na,{KEY}\na,{KEY}\n")

    with pytest.raises(Misused, match="has 1 identities; 2 wanted"):
        read_identities(file, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not name the columns"),
        (f"sensor-1,{KEY}\n", "does not name the columns"),
        ("identity,key\n", "has 0 identities"),
        ("identity,key\na\n", "line 2 of .*: not an identity and a key"),
        (f"identity,key\na,{KEY},b\n", "line 2 of .*: not an identity and a key"),
        (f'identity,key\n"a,{KEY}\n', "line 2 of .*: not an identity and a key"),
        (f"identity,key\n\n{'a' * 5000},{KEY}\n", "line 3 of .*: not an identity and a key"),
        ("identity,key\na,s3cr3t-s3cr3t-s3cr3t\n", "line 2 of .*: a key says how it is written"),
        ("identity,key\na,hex:s3cr3t\n", "line 2 of .*: the key is not hexadecimal"),
        ("device,tenant,psk_identity,psk_key\na,,a,hex:s3cr3t\n", "line 2 of .*: the key is not"),
    ],
)
def test_bad_files_are_refused_without_showing_a_key(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(Misused, match=message) as caught:
        read_identities(written(tmp_path, text), None)

    assert "s3cr3t" not in str(caught.value) + caught.value.hint


def test_octets_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    file.write_bytes(b"identity,key\n\xff," + KEY.encode())

    with pytest.raises(Misused, match="not an identity and a key"):
        read_identities(file, None)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misused, match=r"cannot read .*: No such file"):
        read_identities(tmp_path / "none.csv", None)


def test_certificates_of_a_folder(tmp_path: Path) -> None:
    ca = FactoryCa.create("Factory")
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem)  # no key beside it: no device
    for name in ("sensor-2", "sensor-1"):
        ca.issue_device(name).write(tmp_path, name)

    every = read_certificates(tmp_path, tmp_path / "ca.pem", "127.0.0.1", None)
    (first,) = read_certificates(tmp_path, tmp_path / "ca.pem", "127.0.0.1", 1)

    assert len(every) == 2
    assert first.chain == every[0].chain
    server = ca.issue_server()
    assert every[0].trust(server.chain) == every[1].trust(server.chain)
    with pytest.raises(Misused, match=r"has 2 pairs .*; 3 wanted"):
        read_certificates(tmp_path, tmp_path / "ca.pem", "127.0.0.1", 3)


def test_files_that_are_no_certificates_or_keys_are_told(tmp_path: Path) -> None:
    ca = FactoryCa.create("Factory")
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(ca.certificate_pem)
    device = tmp_path / "sensor-1.pem"
    key = tmp_path / "sensor-1.key"
    ca.issue_device("sensor-1").write(tmp_path, "sensor-1")

    def refused(message: str, ca_file: Path = ca_file) -> None:
        with pytest.raises(CertificateError, match=message):
            read_certificates(tmp_path, ca_file, "127.0.0.1", None)

    refused("no certificates can be read", ca_file=key)
    refused("cannot be read: No such file", ca_file=tmp_path / "none.pem")
    key.write_bytes(ca.issue_device("sensor-2").key_pem)
    refused("does not belong to")
    key.write_text("nonsense")
    refused("no private key can be read")
    device.write_text("nonsense")
    refused("no certificates can be read")


def test_devices_of_a_batch_have_keys_derived_from_its_master_key() -> None:
    keys = derive_identities(OCTETS, "acme-{device}.x", 3)

    assert [key.identity for key in keys] == [b"acme-sim-1.x", b"acme-sim-2.x", b"acme-sim-3.x"]
    assert [key.secret for key in keys] == [
        hmac.digest(OCTETS, key.identity, "sha256") for key in keys
    ]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("acme", 1), ("{device}", None), ("x" * 124 + "{device}", 1), ("{device}", 10**7)],
)
def test_a_batch_that_cannot_be_is_refused(pattern: str, count: int | None) -> None:
    with pytest.raises(Misused):
        derive_identities(OCTETS, pattern, count)
