"""`coapgate pki`: the authority in a folder, judged by OpenSSL and by the gateway's own rules."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import stat
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.cli import main
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, TrustAnchor
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.chains import VerifiedChain, verify_chain
from coapgate.pki.revocation import Revocations, load_lists
from coapgate.pki.server import load_server_certificate
from tests.peers import require
from tests.waiting import DEADLINE

DNS_AND_IP = ("--dns", "gateway.example", "--ip", "192.0.2.1")

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    return tmp_path


def pki(*arguments: str) -> None:
    assert main(["pki", *arguments]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """What a command that fails says; nothing on standard output."""
    capsys.readouterr()
    assert main(["pki", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert PASSPHRASE not in printed.err
    return printed.err


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [require("openssl"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def anchor_of(ca: str) -> TrustAnchor:
    return parse_anchor(
        Path(ca, "ca.pem").read_bytes(),
        name="acme",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=time.time(),
    )


def verified(certificate: str, ca: str) -> VerifiedChain:
    chain = x509.load_pem_x509_certificates(Path(certificate).read_bytes())
    ders = [each.public_bytes(serialization.Encoding.DER) for each in chain]
    return verify_chain(ders, (anchor_of(ca),), time.time())


def request(subject: str, *arguments: str) -> Path:
    """A request made by OpenSSL, as a device does."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    command = ("req", "-new", *curve, "-nodes", "-keyout", "device.key", "-subj", subject)
    assert openssl(*command, "-out", "device.csr", *arguments).returncode == 0
    return Path("device.csr")


# --- what it makes


def test_openssl_accepts_a_device_of_a_root_and_of_an_intermediate() -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("init", "line", "--name", "Line 4", "--parent", "root")
    pki("issue", "sensor-7", "--ca", "root")
    pki("issue", "sensor-8", "--ca", "line")

    for name in ("sensor-7", "sensor-8"):
        common = ("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "root/ca.pem")
        judged = openssl(*common, "-untrusted", f"{name}.pem", f"{name}.pem")
        assert judged.returncode == 0, judged.stderr
        assert verified(f"{name}.pem", "root").value == name
    assert verified("sensor-8.pem", "line").value == "sensor-8"


def test_every_key_is_p256_and_nobody_elses() -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("issue", "sensor-7", "--ca", "root")

    for file in ("root/ca.key", "sensor-7.key"):
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
        key = serialization.load_pem_private_key(Path(file).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"
    assert stat.S_IMODE(Path("root").stat().st_mode) == 0o700


def test_a_gateway_gets_a_certificate_that_the_gateway_loads() -> None:
    pki("init", "root", "--name", "Acme Root")
    pki(
        *[
            "issue",
            "gateway",
            "--ca",
            "root",
            "--server",
            "--dns",
            "gateway.example",
            "--ip",
            "192.0.2.1",
        ]
    )

    loaded = load_server_certificate(Path("gateway.pem"), Path("gateway.key"))

    assert len(loaded.chain) == 1
    names = openssl("x509", "-in", "gateway.pem", "-noout", "-ext", "subjectAltName").stdout
    assert "DNS:gateway.example, IP Address:192.0.2.1" in names
    purposes = openssl("x509", "-in", "gateway.pem", "-noout", "-ext", "extendedKeyUsage").stdout
    assert "TLS Web Server Authentication" in purposes


def test_a_device_may_have_every_value_that_a_template_asks_for() -> None:
    pki("init", "root", "--name", "Acme Root")
    options = "--organization Acme --unit north --serial-number 42 --uri urn:dev:7"
    pki("issue", "sensor-7", "--ca", "root", *options.split())

    template = "{o}-{ou}-{serial-number}~{san-uri}"
    chain = x509.load_pem_x509_certificates(Path("sensor-7.pem").read_bytes())
    ders = [each.public_bytes(serialization.Encoding.DER) for each in chain]
    anchor = replace(anchor_of("root"), device_id_template=template)

    assert verify_chain(ders, (anchor,), time.time()).value == "Acme-north-42~urn:dev:7"


def test_nothing_outlives_its_issuer() -> None:
    pki("init", "root", "--name", "Acme Root", "--days", "10")
    pki("init", "line", "--name", "Line 4", "--parent", "root", "--days", "100")
    pki("issue", "sensor-7", "--ca", "line", "--days", "100")

    ends = {
        x509.load_pem_x509_certificate(Path(file).read_bytes()).not_valid_after_utc
        for file in ("root/ca.pem", "line/ca.pem", "sensor-7.pem")
    }
    assert len(ends) == 1


def test_what_was_issued_is_on_record(capsys: pytest.CaptureFixture[str]) -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("issue", "sensor-7", "--ca", "root")

    (line,) = Path("root/issued.csv").read_text().splitlines()

    serial, subject, ends, at = line.split(",")
    leaf = x509.load_pem_x509_certificate(Path("sensor-7.pem").read_bytes())
    assert int(serial, 16) == leaf.serial_number
    assert subject == "CN=sensor-7"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", each) for each in (ends, at))
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed == (
        f"issued 'sensor-7' until {ends}, serial number {serial}: sensor-7.pem, sensor-7.key"
    )


# --- requests


def test_a_request_is_signed_and_its_key_stays_where_it_is() -> None:
    pki("init", "root", "--name", "Acme Root")
    request("/O=Acme/CN=sensor-10")

    pki("sign-csr", "device.csr", "--ca", "root")

    assert verified("sensor-10.pem", "root").value == "sensor-10"
    assert not Path("sensor-10.key").exists()


def test_a_request_does_not_choose_what_may_name_its_tenant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pki("init", "root", "--name", "Acme Root")
    request(
        "/O=tenant-b/OU=north/serialNumber=7/CN=sensor-1", "-addext", "subjectAltName=URI:urn:b"
    )
    capsys.readouterr()

    pki("sign-csr", "device.csr", "--ca", "root")

    leaf = x509.load_pem_x509_certificate(Path("sensor-1.pem").read_bytes())
    assert leaf.subject.rfc4514_string() == "CN=sensor-1"
    assert "urn:b" not in openssl("x509", "-in", "sensor-1.pem", "-noout", "-text").stdout
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1] == "it may call itself CN=sensor-1"
    assert "asked for O 'tenant-b', OU 'north', serialNumber '7', URI 'urn:b' too" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--organization", "tenant-a"), "asks for O 'tenant-b', not 'tenant-a'"),
        (("--unit", "south"), "asks for OU 'north', not 'south'"),
        (("--serial-number", "8"), "asks for serialNumber '7', not '8'"),
        (("--uri", "urn:a"), "asks for the URIs 'urn:b', not 'urn:a'"),
    ],
)
def test_a_request_for_another_name_than_the_operator_states_is_refused(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pki("init", "root", "--name", "Acme Root")
    request(
        "/O=tenant-b/OU=north/serialNumber=7/CN=sensor-1", "-addext", "subjectAltName=URI:urn:b"
    )

    assert message in refused(capsys, "sign-csr", "device.csr", "--ca", "root", *options)
    assert not Path("sensor-1.pem").exists()
    assert not Path("root/issued.csv").exists()


def test_the_operator_names_what_a_request_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    pki("init", "root", "--name", "Acme Root")
    request("/CN=sensor-1")
    capsys.readouterr()

    names = ("--organization", "tenant-a", "--unit", "north", "--serial-number", "7")
    pki("sign-csr", "device.csr", "--ca", "root", *names, "--uri", "urn:a")

    leaf = x509.load_pem_x509_certificate(Path("sensor-1.pem").read_bytes())
    assert leaf.subject.rfc4514_string() == "CN=sensor-1,2.5.4.5=7,OU=north,O=tenant-a"
    assert "URI:urn:a" in openssl("x509", "-in", "sensor-1.pem", "-noout", "-text").stdout
    assert "O=tenant-a, URI urn:a" in capsys.readouterr().out


def test_nothing_is_issued_for_a_folder_that_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pki("init", "root", "--name", "Acme Root")
    request("/CN=a")

    refused(capsys, "issue", "a", "--ca", "root", "--out", "nowhere")
    refused(capsys, "sign-csr", "device.csr", "--ca", "root", "--out", "nowhere")

    assert not Path("root/issued.csv").exists()


def test_a_request_is_granted_names_and_nothing_else() -> None:
    pki("init", "root", "--name", "Acme Root")
    request(
        "/C=DE/O=Acme/CN=sensor-10",
        "-addext",
        "subjectAltName=URI:urn:dev:10,DNS:gateway.example",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign",
        "-addext",
        "extendedKeyUsage=serverAuth",
    )

    names = ("--organization", "Acme", "--uri", "urn:dev:10")
    pki("sign-csr", "device.csr", "--ca", "root", *names)

    leaf = x509.load_pem_x509_certificate(Path("sensor-10.pem").read_bytes())
    assert leaf.subject.rfc4514_string() == "CN=sensor-10,O=Acme"
    text = openssl("x509", "-in", "sensor-10.pem", "-noout", "-text").stdout
    assert "CA:FALSE" in text
    assert "Digital Signature" in text
    assert "TLS Web Client Authentication" in text
    assert "URI:urn:dev:10" in text
    for absent in ("gateway.example", "Certificate Sign", "Server Authentication", "CA:TRUE"):
        assert absent not in text


@pytest.mark.parametrize(
    ("subject", "arguments", "message"),
    [
        ("/O=Acme", (), "the subject names nothing by CN"),
        ("/CN=a/CN=b", (), "the subject names 'a' and 'b' by CN"),
        ("/CN=two words", (), "the subject names 'two words' by CN"),
        ("/CN=a", ("-newkey", "rsa:1024"), "the key of the request is not accepted: RSA of 1024"),
    ],
)
def test_requests_that_no_device_could_use_are_refused(
    subject: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pki("init", "root", "--name", "Acme Root")
    if arguments:
        command = ("req", "-new", *arguments, "-nodes", "-keyout", "k", "-subj", subject)
        assert openssl(*command, "-out", "device.csr").returncode == 0
    else:
        request(subject)

    assert message in refused(capsys, "sign-csr", "device.csr", "--ca", "root")
    assert not Path("root/issued.csv").exists()


def test_a_request_that_another_key_has_signed_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pki("init", "root", "--name", "Acme Root")
    octets = bytearray(
        x509.load_pem_x509_csr(request("/CN=a").read_bytes()).public_bytes(
            serialization.Encoding.DER
        )
    )
    octets[octets.index(b"\x0c\x01a") + 2] = ord("b")
    forged = x509.load_der_x509_csr(bytes(octets)).public_bytes(serialization.Encoding.PEM)
    Path("forged.csr").write_bytes(forged)

    printed = refused(capsys, "sign-csr", "forged.csr", "--ca", "root")

    assert "not signed by its own key" in printed
    Path("text.csr").write_text("no request")
    assert "no certificate request" in refused(capsys, "sign-csr", "text.csr", "--ca", "root")


# --- revocation


def revoked(name: str, ca: str, anchor: str) -> bool:
    lists = load_lists(Path(ca, "ca.crl"), anchor_of(anchor), time.time())
    return Revocations.gather(lists).covers(verified(f"{name}.pem", anchor).path)


def test_a_list_names_all_that_was_ever_revoked() -> None:
    pki("init", "root", "--name", "Acme Root")
    for name in ("a", "b", "c"):
        pki("issue", name, "--ca", "root")
    pki("crl", "--ca", "root", "--revoke", "a.pem")
    last = Path("root/issued.csv").read_text().splitlines()[1]
    pki("crl", "--ca", "root", "--serial", last.split(",")[0], "--days", "7")
    pki("crl", "--ca", "root")

    assert [revoked(name, "root", "root") for name in ("a", "b", "c")] == [True, True, False]
    listed = x509.load_pem_x509_crl(Path("root/ca.crl").read_bytes())
    assert listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
    common = ("verify", "-CAfile", "root/ca.pem", "-crl_check", "-CRLfile", "root/ca.crl")
    assert "certificate revoked" in openssl(*common, "a.pem").stderr
    assert openssl(*common, "c.pem").returncode == 0


def test_the_list_of_an_intermediate_is_complete_for_whoever_trusts_the_root() -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("init", "line", "--name", "Line 4", "--parent", "root")
    pki("issue", "a", "--ca", "line")
    pki("crl", "--ca", "line", "--revoke", "a.pem")

    assert revoked("a", "line", "root")
    assert revoked("a", "line", "line")


def test_an_intermediate_is_revoked_by_its_parent() -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("init", "line", "--name", "Line 4", "--parent", "root")
    pki("issue", "a", "--ca", "line")
    pki("crl", "--ca", "root", "--revoke", "line/ca.pem")

    assert revoked("a", "root", "root")


def test_only_what_it_has_issued_can_be_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("init", "other", "--name", "Acme Root")
    pki("issue", "a", "--ca", "other")

    printed = refused(capsys, "crl", "--ca", "root", "--revoke", "a.pem")
    assert "was not issued by this authority" in printed
    printed = refused(capsys, "crl", "--ca", "root", "--serial", "1234")
    assert "has issued no certificate with serial number 1234" in printed
    printed = refused(capsys, "crl", "--ca", "root", "--serial", "xyz", code=2)
    assert "no serial number" in printed
    assert not Path("root/ca.crl").exists()


def test_a_list_that_was_carried_away_or_replaced_is_not_built_upon() -> None:
    pki("init", "root", "--name", "Acme Root")
    for name in ("a", "b"):
        pki("issue", name, "--ca", "root")
    pki("crl", "--ca", "root", "--revoke", "a.pem")
    Path("root/ca.crl").rename("gateway.crl")

    pki("crl", "--ca", "root", "--revoke", "b.pem")

    assert [revoked(name, "root", "root") for name in ("a", "b")] == [True, True]
    listed = x509.load_pem_x509_crl(Path("root/ca.crl").read_bytes())
    assert listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2

    Path("root/ca.crl").write_bytes(b"text")
    pki("crl", "--ca", "root")
    assert [revoked(name, "root", "root") for name in ("a", "b")] == [True, True]


@pytest.mark.parametrize(
    "octets",
    [
        None,
        b"",
        b"text",
        b"[]",
        b"{}",
        b'{"number": -1, "revoked": {}}',
        b'{"number": "1", "revoked": {}}',
        b'{"number": 1, "revoked": []}',
        b'{"number": 1, "revoked": {"x": 1}}',
        b'{"number": 1, "revoked": {"1": null}}',
        b"[" * 100_000,
    ],
)
def test_without_its_record_of_what_was_revoked_an_authority_signs_no_list(
    octets: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("crl", "--ca", "root")
    before = Path("root/ca.crl").read_bytes()
    record = Path("root/revoked.json")
    if octets is None:
        record.unlink()
    else:
        record.write_bytes(octets)

    printed = refused(capsys, "crl", "--ca", "root")

    assert "'root/revoked.json' is not as `coapgate pki` has written it" in printed
    assert Path("root/ca.crl").read_bytes() == before


def test_what_was_revoked_is_on_record_before_the_list_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("issue", "a", "--ca", "root")
    Path("root/ca.crl.new").mkdir()  # as a full disk would, this keeps the list from being written
    refused(capsys, "crl", "--ca", "root", "--revoke", "a.pem")
    Path("root/ca.crl.new").rmdir()

    pki("crl", "--ca", "root")

    assert revoked("a", "root", "root")


# --- passphrases


def test_an_encrypted_key_opens_with_its_passphrase_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pki("init", "root", "--name", "Acme Root", "--passphrase-file", "passphrase")
    assert b"ENCRYPTED" in Path("root/ca.key").read_bytes()

    pki("issue", "a", "--ca", "root", "--passphrase-file", "passphrase")

    assert "is encrypted" in refused(capsys, "issue", "b", "--ca", "root")
    Path("wrong").write_text("wrong\n")
    printed = refused(capsys, "issue", "b", "--ca", "root", "--passphrase-file", "wrong")
    assert "does not open with this passphrase" in printed
    assert not Path("b.key").exists()


def test_a_passphrase_comes_from_standard_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ("init", "root", "--name", "Acme Root", "--passphrase-file", "-"),
        ("issue", "a", "--ca", "root", "--passphrase-file", "-"),
    ):
        octets = io.BytesIO(PASSPHRASE.encode())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(octets))
        pki(*arguments)

    assert verified("a.pem", "root").value == "a"


def test_a_passphrase_is_asked_for_in_a_terminal_and_not_shown() -> None:
    pki("init", "root", "--name", "Acme Root", "--passphrase-file", "passphrase")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "coapgate", "pki", "issue", "a", "--ca", "root"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as program:
        shown = b""
        deadline = time.monotonic() + DEADLINE
        while b"passphrase of root" not in shown or termios.tcgetattr(theirs)[3] & termios.ECHO:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 4096)
        os.write(ours, f"{PASSPHRASE}\n".encode())
        while b"issued 'a'" not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 4096)
        assert program.wait(DEADLINE) == 0
    for descriptor in (ours, theirs):
        os.close(descriptor)

    assert PASSPHRASE.encode() not in shown
    assert verified("a.pem", "root").value == "a"


def test_an_intermediate_and_its_parent_have_passphrases_of_their_own() -> None:
    Path("parents").write_text("another passphrase\n")
    pki("init", "root", "--name", "Acme Root", "--passphrase-file", "parents")
    own = ("--passphrase-file", "passphrase", "--parent-passphrase-file", "parents")
    pki("init", "line", "--name", "Line 4", "--parent", "root", *own)

    pki("issue", "a", "--ca", "line", "--passphrase-file", "passphrase")

    assert verified("a.pem", "root").value == "a"


@pytest.mark.parametrize("text", ["", "\n", "two\nlines\n", "x" * 2000])
def test_a_file_without_one_line_is_no_passphrase(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad").write_text(text)
    arguments = ("init", "root", "--name", "Acme Root", "--passphrase-file", "bad")

    assert "does not hold one line" in refused(capsys, *arguments, code=2)
    assert not Path("root").exists()


# --- nothing is overwritten


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    pki("init", "root", "--name", "Acme Root")
    pki("issue", "a", "--ca", "root")
    before = Path("root/ca.key").read_bytes(), Path("a.key").read_bytes()

    assert "is not empty" in refused(capsys, "init", "root", "--name", "Acme Root")
    assert "exists already" in refused(capsys, "issue", "a", "--ca", "root")

    assert before == (Path("root/ca.key").read_bytes(), Path("a.key").read_bytes())
    assert len(Path("root/issued.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ("issue a --ca nowhere", "'nowhere' cannot be used: No such file", 1),
        ("issue a/b --ca root", "the subject names 'a/b' by CN", 1),
        ("issue a --ca root --out nowhere", "cannot write into 'nowhere'", 1),
        ("issue a --ca root --server", "--server goes with --dns or --ip", 2),
        ("issue a --ca root --dns b", "--server goes with --dns or --ip", 2),
        ("issue a --ca root --server --ip x", "a name or address cannot be", 1),
        ("sign-csr nowhere.csr --ca root", "cannot read 'nowhere.csr'", 2),
        ("crl --ca root --revoke passphrase", "no certificate can be read", 1),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    arguments: str, message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pki("init", "root", "--name", "Acme Root")

    printed = refused(capsys, *arguments.split(), code=code)

    assert message in printed
    assert printed.count("error:") == printed.count("hint:") == 1


def test_an_authority_that_ended_or_was_mixed_up_issues_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from coapgate.pki.folder import create

    create(Path("old"), "Old Root", lifetime=60, wall=time.time() - 3600)
    assert "ended at" in refused(capsys, "issue", "a", "--ca", "old")
    pki("init", "root", "--name", "Acme Root")
    pki("init", "other", "--name", "Other Root")
    Path("root/ca.pem").write_bytes(Path("other/ca.pem").read_bytes())

    assert "does not belong to" in refused(capsys, "issue", "a", "--ca", "root")
