"""Proof of possession: only a certificate for our code, by the anchor's own key, is one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coapgate.errors import CertificateError
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, TrustAnchor
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import DAY, DEVICE, FactoryCa, common_name
from coapgate.pki.proofs import make_code, verify_proof

WALL = 1_800_000_000.0

ROOT = FactoryCa.create("Acme Root", wall=WALL)
CODE = "00112233445566778899aabbccddeeff"


def trust(ca: FactoryCa, code: str = CODE) -> TrustAnchor:
    anchor = parse_anchor(
        ca.certificate_pem,
        name="acme",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=WALL,
    )
    return replace(anchor, proof_code=code)


def expect_refused(pem: bytes, message: str, anchor: TrustAnchor | None = None) -> None:
    with pytest.raises(CertificateError, match=message) as caught:
        verify_proof(pem, anchor or trust(ROOT), WALL)
    assert caught.value.hint


def test_codes_differ_and_fit_a_common_name() -> None:
    codes = {make_code() for _ in range(100)}

    assert len(codes) == 100
    assert {len(code) for code in codes} == {32}


def test_a_certificate_for_the_code_by_the_key_of_the_anchor_proves_it() -> None:
    factory = ROOT.intermediate("Acme Factory")

    verify_proof(ROOT.issue_device(CODE).chain_pem, trust(ROOT), WALL)
    verify_proof(factory.issue_device(CODE).chain_pem, trust(factory), WALL)


def test_a_certificate_for_another_code_proves_nothing() -> None:
    for name in ("sensor-7", CODE[:-1], CODE + "0", CODE.upper()):
        expect_refused(ROOT.issue_device(name).chain_pem, "does not name the code")
    both = ROOT.issue_device("", subject=common_name(CODE, "sensor-7"))
    expect_refused(both.chain_pem, "does not name the code")


def test_a_certificate_by_another_key_proves_nothing() -> None:
    namesake = FactoryCa.create("Acme Root", wall=WALL)
    beneath = ROOT.intermediate("Acme Factory")

    for ca in (namesake, beneath, FactoryCa.create("Other", wall=WALL)):
        expect_refused(ca.issue_device(CODE).chain_pem, "not signed by the key of anchor 'acme'")


def test_an_old_certificate_proves_nothing() -> None:
    profile = replace(DEVICE, not_before=WALL - 2 * DAY, not_after=WALL - DAY)

    expect_refused(ROOT.issue_device(CODE, profile=profile).chain_pem, "proves nothing: expired")


def test_an_anchor_without_a_code_cannot_be_proven() -> None:
    expect_refused(ROOT.issue_device(CODE).chain_pem, "does not name", trust(ROOT, ""))


@pytest.mark.parametrize("octets", [b"", b"text", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_proves_nothing(octets: bytes) -> None:
    expect_refused(octets, "no certificate can be read")
