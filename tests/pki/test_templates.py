"""Names made of several values of a certificate: what they yield, and that no two can be one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, Tenant, TrustAnchor, is_name
from coapgate.pki.anchors import check_rules, describe_key, parse_anchor
from coapgate.pki.chains import verify_chain
from coapgate.pki.factory import DAY, DEVICE, FactoryCa, PrivateKey
from coapgate.pki.templates import MAX_TEMPLATE_LENGTH, parse_template, parse_tenant_rule

WALL = 1_800_000_000.0

OIDS = {
    "cn": NameOID.COMMON_NAME,
    "o": NameOID.ORGANIZATION_NAME,
    "ou": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "serial-number": NameOID.SERIAL_NUMBER,
}

ROOT = FactoryCa.create("Acme Root", wall=WALL)

ANCHOR = parse_anchor(
    ROOT.certificate_pem,
    name="acme",
    tenant=DEFAULT_TENANT,
    device_id_source=DeviceIdSource.CN,
    auto_provision=True,
    wall=WALL,
)

Values = dict[str, str | tuple[str, ...]]


def leaf(values: Values, uris: tuple[str, ...] = ()) -> bytes:
    subject = x509.Name(
        x509.NameAttribute(OIDS[name], value)
        for name, given in values.items()
        for value in ((given,) if isinstance(given, str) else given)
    )
    names = tuple(map(x509.UniformResourceIdentifier, uris))
    profile = replace(DEVICE, alternative_names=names)
    return ROOT.issue_device("", subject=subject, profile=profile).chain[0]


def certificate(values: Values, uris: tuple[str, ...] = ()) -> x509.Certificate:
    return x509.load_der_x509_certificate(leaf(values, uris))


def reason(chain: bytes, anchor: TrustAnchor) -> Reason:
    with pytest.raises(Refused) as caught:
        verify_chain((chain,), (anchor,), WALL)
    return caught.value.reason


@pytest.mark.parametrize(
    ("template", "values", "name"),
    [
        ("{cn}", {"cn": "sensor-7"}, "sensor-7"),
        ("acme-{cn}", {"cn": "sensor-7"}, "acme-sensor-7"),
        ("{o}:{serial-number}", {"o": "Acme", "serial-number": "0042"}, "Acme:0042"),
        ("{o}-{ou}-{cn}.dev", {"o": "a", "ou": "b", "cn": "c"}, "a-b-c.dev"),
        ("{cn}", {"cn": "x" * 64}, "x" * 64),
    ],
)
def test_a_template_yields_a_name(template: str, values: Values, name: str) -> None:
    assert parse_template(template).render(certificate(values)) == name


def test_a_uri_may_be_part_of_a_name() -> None:
    found = certificate({"o": "Acme"}, ("urn:dev:7",))

    assert parse_template("{o}~{san-uri}").render(found) == "Acme~urn:dev:7"


@pytest.mark.parametrize(
    ("template", "values", "detail"),
    [
        ("{o}:{cn}", {"cn": "a"}, "0 values of o, exactly one is wanted"),
        ("{o}:{cn}", {"o": ("a", "b"), "cn": "c"}, "2 values of o"),
        ("{o}:{cn}", {"o": "a", "cn": "b:c"}, "cn 'b:c' contains ':', which joins"),
        ("{o}:{cn}", {"o": "a:b", "cn": "c"}, "o 'a:b' contains ':', which joins"),
        ("{o}.-{cn}", {"o": "a", "cn": "b-c"}, "cn 'b-c' contains '-', which joins"),
        ("{o}:{cn}", {"o": "Acme GmbH", "cn": "c"}, "'Acme GmbH:c', which is no name"),
        ("{cn}", {"cn": "a/b"}, "'a/b', which is no name"),
        ("{o}:{cn}", {"o": "a" * 32, "cn": "b" * 32}, "which is no name"),
        ("acme-{cn}", {"cn": "x" * 60}, "which is no name"),
    ],
)
def test_what_makes_no_name_is_malformed_and_never_rewritten(
    template: str, values: Values, detail: str
) -> None:
    with pytest.raises(Refused) as caught:
        parse_template(template).render(certificate(values))

    assert caught.value.reason is Reason.MALFORMED
    assert detail in caught.value.detail


FIELDS = st.text("ab:.-", min_size=1, max_size=4)


@given(first=st.tuples(FIELDS, FIELDS), second=st.tuples(FIELDS, FIELDS))
def test_two_certificates_of_different_fields_are_never_one_device(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    template = parse_template("x-{o}:{cn}")
    names = []
    for organization, name in (first, second):
        try:
            names.append(template.render(certificate({"o": organization, "cn": name})))
        except Refused:
            return
    assert all(map(is_name, names))
    assert (names[0] == names[1]) == (first == second)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "has no field"),
        ("sensor", "has no field"),
        ("{dn}", "unknown field {dn}"),
        ("{CN}", "unknown field {CN}"),
        ("{}", "unknown field {}"),
        ("{cn", "has no field"),
        ("{cn}}", "may not be in one"),
        ("{cn}/{o}", "'/' may not be in one"),
        ("{o} {cn}", "' ' may not be in one"),
        ("{o}{cn}", "nothing between them"),
        ("{cn}:{cn}", "a field twice"),
        ("{cn}" + "x" * MAX_TEMPLATE_LENGTH, "132 characters"),
    ],
)
def test_templates_that_cannot_be_are_refused(template: str, message: str) -> None:
    with pytest.raises(CertificateError, match="device-id template") as caught:
        parse_template(template, "device-id template")

    assert message in str(caught.value)


def test_an_anchor_names_devices_by_its_template() -> None:
    anchor = replace(ANCHOR, device_id_template="{o}:{serial-number}")
    check_rules(anchor)

    chain = leaf({"o": "Acme", "serial-number": "42", "cn": "ignored"})

    verified = verify_chain((chain,), (anchor,), WALL)
    assert (verified.tenant, verified.value) == ("default", "Acme:42")
    assert reason(leaf({"o": "Acme", "cn": "x"}), anchor) is Reason.MALFORMED


def test_a_tenant_template_yields_only_tenants_of_the_list() -> None:
    north, south = Tenant("north"), Tenant("south")
    anchor = replace(ANCHOR, tenant_template="{ou}", tenants=(north, south))
    check_rules(anchor)

    for tenant in (north, south):
        chain = leaf({"ou": tenant, "cn": "sensor-7"})
        assert verify_chain((chain,), (anchor,), WALL).tenant == tenant
    for elsewhere in ("default", "east", "North"):
        assert reason(leaf({"ou": elsewhere, "cn": "a"}), anchor) is Reason.TENANT_MISMATCH
    assert reason(leaf({"cn": "a"}), anchor) is Reason.MALFORMED


def test_without_a_tenant_template_the_certificate_has_no_say() -> None:
    chain = leaf({"ou": "south", "cn": "a"})

    assert verify_chain((chain,), (ANCHOR,), WALL).tenant == DEFAULT_TENANT


def test_a_tenant_template_needs_a_list_and_a_list_a_template() -> None:
    with pytest.raises(CertificateError, match="without a list of tenants"):
        parse_tenant_rule("{ou}", ())
    with pytest.raises(CertificateError, match="without a tenant template"):
        check_rules(replace(ANCHOR, tenants=(Tenant("north"),)))
    with pytest.raises(CertificateError, match="the tenant 'a b'"):
        check_rules(replace(ANCHOR, tenant_template="{ou}", tenants=(Tenant("a b"),)))


def test_a_validity_limit_is_kept_to_the_second() -> None:
    for seconds, accepted in ((10 * DAY, True), (10 * DAY - 1, False)):
        profile = replace(DEVICE, not_before=WALL - DAY, not_after=WALL + 9 * DAY)
        chain = ROOT.issue_device("sensor-7", profile=profile).chain
        anchor = replace(ANCHOR, max_validity=seconds)
        check_rules(anchor)
        if accepted:
            assert verify_chain(chain, (anchor,), WALL).value == "sensor-7"
        else:
            assert reason(chain[0], anchor) is Reason.WRONG_USAGE
    with pytest.raises(CertificateError, match="not above 0"):
        check_rules(replace(ANCHOR, max_validity=0.0))


def test_no_rule_is_told_to_whom_the_anchor_has_issued_nothing() -> None:
    stranger = FactoryCa.create("Acme Root", wall=WALL)
    anchor = replace(ANCHOR, max_validity=1.0, device_id_template="{o}:{cn}")

    assert reason(stranger.issue_device("a").chain[0], anchor) is Reason.UNTRUSTED


@pytest.mark.parametrize(
    ("key", "described"),
    [
        (None, "P-256"),
        (ec.generate_private_key(ec.SECP384R1()), "P-384"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 2048), "RSA of 2048 bits"),
    ],
)
def test_the_key_of_an_anchor_is_described(key: PrivateKey | None, described: str) -> None:
    ca = FactoryCa.create("Acme", key=key, wall=WALL)
    der = ca.certificate.public_bytes(Encoding.DER)

    assert describe_key(replace(ANCHOR, certificate=der)) == described
