"""Trust anchors and certificates over their life, as the command line changes them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from coapgate.cli import main
from coapgate.pki.factory import FactoryCa
from coapgate.registry.sqlite import SqliteRegistry


class Shell:
    """Runs commands in a folder with a configuration; the answer is code, stdout, stderr."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = self._capsys.readouterr()
        return code, out, err

    def file(self, name: str, octets: bytes) -> str:
        (self.folder / name).write_bytes(octets)
        return str(self.folder / name)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    config = tmp_path / "coapgate.toml"
    config.write_text('[mqtt]\nurl = "mqtt://127.0.0.1:1"\n')
    monkeypatch.setenv("COAPGATE_CONFIG", str(config))
    return Shell(tmp_path, capsys)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def state(run: Shell, name: str) -> str:
    (anchor,) = json.loads(run("anchor", "list", "--json")[1])
    assert anchor["name"] == name
    found: str = anchor["state"]
    return found


def test_an_anchor_is_believed_once_its_key_was_shown_to_be_at_hand(run: Shell) -> None:
    ca, stranger = FactoryCa.create("Acme"), FactoryCa.create("Acme")
    root = run.file("root.pem", ca.certificate_pem)
    code, out, _ = run("anchor", "add", root, "--name", "acme", "--require-proof")
    assert code == 0
    (proof,) = re.findall(r"^code ([0-9a-f]{32})$", out, re.MULTILINE)
    assert state(run, "acme") == "staged"

    wrong = run.file("wrong.pem", stranger.issue_device(proof).chain_pem)
    code, _, err = run("anchor", "prove", "acme", wrong)
    assert (code, state(run, "acme")) == (1, "staged")
    assert "not signed by the key of anchor 'acme'" in err
    assert run("anchor", "disable", "acme")[0] == 1

    right = run.file("right.pem", ca.issue_device(proof).chain_pem)
    assert run("anchor", "prove", "acme", right)[0] == 0
    assert state(run, "acme") == "active"
    assert run("anchor", "prove", "acme", right)[0] == 1
    assert run("anchor", "disable", "acme")[0] == 0
    assert run("anchor", "enable", "acme")[0] == 0
    assert state(run, "acme") == "active"


def test_two_anchors_with_one_subject_and_different_keys_live_side_by_side(run: Shell) -> None:
    for name in ("old", "new"):
        root = run.file(f"{name}.pem", FactoryCa.create("Acme").certificate_pem)
        assert run("anchor", "add", root, "--name", name)[0] == 0

    anchors = json.loads(run("anchor", "list", "--json")[1])
    assert {anchor["subject"] for anchor in anchors} == {"CN=Acme"}
    assert len({anchor["key_id"] for anchor in anchors}) == 2


def test_who_removes_an_anchor_that_another_issued_is_told_that_it_is_believed_still(
    run: Shell,
) -> None:
    ca = FactoryCa.create("Acme")
    line = ca.intermediate("Acme Line 4")
    run("anchor", "add", run.file("root.pem", ca.certificate_pem), "--name", "acme")
    run("anchor", "add", run.file("line.pem", line.certificate_pem), "--name", "line-4")

    code, out, err = run("anchor", "remove", "line-4")

    assert (code, out) == (0, "removed anchor 'line-4'\n")
    assert "anchor 'acme' issued it and vouches for it still" in err
    assert "are refused from now on" in run("anchor", "remove", "acme")[1]


def test_show_counts_the_devices_that_used_an_anchor(run: Shell) -> None:
    root = run.file("root.pem", FactoryCa.create("Acme").certificate_pem)
    run("anchor", "add", root, "--name", "acme")
    for device in ("sensor-1", "sensor-2"):
        run("device", "trust", device, "--anchor", "acme")
    with SqliteRegistry.open(
        "sqlite:///registry.db", run.folder / "registry.key", run.folder
    ) as registry:
        registry.note_use(registry.get_anchor("acme").key_id, "sensor-2")
        assert asyncio.run(registry.write_uses()) == 1

    shown = json.loads(run("anchor", "show", "acme", "--json")[1])
    counts = [shown[key] for key in ("devices", "used_30_days", "used_90_days")]
    assert counts == [2, 1, 1]
    assert "without it 1 device would be kept out" in run("anchor", "show", "acme")[2]
    assert re.search(r"^sensor-2 +acme +\d{4}-", run("device", "show", "sensor-2")[1], re.MULTILINE)


def test_a_list_of_a_stranger_is_refused_and_nothing_is_written(run: Shell) -> None:
    ca, stranger = FactoryCa.create("Acme"), FactoryCa.create("Acme")
    root = run.file("root.pem", ca.certificate_pem)
    own, foreign = (
        run.file(name, each.sign_list({}).public_bytes(serialization.Encoding.PEM))
        for name, each in (("own.crl", ca), ("foreign.crl", stranger))
    )

    code, _, err = run("anchor", "add", root, "--name", "acme", "--crl", own, "--crl", foreign)
    assert code == 1
    assert "foreign.crl" in err
    assert not (run.folder / "registry.db").exists()

    assert run("anchor", "add", root, "--name", "acme", "--crl", own, "--crl-mode", "hard")[0] == 0
    (anchor,) = json.loads(run("anchor", "list", "--json")[1])
    assert (anchor["crl_files"], anchor["crl_mode"]) == ([own], "hard")


def revoked(run: Shell) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("certificate", "list", "--json")[1])
    return found


def test_a_certificate_is_revoked_by_what_its_signature_covers(run: Shell) -> None:
    """A fingerprint alone could be evaded: r, s and r, -s are two signatures of one content."""
    ca = FactoryCa.create("Acme")
    issuing = ca.intermediate("Acme Issuing")
    run("anchor", "add", run.file("root.pem", ca.certificate_pem), "--name", "acme")
    direct = x509.load_pem_x509_certificates(ca.issue_device("sensor-1").chain_pem)[0]
    below = x509.load_pem_x509_certificates(issuing.issue_device("sensor-2").chain_pem)[0]

    assert (
        run(
            *("certificate", "revoke", "--anchor", "acme"),
            *("--file", run.file("direct.pem", pem(direct))),
        )[0]
        == 0
    )
    assert (
        run(
            *("certificate", "revoke", "--anchor", "acme"),
            *("--file", run.file("below.pem", pem(below))),
        )[0]
        == 0
    )
    assert (
        run(
            *("certificate", "revoke", "--anchor", "acme"),
            *("--file", str(run.folder / "below.pem")),
            *("--issuer", run.file("issuing.pem", issuing.certificate_pem)),
        )[0]
        == 0
    )

    first, second, third = revoked(run)
    assert all(each["fingerprint"] is None for each in (first, second, third))
    assert int(str(first["serial"]), 16) == direct.serial_number
    assert first["issuer"] == str(first["key_id"])[:16]
    # Who issued it is not known: whoever below the anchor did, it is refused.
    assert (int(str(second["serial"]), 16), second["issuer"]) == (below.serial_number, None)
    assert third["serial"] == second["serial"]
    assert third["issuer"] not in (None, first["issuer"])


def test_the_fingerprint_that_openssl_prints_is_taken(run: Shell) -> None:
    ca = FactoryCa.create("Acme")
    run("anchor", "add", run.file("root.pem", ca.certificate_pem), "--name", "acme")
    leaf = x509.load_pem_x509_certificates(ca.issue_device("sensor-1").chain_pem)[0]
    digest = leaf.fingerprint(hashes.SHA256())

    printed = digest.hex(":").upper()
    assert run("certificate", "revoke", "--anchor", "acme", "--fingerprint", printed)[0] == 0

    (only,) = revoked(run)
    assert only["fingerprint"] == digest.hex()[:32]


def test_a_renewed_certificate_of_the_same_key_takes_the_place_of_the_old_one(run: Shell) -> None:
    ca = FactoryCa.create("Acme", wall=1_790_000_000.0)
    again = FactoryCa.create("Acme", key=ca.key, wall=1_791_000_000.0)
    run("anchor", "add", run.file("root.pem", ca.certificate_pem), "--name", "acme")
    before = json.loads(run("anchor", "show", "acme", "--json")[1])

    again_file = run.file("again.pem", again.certificate_pem)
    code, _, err = run("anchor", "change", "acme", "--certificate", again_file)
    assert code == 0, err
    after = json.loads(run("anchor", "show", "acme", "--json")[1])
    assert (after["key_id"], after["state"]) == (before["key_id"], "active")
    assert after["not_after"] > before["not_after"]

    other = run.file("other.pem", FactoryCa.create("Acme").certificate_pem)
    code, _, err = run("anchor", "change", "acme", "--certificate", other)
    assert code == 1
    assert "has another public key than anchor 'acme'" in err


def test_a_template_of_one_field_is_that_field(run: Shell) -> None:
    root = run.file("root.pem", FactoryCa.create("Acme").certificate_pem)
    assert run("anchor", "add", root, "--name", "acme", "--device-id", "{serial-number}")[0] == 0

    (anchor,) = json.loads(run("anchor", "list", "--json")[1])
    assert anchor["device_id"] == "serial-number"


def test_a_tenant_is_given_or_named_by_the_certificate_but_not_both(run: Shell) -> None:
    root = run.file("root.pem", FactoryCa.create("Acme").certificate_pem)
    code, _, err = run(
        *("anchor", "add", root, "--name", "acme", "--tenant", "acme"),
        *("--tenant-template", "{o}", "--serves", "acme"),
    )

    assert code == 2
    assert err.startswith("error: --tenant and --tenant-template are given both")


def test_a_staged_anchor_shows_its_code_until_it_is_proven(run: Shell) -> None:
    root = run.file("root.pem", FactoryCa.create("Acme").certificate_pem)
    _, out, _ = run("anchor", "add", root, "--name", "acme", "--require-proof")
    (code,) = re.findall(r"^code ([0-9a-f]{32})$", out, re.MULTILINE)

    assert re.search(rf"^code +{code}$", run("anchor", "show", "acme")[1], re.MULTILINE)
    assert code not in run("anchor", "show", "acme", "--json")[1]


def test_lists_are_shown_and_changed(run: Shell) -> None:
    ca = FactoryCa.create("Acme")
    root = run.file("root.pem", ca.certificate_pem)
    crl = run.file("acme.crl", ca.sign_list({}).public_bytes(serialization.Encoding.PEM))
    run("anchor", "add", root, "--name", "acme")

    assert run("anchor", "change", "acme", "--crl", crl, "--crl-mode", "hard")[0] == 0
    assert f"{crl} (hard)" in run("anchor", "show", "acme")[1]
    code, _, err = run("anchor", "change", "acme", "--no-crl")
    assert (code, "hard" in err) == (1, True)  # what would be stale then?
    assert run("anchor", "change", "acme", "--no-crl", "--crl-mode", "soft")[0] == 0
    code, _, err = run("anchor", "change", "acme", "--crl-mode", "hard")
    assert (code, "hard" in err) == (1, True)
    assert "no lists" in run("anchor", "show", "acme")[1]
    assert run("anchor", "change", "acme", "--crl-mode", "strict")[0] == 2
    assert run("anchor", "change", "acme", "--crl", root)[0] == 1
    assert run("anchor", "change", "nobody", "--no-crl")[0] == 1


def test_a_file_that_is_no_certificate_is_refused(run: Shell) -> None:
    code, _, err = run("anchor", "add", run.file("big.pem", bytes(1 << 20) + b"x"), "--name", "a")
    assert code == 2
    assert "is too large" in err
