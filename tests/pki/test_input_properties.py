"""Whatever an operator gives for a list, a proof or a request: an error of ours, or sense."""

from __future__ import annotations

import contextlib
from base64 import encodebytes
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from coapgate.errors import CertificateError, Refused
from coapgate.model import DEFAULT_TENANT, MARK_LENGTH, DeviceIdSource, Tenant, is_name
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.chains import ChainVerifier
from coapgate.pki.factory import DEVICE, FactoryCa
from coapgate.pki.proofs import verify_proof
from coapgate.pki.requests import parse_request
from coapgate.pki.revocation import Revocations, parse_lists
from coapgate.pki.templates import parse_template

WALL = 1_800_000_000.0

ROOT = FactoryCa.create("Acme Root", wall=WALL)
FACTORY = ROOT.intermediate("Line 4")
ANCHOR = replace(
    parse_anchor(
        ROOT.certificate_pem,
        name="acme",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=WALL,
    ),
    proof_code="00112233",
    device_id_template="{o}:{san-uri}",
    tenant_template="{ou}",
    tenants=(Tenant("north"),),
)

LIST = ROOT.sign_list({7: WALL, 1 << 150: WALL})
PROOF = ROOT.issue_device("00112233").chain[0]
REQUEST = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sensor-7")]))
    .add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("urn:dev:7")]), critical=False
    )
    .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    .public_bytes(Encoding.DER)
)
LEAF = FACTORY.issue_device(
    "",
    subject=x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "north"),
        ]
    ),
    profile=replace(DEVICE, alternative_names=(x509.UniformResourceIdentifier("urn"),)),
).chain

Places = list[tuple[float, int]]

CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
)


def change(octets: bytes, places: Places) -> bytes:
    changed = bytearray(octets)
    for place, octet in places:
        changed[int(place * len(octets))] = octet
    return bytes(changed)


def pem(kind: str, der: bytes) -> bytes:
    return (
        f"-----BEGIN {kind}-----\n".encode() + encodebytes(der) + f"-----END {kind}-----\n".encode()
    )


@given(octets=st.binary(max_size=300))
def test_any_octets_are_no_list_no_proof_and_no_request(octets: bytes) -> None:
    for each in (octets, pem("X509 CRL", octets), pem("CERTIFICATE", octets)):
        with contextlib.suppress(CertificateError):
            parse_lists(each, ANCHOR, WALL)
        with contextlib.suppress(CertificateError):
            verify_proof(each, ANCHOR, WALL)
    for each in (octets, pem("CERTIFICATE REQUEST", octets)):
        with contextlib.suppress(CertificateError):
            parse_request(each)


@given(places=CHANGES)
def test_a_list_that_was_changed_anywhere_is_refused(places: Places) -> None:
    original = LIST.public_bytes(Encoding.DER)
    changed = change(original, places)
    for octets in (changed, pem("X509 CRL", changed)):
        try:
            (found,) = parse_lists(octets, ANCHOR, WALL)
        except CertificateError:
            continue
        # An ECDSA signature may be written in more than one way; what is signed may not.
        last = x509.load_der_x509_crl(changed)
        assert last.tbs_certlist_bytes == LIST.tbs_certlist_bytes
        assert len(found.revoked) == 2


@given(places=CHANGES)
def test_a_list_with_a_changed_intermediate_gives_no_other_authority(places: Places) -> None:
    signed = FACTORY.sign_list({7: WALL}).public_bytes(Encoding.PEM)
    changed = pem("CERTIFICATE", change(FACTORY.chain[0], places))

    with contextlib.suppress(CertificateError):
        (found,) = parse_lists(signed + changed, ANCHOR, WALL)
        assert found.subject == "CN=Line 4"


@given(places=CHANGES)
def test_a_proof_or_request_that_was_changed_is_judged_or_refused(places: Places) -> None:
    with contextlib.suppress(CertificateError):
        verify_proof(pem("CERTIFICATE", change(PROOF, places)), ANCHOR, WALL)
    with contextlib.suppress(CertificateError):
        request = parse_request(pem("CERTIFICATE REQUEST", change(REQUEST, places)))
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert [each.value for each in names] == ["sensor-7"]


@given(places=CHANGES, which=st.integers(0, 1))
def test_a_chain_that_was_changed_yields_names_by_template_or_is_refused(
    places: Places, which: int
) -> None:
    chain = list(LEAF)
    chain[which] = change(chain[which], places)
    verifier = ChainVerifier((ANCHOR,))

    with contextlib.suppress(Refused):
        verified = verifier.verify(chain, WALL)
        assert is_name(verified.value)
        assert verified.tenant == "north"
        assert len(verified.path) == 2 * MARK_LENGTH


@given(text=st.text("{}cno-u:serialnumbr .", max_size=30))
def test_any_template_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(CertificateError):
        template = parse_template(text)
        assert template.fields
        assert len(template.literals) == len(template.fields) + 1


@given(path=st.binary(max_size=200))
def test_any_path_is_judged(path: bytes) -> None:
    revocations = Revocations.gather(
        parse_lists(LIST.public_bytes(Encoding.DER), ANCHOR, WALL), is_hard=True
    )

    with contextlib.suppress(Refused):
        revocations.judge(path, WALL)
    assert not revocations.covers(path)


def test_the_chain_that_is_changed_is_good() -> None:
    verified = ChainVerifier((ANCHOR,)).verify(LEAF, WALL)

    assert (verified.tenant, verified.value) == ("north", "Acme:urn")
