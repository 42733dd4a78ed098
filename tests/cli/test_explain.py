"""`coapgate explain`: the verdict is the gateway's, near misses are named, nothing changes."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.cli import main
from coapgate.pki.factory import DAY, DEVICE, FactoryCa, IssuedCertificate
from coapgate.registry.sqlite import SqliteRegistry

KEY = "00112233445566778899aabbccddeeff"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "coapgate.toml").write_text('[mqtt]\nurl = "mqtt://127.0.0.1:1883"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COAPGATE_CONFIG", "coapgate.toml")
    return tmp_path


def done(*arguments: str) -> None:
    assert main(arguments) == 0


class Explained:
    """What `coapgate explain` answered."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.code = main(["explain", *arguments])
        printed = capsys.readouterr()
        self.out, self.err = printed.out, printed.err

    @property
    def verdict(self) -> str:
        """The one line that decides."""
        lines = (self.out + self.err).splitlines()
        (line,) = [each for each in lines if " would be " in each]
        assert (self.code == 0) == ("would be let in" in line)
        return line.removeprefix("error: ")


@pytest.fixture
def ca() -> FactoryCa:
    ca = FactoryCa.create("Acme Root")
    Path("root.pem").write_bytes(ca.certificate_pem)
    return ca


def show(issued: IssuedCertificate) -> str:
    """A file with what a device shows."""
    Path("device.pem").write_bytes(issued.chain_pem)
    return "device.pem"


# --- keys


def test_an_identity_is_let_in_as_its_device(capsys: pytest.CaptureFixture[str]) -> None:
    done("psk", "add", "sensor-1", "--tenant", "acme", "--identity", "id-1", "--key", f"hex:{KEY}")

    by_identity = Explained(capsys, "--psk-identity", "id-1")
    by_key = Explained(capsys, "--psk-identity", "id-1", "--key", f"hex:{KEY}")

    said = "identity 'id-1' would be let in as device 'sensor-1' of tenant 'acme', by psk-1"
    assert by_identity.verdict == by_key.verdict == said
    assert by_identity.err == ""
    assert KEY not in by_key.out + by_key.err


def test_the_text_of_a_hex_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    done("psk", "add", "sensor-1", "--key", f"text:{KEY}")

    unasked = Explained(capsys, "--psk-identity", "sensor-1")
    asked = Explained(capsys, "--psk-identity", "sensor-1", "--key", f"hex:{KEY}")

    assert unasked.code == 0
    assert "psk-1: this is the text of a hex key" in unasked.err
    assert asked.verdict == (
        "identity 'sensor-1' would be refused as bad_key: "
        "the device's key is none of those on record"
    )
    assert "the text of the hexadecimal digits of the device's key" in asked.err
    assert "the device gets no answer" in asked.err
    assert KEY not in asked.out + asked.err


def test_a_key_that_is_another_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")
    Path("key").write_text("text:an entirely different key\n")

    explained = Explained(capsys, "--psk-identity", "sensor-1", "--key-file", "key")

    assert "refused as bad_key" in explained.verdict
    assert "they have nothing in common: the device's has 25 octets, what is on record 16" in (
        explained.err
    )
    assert "entirely" not in explained.out + explained.err


def test_an_unknown_identity_comes_with_those_it_may_have_been(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done("psk", "add", "sensor-1", "--identity", "acme-1", "--key", f"hex:{KEY}")

    for asked, hint in (
        ("ACME-1", "identity 'acme-1' is known: it differs by upper and lower case"),
        (
            "sensor-1",
            "device 'sensor-1' of tenant 'default' is known, by another identity: 'acme-1'",
        ),
        ("nothing-like-it", "`coapgate psk add DEVICE --identity nothing-like-it --generate`"),
    ):
        explained = Explained(capsys, "--psk-identity", asked)
        assert "refused as unknown_identity: no device and no batch has it" in explained.verdict
        assert hint in explained.err


def test_every_key_of_an_identity_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")
    backup = f"hex:{KEY[::-1]}"
    done("psk", "rotate", "sensor-1", "--key", backup)

    by_backup = Explained(capsys, "--psk-identity", "sensor-1", "--key", backup)
    assert by_backup.verdict.endswith("by psk-2; its backup key would become the active one")
    again = Explained(capsys, "--psk-identity", "sensor-1", "--key", backup)
    assert again.verdict == by_backup.verdict  # nothing has been promoted

    done("psk", "revoke", "psk-1")
    by_old = Explained(capsys, "--psk-identity", "sensor-1", "--key", f"hex:{KEY}")
    assert by_old.code == 1
    assert "psk-2" in Explained(capsys, "--psk-identity", "sensor-1").verdict


def test_a_disabled_device_says_how_to_enable_it(capsys: pytest.CaptureFixture[str]) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")
    done("device", "disable", "sensor-1")

    explained = Explained(capsys, "--psk-identity", "sensor-1")

    assert explained.verdict == "identity 'sensor-1' would be refused as disabled"
    assert "`coapgate device enable sensor-1 --tenant default`" in explained.err
    assert "alert 44 (certificate_revoked)" in explained.err


def test_without_the_key_file_no_key_can_be_judged(capsys: pytest.CaptureFixture[str]) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")
    Path("registry.key").unlink()

    explained = Explained(capsys, "--psk-identity", "sensor-1")

    assert explained.code == 1
    assert "registry.key" in explained.err
    assert "hint: " in explained.err


def test_a_derived_key_is_explained_and_brings_no_device_into_being(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done("batch", "create", "line-4", "--pattern", "acme-{device}", "--max-devices", "1")

    explained = Explained(capsys, "--psk-identity", "acme-sensor-7")

    assert "would be let in as device 'sensor-7'" in explained.verdict
    assert "which it would bring into being" in explained.verdict
    done("batch", "revoke", "line-4")
    assert (
        "refused as unknown_identity"
        in Explained(capsys, "--psk-identity", "acme-sensor-7").verdict
    )
    capsys.readouterr()
    done("device", "list")
    assert capsys.readouterr().out == "no devices\n"


def test_a_batch_that_is_full_brings_no_other_device_into_being(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done("batch", "create", "line-4", "--pattern", "acme-{device}", "--max-devices", "1")
    with SqliteRegistry.open("sqlite:///registry.db", Path("registry.key"), Path()) as registry:
        (derived,) = asyncio.run(registry.find_psk(b"acme-sensor-1"))
        asyncio.run(registry.register_derived(derived))

    assert "would be let in" in Explained(capsys, "--psk-identity", "acme-sensor-1").verdict
    assert "refused as limit" in Explained(capsys, "--psk-identity", "acme-sensor-2").verdict


# --- certificates


def test_a_certificate_is_let_in_without_any_effect(
    capsys: pytest.CaptureFixture[str], ca: FactoryCa
) -> None:
    done("anchor", "add", "root.pem", "--name", "acme", "--auto-provision")
    file = show(ca.intermediate("Line 4").issue_device("sensor-7"))

    for _ in range(2):
        explained = Explained(capsys, "--cert", file)
        assert explained.verdict.startswith(
            "the certificate in 'device.pem' would be let in as device 'sensor-7' of tenant "
            "'default', by sha256:"
        )
        assert explained.verdict.endswith(", which it would bring into being")
    assert "sent with it   CN=Line 4" in explained.out
    capsys.readouterr()
    done("device", "list")
    assert capsys.readouterr().out == "no devices\n"


def refusals(ca: FactoryCa) -> dict[str, tuple[IssuedCertificate, str, str]]:
    """Certificates of a factory, the reason for which each is refused, and what helps."""
    now = time.time()
    stranger = FactoryCa.create("Acme Root")
    elsewhere = FactoryCa.create("Other Root")
    hidden = ca.intermediate("Line 4").issue_device("sensor-7")
    expired = replace(DEVICE, not_before=now - 2 * DAY, not_after=now - DAY)
    return {
        "a namesake": (
            stranger.issue_device("sensor-7"),
            "untrusted",
            "anchor 'acme' has the name of the issuer, CN=Acme Root, but another key",
        ),
        "a stranger": (
            elsewhere.issue_device("sensor-7"),
            "untrusted",
            "no anchor is called CN=Other Root, which issued CN=sensor-7",
        ),
        "without its intermediate": (
            replace(hidden, chain=hidden.chain[:1]),
            "untrusted",
            "have the device send what is missing",
        ),
        "self-signed": (
            IssuedCertificate((elsewhere.certificate.public_bytes(Encoding.DER),), elsewhere.key),
            "untrusted",
            "it is signed by itself",
        ),
        "unknown here": (
            ca.issue_device("sensor-7"),
            "credential_mismatch",
            "`coapgate device trust sensor-7 --tenant default --anchor acme` joins them",
        ),
        "expired": (
            ca.issue_device("sensor-7", profile=expired),
            "expired",
            "CN=sensor-7 is valid ",
        ),
        "in the wrong order": (
            replace(hidden, chain=hidden.chain[::-1]),
            "wrong_usage",
            "the device's own comes first",
        ),
        "no name": (ca.issue_device("two words"), "malformed", "`coapgate anchor show`"),
        "weak": (
            ca.issue_device("sensor-7", key=rsa.generate_private_key(65537, 1024)),
            "weak_key",
            "RSA of 2048 to 4096 bits",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "a namesake",
        "a stranger",
        "without its intermediate",
        "self-signed",
        "unknown here",
        "expired",
        "in the wrong order",
        "no name",
        "weak",
    ],
)
def test_a_certificate_that_would_be_refused_comes_with_what_to_do(
    capsys: pytest.CaptureFixture[str], ca: FactoryCa, case: str
) -> None:
    done("anchor", "add", "root.pem", "--name", "acme")
    issued, reason, hint = refusals(ca)[case]

    explained = Explained(capsys, "--cert", show(issued))

    assert f"would be refused as {reason}" in explained.verdict
    assert hint in explained.err
    assert "hint: the device is told alert " in explained.err


def test_an_anchor_that_is_not_active_is_named(
    capsys: pytest.CaptureFixture[str], ca: FactoryCa
) -> None:
    file = show(ca.issue_device("sensor-7"))
    explained = Explained(capsys, "--cert", file)
    assert "no registry" in explained.err
    done("anchor", "add", "root.pem", "--name", "acme", "--require-proof", "--auto-provision")
    assert "is staged: `coapgate anchor prove` is next" in Explained(capsys, "--cert", file).err
    done("anchor", "remove", "acme")
    assert "there is no trust anchor" in Explained(capsys, "--cert", file).err
    done("anchor", "add", "root.pem", "--name", "acme", "--auto-provision")
    done("anchor", "disable", "acme")
    assert "is disabled: `coapgate anchor enable` is next" in (
        Explained(capsys, "--cert", file).err
    )


def test_a_revoked_certificate_is_explained_by_its_list_or_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done("pki", "init", "ca", "--name", "Acme Root")
    for name in ("a", "b", "c"):
        done("pki", "issue", name, "--ca", "ca")
    done("pki", "crl", "--ca", "ca", "--revoke", "a.pem")
    done("anchor", "add", "ca/ca.pem", "--name", "acme", "--auto-provision", "--crl", "ca/ca.crl")
    done("certificate", "revoke", "--anchor", "acme", "--file", "b.pem")

    for name in ("a", "b"):
        explained = Explained(capsys, "--cert", f"{name}.pem")
        assert "refused as revoked: the device's certificate" in explained.verdict
        assert "alert 44" in explained.err
    assert Explained(capsys, "--cert", "c.pem").code == 0
    # A list that cannot be read: the gateway keeps the last good one, this command has none.
    Path("ca/ca.crl").write_text("damaged")
    explained = Explained(capsys, "--cert", "c.pem")
    assert explained.code == 1
    assert "refused as unavailable: a revocation list could not be read yet" in explained.verdict
    assert "a gateway that had read" in explained.err
    assert "hint: revocation list of anchor 'acme': " in explained.err


def test_rules_of_an_anchor_that_a_certificate_breaks_are_named(
    capsys: pytest.CaptureFixture[str], ca: FactoryCa
) -> None:
    file = show(ca.issue_device("sensor-7"))
    shared = ("--tenant-template", "{cn}", "--serves", "north")
    for rule, verdict in (
        (("--max-validity", "30"), "refused as wrong_usage: valid for 10951 days"),
        (("--device-id", "{o}:{cn}"), "refused as malformed: 0 values of o"),
        (shared, "refused as tenant_mismatch: the anchor does not serve tenant 'sensor-7'"),
    ):
        done("anchor", "add", "root.pem", "--name", "acme", "--auto-provision", *rule)
        explained = Explained(capsys, "--cert", file)
        assert verdict in explained.verdict
        assert "hint: `coapgate anchor show` " in explained.err
        done("anchor", "remove", "acme")


def test_a_device_known_otherwise_is_not_taken_over(
    capsys: pytest.CaptureFixture[str], ca: FactoryCa
) -> None:
    done("anchor", "add", "root.pem", "--name", "acme", "--auto-provision")
    done("psk", "add", "sensor-7", "--key", f"hex:{KEY}")

    explained = Explained(capsys, "--cert", show(ca.issue_device("sensor-7")))

    assert "refused as credential_mismatch" in explained.verdict
    assert "device 'sensor-7' is there, by other credentials" in explained.err


def test_json_says_the_same(capsys: pytest.CaptureFixture[str], ca: FactoryCa) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")

    good = Explained(capsys, "--psk-identity", "sensor-1", "--json")
    bad = Explained(capsys, "--psk-identity", "Sensor-1", "--json")

    assert (good.code, bad.code) == (0, 1)
    answer = json.loads(good.out)
    assert (answer["let_in"], answer["device"], answer["credential"]) == (True, "sensor-1", "psk-1")
    answer = json.loads(bad.out)
    assert (answer["let_in"], answer["reason"]) == (False, "unknown_identity")
    assert answer["hints"]
    assert good.err == bad.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say one of --cert and --psk-identity"),
        (("--cert", "a.pem", "--psk-identity", "a"), "say one of --cert and --psk-identity"),
        (("--cert", "a.pem", "--key", f"hex:{KEY}"), "a key goes with --psk-identity"),
        (("--psk-identity", "a", "--key", "x", "--key-file", "y"), "say one of --key and"),
        (("--psk-identity", "a", "--key", "abcdef"), "a key says how it is written"),
        (("--psk-identity", ""), "the identity is empty"),
        (("--cert", "nowhere.pem"), "cannot read 'nowhere.pem'"),
    ],
)
def test_misuse_is_told(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")

    explained = Explained(capsys, *arguments)

    assert explained.code == 2
    assert message in explained.err


def test_a_file_without_a_certificate_says_what_is_wanted(
    capsys: pytest.CaptureFixture[str], ca: FactoryCa
) -> None:
    done("psk", "add", "sensor-1", "--key", f"hex:{KEY}")
    Path("device.key").write_bytes(ca.issue_device("a").key_pem)

    explained = Explained(capsys, "--cert", "device.key")

    assert explained.code == 1
    assert "this is a key: its certificate is wanted" in explained.err
