"""Revocation lists: which are taken, whom they concern, and what is remembered of a path."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import DEFAULT_TENANT, MARK_LENGTH, DeviceIdSource, TrustAnchor
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.chains import verify_chain
from coapgate.pki.factory import AUTHORITY, DAY, FactoryCa, IssuedCertificate, PrivateKey, key_usage
from coapgate.pki.revocation import (
    MAX_AUTHORITIES,
    RevocationList,
    Revocations,
    key_id_of,
    load_lists,
    parse_lists,
)
from coapgate.pki.revoked import Singly, issuer_mark
from tests.peers import require

WALL = 1_800_000_000.0

ROOT = FactoryCa.create("Acme Root", wall=WALL)
FACTORY = ROOT.intermediate("Acme Factory 1")


def trust(ca: FactoryCa) -> TrustAnchor:
    return parse_anchor(
        ca.certificate_pem,
        name="acme",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=WALL,
    )


ANCHOR = trust(ROOT)


def serial_of(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


def pem(*lists: x509.CertificateRevocationList) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in lists)


def path_of(chain: tuple[bytes, ...], anchor: TrustAnchor = ANCHOR) -> bytes:
    return verify_chain(chain, (anchor,), WALL).path


def refusal(revocations: Revocations, path: bytes, wall: float = WALL) -> Reason | None:
    try:
        revocations.judge(path, wall)
    except Refused as refused:
        return refused.reason
    return None


def revoking(*certificates: bytes, by: FactoryCa = ROOT) -> Revocations:
    """What the gateway knows once it has read the list of `by`."""
    signed = by.sign_list(dict.fromkeys(map(serial_of, certificates), WALL))
    return Revocations.gather(parse_lists(pem(signed) + by.certificate_pem, ANCHOR, WALL))


def by_command(key_id: bytes = ANCHOR.key_id, **revoked: bytes) -> Revocations:
    singly = Singly()
    singly.add(key_id, **revoked)
    return Revocations.gather(singly=singly)


# --- whom a list concerns


def test_a_revoked_certificate_is_refused_and_no_other() -> None:
    lost, good = ROOT.issue_device("lost"), ROOT.issue_device("good")

    revocations = revoking(lost.chain[0])

    assert refusal(revocations, path_of(lost.chain)) is Reason.REVOKED
    assert refusal(revocations, path_of(good.chain)) is None


def test_a_revoked_intermediate_takes_all_below_it_along() -> None:
    other = ROOT.intermediate("Acme Factory 2")

    revocations = revoking(FACTORY.chain[0])

    below, beside = FACTORY.issue_device("a"), other.issue_device("a")
    assert refusal(revocations, path_of(below.chain)) is Reason.REVOKED
    assert refusal(revocations, path_of(beside.chain)) is None


def test_a_list_concerns_what_its_own_authority_has_issued_whatever_the_serial_number() -> None:
    device = FACTORY.issue_device("sensor-7")

    by_root = revoking(device.chain[0], by=ROOT)
    by_factory = revoking(device.chain[0], by=FACTORY)

    assert refusal(by_root, path_of(device.chain)) is None
    assert refusal(by_factory, path_of(device.chain)) is Reason.REVOKED


def test_a_path_is_remembered_leaf_first_with_all_that_is_below_the_anchor() -> None:
    lower = FACTORY.intermediate("Line 4")

    path = path_of(lower.issue_device("a").chain)

    assert len(path) == 3 * MARK_LENGTH
    issuers = [path[at : at + 8] for at in range(0, len(path), MARK_LENGTH)]
    assert issuers == [issuer_mark(key_id_of(ca.certificate)) for ca in (lower, FACTORY, ROOT)]
    assert path_of(lower.issue_device("a").chain)[MARK_LENGTH:] == path[MARK_LENGTH:]


def test_the_newest_list_of_an_authority_is_in_force() -> None:
    lost, back = ROOT.issue_device("lost"), ROOT.issue_device("back")
    older = ROOT.sign_list({serial_of(back.chain[0]): WALL}, number=1)
    newer = ROOT.sign_list({serial_of(lost.chain[0]): WALL}, number=2)

    for lists in ((older, newer), (newer, older)):
        revocations = Revocations.gather(parse_lists(pem(*lists), ANCHOR, WALL))
        assert refusal(revocations, path_of(lost.chain)) is Reason.REVOKED
        assert refusal(revocations, path_of(back.chain)) is None


# --- what commands revoke


def test_a_command_revokes_by_fingerprint_or_serial_number() -> None:
    device, other = FACTORY.issue_device("a"), FACTORY.issue_device("b")
    fingerprint = verify_chain(device.chain, (ANCHOR,), WALL).fingerprint
    serial = serial_of(device.chain[0]).to_bytes(20, "big")
    issuer = issuer_mark(key_id_of(FACTORY.certificate))

    for revoked in (
        {"fingerprint": fingerprint},
        {"fingerprint": fingerprint[:16]},
        {"serial": serial},
        {"serial": serial.lstrip(b"\0")},
        {"serial": serial, "issuer": issuer},
    ):
        revocations = by_command(**revoked)
        assert refusal(revocations, path_of(device.chain)) is Reason.REVOKED
        assert refusal(revocations, path_of(other.chain)) is None
    elsewhere = by_command(serial=serial, issuer=issuer_mark(ANCHOR.key_id))
    assert refusal(elsewhere, path_of(device.chain)) is None


def test_what_a_command_revokes_below_an_intermediate_is_so_below_its_root_too() -> None:
    device = FACTORY.issue_device("b")
    serial = serial_of(device.chain[0]).to_bytes(20, "big")

    below_factory = by_command(key_id_of(FACTORY.certificate), serial=serial)

    assert refusal(below_factory, path_of(device.chain)) is Reason.REVOKED
    # The intermediate is not below itself.
    own = serial_of(FACTORY.chain[0]).to_bytes(20, "big")
    above = by_command(key_id_of(FACTORY.certificate), serial=own)
    assert refusal(above, path_of(device.chain)) is None


def test_what_two_commands_revoke_is_so_until_both_are_taken_back() -> None:
    device = FACTORY.issue_device("a")
    fingerprint = verify_chain(device.chain, (ANCHOR,), WALL).fingerprint
    serial = serial_of(device.chain[0]).to_bytes(20, "big")
    issuer = issuer_mark(key_id_of(FACTORY.certificate))
    for one, other in (
        ({"fingerprint": fingerprint[:8]}, {"fingerprint": fingerprint[:16]}),
        ({"serial": serial}, {"serial": serial.lstrip(b"\0")}),
        ({"serial": serial, "issuer": issuer}, {"serial": serial}),
    ):
        singly = Singly()
        singly.add(ANCHOR.key_id, **one)
        singly.add(ANCHOR.key_id, **other)
        singly.remove(ANCHOR.key_id, **one)
        assert singly.covers(path_of(device.chain))
        singly.remove(ANCHOR.key_id, **other)
        assert not singly.covers(path_of(device.chain))


def test_a_command_revokes_an_intermediate_too() -> None:
    device = FACTORY.issue_device("a")
    (intermediate,) = FACTORY.chain
    serial = serial_of(intermediate).to_bytes(20, "big")

    assert refusal(by_command(serial=serial), path_of(device.chain)) is Reason.REVOKED


def test_without_anything_there_is_nothing_to_ask() -> None:
    assert not Revocations.gather()
    assert Revocations.gather(is_hard=True)
    assert refusal(Revocations(), path_of(FACTORY.issue_device("a").chain)) is None


# --- lists that are stale


def test_a_stale_list_still_revokes_what_it_names() -> None:
    lost, good = ROOT.issue_device("lost"), ROOT.issue_device("good")
    stale = ROOT.sign_list({serial_of(lost.chain[0]): WALL}, next_update=WALL + DAY)
    (read,) = parse_lists(pem(stale), ANCHOR, WALL + 2 * DAY)

    for is_hard in (False, True):
        revocations = Revocations.gather([read], is_hard=is_hard)
        assert refusal(revocations, path_of(lost.chain), WALL + 2 * DAY) is Reason.REVOKED
    assert refusal(Revocations.gather([read]), path_of(good.chain), WALL + 2 * DAY) is None


def test_hard_refuses_when_a_list_is_stale_and_soft_does_not() -> None:
    path = path_of(ROOT.issue_device("good").chain)
    lists = parse_lists(pem(ROOT.sign_list({}, next_update=WALL + DAY)), ANCHOR, WALL)

    hard, soft = Revocations.gather(lists, is_hard=True), Revocations.gather(lists)

    assert refusal(hard, path, WALL + DAY) is None
    assert refusal(hard, path, WALL + DAY + 1) is Reason.UNAVAILABLE
    assert refusal(soft, path, WALL + DAY + 1) is None


def test_hard_wants_a_list_of_every_issuer() -> None:
    path = path_of(FACTORY.issue_device("good").chain)
    of_root, of_factory = pem(ROOT.sign_list({})), pem(FACTORY.sign_list({}))

    for octets, expected in (
        (of_root, Reason.UNAVAILABLE),
        (of_factory + FACTORY.certificate_pem, Reason.UNAVAILABLE),
        (of_root + of_factory + FACTORY.certificate_pem, None),
    ):
        lists = parse_lists(octets, ANCHOR, WALL)
        assert refusal(Revocations.gather(lists, is_hard=True), path) is expected
    assert refusal(Revocations.gather(is_hard=True), path) is Reason.UNAVAILABLE


# --- what can be no list


def expect_refused(octets: bytes, message: str, anchor: TrustAnchor = ANCHOR) -> CertificateError:
    with pytest.raises(CertificateError, match=message) as caught:
        parse_lists(octets, anchor, WALL)
    assert caught.value.hint
    return caught.value


def test_a_list_of_a_stranger_is_refused() -> None:
    stranger = FactoryCa.create("Acme Root", wall=WALL)
    other = FactoryCa.create("Other Root", wall=WALL)

    for ca in (stranger, other):
        expect_refused(pem(ca.sign_list({})), "signed neither by the anchor 'acme'")


def test_a_list_of_an_intermediate_that_is_not_in_the_file_is_refused_with_what_to_do() -> None:
    error = expect_refused(pem(FACTORY.sign_list({})), "nor by an intermediate")

    assert "append the certificate of the intermediate" in error.hint


def test_intermediates_may_stand_in_any_order_in_the_file() -> None:
    lower = FACTORY.intermediate("Line 4")
    signed = pem(lower.sign_list({}))

    for certificates in (
        lower.certificate_pem + FACTORY.certificate_pem,
        FACTORY.certificate_pem + ROOT.certificate_pem + lower.certificate_pem,
    ):
        (found,) = parse_lists(signed + certificates, ANCHOR, WALL)
        assert found.issuer == key_id_of(lower.certificate)
        assert found.subject == "CN=Line 4"
    expect_refused(signed + lower.certificate_pem, "CN=Line 4 in it is not beneath the anchor")


def test_a_device_cannot_revoke_its_neighbours() -> None:
    device = ROOT.issue_device("sensor-1")
    certificate = x509.load_der_x509_certificate(device.chain[0])
    forger = FactoryCa(certificate, device.key, WALL)

    octets = pem(forger.sign_list({1: WALL})) + device.chain_pem

    expect_refused(octets, "CN=sensor-1 in it cannot be used: wrong_usage")


def test_an_authority_that_may_not_sign_lists_signs_none() -> None:
    usage = key_usage(key_cert_sign=True)
    without = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    for allowed in (usage, None):
        ca = FactoryCa.create("Acme", profile=replace(AUTHORITY, usage=allowed), wall=WALL)
        assert parse_lists(pem(ca.sign_list({})), trust(ca), WALL)
    ca = FactoryCa.create("Acme", profile=replace(AUTHORITY, usage=without), wall=WALL)
    expect_refused(pem(ca.sign_list({})), "signed neither", trust(ca))


@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)],
    ids=["ed25519", "rsa"],
)
def test_lists_may_be_signed_with_every_key_that_an_anchor_may_have(key: PrivateKey) -> None:
    ca = FactoryCa.create("Acme", key=key, wall=WALL)

    assert parse_lists(pem(ca.sign_list({7: WALL})), trust(ca), WALL)


def test_a_weakly_signed_list_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    ca = FactoryCa.create("Acme", key=key, wall=WALL)
    begins, ends = ca.certificate.not_valid_before_utc, ca.certificate.not_valid_after_utc
    builder = x509.CertificateRevocationListBuilder(ca.certificate.subject, begins, ends)

    assert parse_lists(pem(builder.sign(key, hashes.SHA256())), trust(ca), WALL)
    expect_refused(pem(builder.sign(key, hashes.SHA224())), "signed neither", trust(ca))


PART = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=True,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "no revocation list can be read"),
    "text": (lambda: b"not a list", "no revocation list can be read"),
    "a certificate": (lambda: ROOT.certificate_pem, "no revocation list can be read"),
    "cut short": (
        lambda: ROOT.sign_list({}).public_bytes(Encoding.DER)[:-1],
        "no revocation list can be read",
    ),
    "a delta": (
        lambda: pem(ROOT.sign_list({}, extensions=((x509.DeltaCRLIndicator(1), True),))),
        "only a part",
    ),
    "a part, not marked critical": (
        lambda: pem(ROOT.sign_list({}, extensions=((PART, False),))),
        "only a part",
    ),
    "a delta, not marked critical": (
        lambda: pem(ROOT.sign_list({}, extensions=((x509.DeltaCRLIndicator(1), False),))),
        "only a part",
    ),
    "one that does not end, behind another": (
        lambda: pem(ROOT.sign_list({}), ROOT.sign_list({}))[:-30],
        "no revocation list can be read",
    ),
    "a part": (lambda: pem(ROOT.sign_list({}, extensions=((PART, True),))), "only a part"),
    "of the future": (
        lambda: pem(ROOT.sign_list({}, this_update=WALL + DAY, next_update=WALL + 2 * DAY)),
        "of the future",
    ),
    "too many": (lambda: pem(ROOT.sign_list({})) * (MAX_AUTHORITIES + 1), "it holds 65 lists"),
}


@pytest.mark.parametrize(("build", "message"), BAD.values(), ids=BAD.keys())
def test_what_can_be_no_list_is_refused(build: Callable[[], bytes], message: str) -> None:
    expect_refused(build(), message)


def test_a_flipped_octet_is_noticed() -> None:
    octets = bytearray(ROOT.sign_list({7: WALL}).public_bytes(Encoding.DER))
    octets[-1] ^= 1

    expect_refused(bytes(octets), "signed neither|no revocation list")


def test_a_list_in_der_is_taken_too(tmp_path: Path) -> None:
    file = tmp_path / "acme.crl"
    file.write_bytes(ROOT.sign_list({7: WALL}, number=12).public_bytes(Encoding.DER))

    (found,) = load_lists(file, ANCHOR, WALL)

    assert isinstance(found, RevocationList)
    assert (found.number, found.this_update, len(found.revoked)) == (12, WALL, 1)
    assert found.next_update == WALL + 30 * DAY


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"gone\.crl' cannot be read: No such file"):
        load_lists(tmp_path / "gone.crl", ANCHOR, WALL)
    (tmp_path / "bad.crl").write_bytes(b"bad")
    with pytest.raises(CertificateError, match=r"bad\.crl': no revocation list can be read"):
        load_lists(tmp_path / "bad.crl", ANCHOR, WALL)


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.crl")
    for file in (tmp_path / "pipe.crl", Path("/dev/zero")):
        with pytest.raises(CertificateError, match="cannot be read: it is no regular file"):
            load_lists(file, ANCHOR, WALL)
    with pytest.raises(CertificateError, match="cannot be read: Is a directory"):
        load_lists(tmp_path, ANCHOR, WALL)


def test_text_around_blocks_and_other_blocks_are_passed_over() -> None:
    signed = pem(ROOT.sign_list({7: WALL}))
    other = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

    (found,) = parse_lists(b"# of today\n" + other + signed + b"# end\n", ANCHOR, WALL)

    assert len(found.revoked) == 1


def test_a_list_made_by_openssl_is_understood(tmp_path: Path) -> None:
    openssl = require("openssl")
    ca = FactoryCa.create("Acme Root")
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem)
    lost = ca.issue_device("lost")
    lost.write(tmp_path, "lost")
    (tmp_path / "ca.key").write_bytes(IssuedCertificate((), ca.key).key_pem)
    (tmp_path / "index.txt").write_text("")
    (tmp_path / "openssl.cnf").write_text(
        "[ca]\ndefault_ca = acme\n[acme]\ndatabase = index.txt\ndefault_md = sha256\n"
        "default_crl_days = 7\ncrlnumber = number\n"
    )
    (tmp_path / "number").write_text("0A\n")
    common = [openssl, "ca", "-config", "openssl.cnf", "-cert", "ca.pem", "-keyfile", "ca.key"]
    for arguments in (["-revoke", "lost.pem"], ["-gencrl", "-out", "ca.crl"]):
        subprocess.run([*common, *arguments], cwd=tmp_path, check=True, capture_output=True)
    wall = ca.created_at + 60

    lists = load_lists(tmp_path / "ca.crl", trust_now(ca), wall)

    path = verify_chain(lost.chain, (trust_now(ca),), wall).path
    assert lists[0].number == 10
    assert refusal(Revocations.gather(lists), path, wall) is Reason.REVOKED


def trust_now(ca: FactoryCa) -> TrustAnchor:
    return replace(
        ANCHOR,
        key_id=key_id_of(ca.certificate),
        certificate=ca.certificate.public_bytes(Encoding.DER),
    )
