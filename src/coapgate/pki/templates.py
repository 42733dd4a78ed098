"""Names made of what a certificate says: which device it is, and whose.

    {cn}                      the common name
    {o}:{serial-number}       two values, joined by a colon that neither of them may contain
    acme-{cn}                 with text of one's own

Every value must be there exactly once. Two values are joined by text that none of the values may
share a character with: otherwise O=a, CN=b:c and O=a:b, CN=c would be one device. Nothing is ever
rewritten: what makes no name is refused.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import Tenant, is_name
from coapgate.pki.certificates import printable, read

MAX_TEMPLATE_LENGTH = 128
"""Characters."""

_PARTS = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~:-]*")

FORMS = "fields are {cn}, {o}, {ou}, {serial-number} and {san-uri}: {cn}, or {o}:{serial-number}"


class Field(enum.StrEnum):
    """What of a certificate may name a device or a tenant."""

    CN = "cn"
    O = "o"  # noqa: E741 - as X.500 abbreviates it
    OU = "ou"
    SERIAL_NUMBER = "serial-number"
    """The subject's serialNumber attribute (2.5.4.5), not the certificate's own number."""
    SAN_URI = "san-uri"


_ATTRIBUTES = {
    Field.CN: NameOID.COMMON_NAME,
    Field.O: NameOID.ORGANIZATION_NAME,
    Field.OU: NameOID.ORGANIZATIONAL_UNIT_NAME,
    Field.SERIAL_NUMBER: NameOID.SERIAL_NUMBER,
}


@dataclass(frozen=True, slots=True)
class Template:
    """How a name is made. `literals` stand around the fields: one more than there are fields."""

    text: str
    fields: tuple[Field, ...]
    literals: tuple[str, ...]
    joints: frozenset[str] = field(repr=False)
    """The characters between two fields."""

    def render(self, certificate: x509.Certificate) -> str:
        """The name that a certificate leads to. Raises Refused (malformed)."""
        if len(self.fields) == 1:  # which is what nearly every handshake asks for
            before, after = self.literals
            name = before + _value(certificate, self.fields[0]) + after
        else:
            name = self._join([_value(certificate, each) for each in self.fields])
        if not is_name(name):
            raise Refused(
                Reason.MALFORMED, f"{self.text} makes {printable(name)}, which is no name"
            )
        return name

    def _join(self, values: Sequence[str]) -> str:
        """Raises Refused (malformed)."""
        for each, value in zip(self.fields, values, strict=True):
            shared = self.joints.intersection(value)
            if shared:
                raise Refused(
                    Reason.MALFORMED,
                    f"{each} {printable(value)} contains {min(shared)!r}, which joins two fields",
                )
        parts = zip(values, self.literals[1:], strict=True)
        return self.literals[0] + "".join(value + literal for value, literal in parts)


def parse_template(text: str, what: str = "template") -> Template:
    """Parse a template; `what` is what to call it in an error. Raises CertificateError."""
    if len(text) > MAX_TEMPLATE_LENGTH:
        raise CertificateError(
            f"the {what} has {len(text)} characters; it may have {MAX_TEMPLATE_LENGTH}"
        )
    parts = _PARTS.split(text)
    literals, names = tuple(parts[::2]), parts[1::2]
    if not names:
        raise CertificateError(f"the {what} {text!r} has no field of a certificate in it", FORMS)
    for name in names:
        if name not in set(Field):
            raise CertificateError(f"the {what} {text!r} has an unknown field {{{name}}}", FORMS)
    for literal in literals:
        if not _LITERAL.fullmatch(literal):
            raise CertificateError(
                f"the {what} {text!r} cannot make a name: {literal!r} may not be in one",
                "names are 1 to 64 letters, digits and . _ ~ : -",
            )
    if len(set(names)) < len(names):
        raise CertificateError(f"the {what} {text!r} has a field twice", FORMS)
    between = literals[1:-1]
    if not all(between):
        raise CertificateError(
            f"the {what} {text!r} has two fields with nothing between them",
            "a character must join them that neither contains: {o}:{cn}",
        )
    return Template(text, tuple(map(Field, names)), literals, frozenset("".join(between)))


@dataclass(frozen=True, slots=True)
class TenantRule:
    """Which tenant a certificate below one anchor belongs to: always one, or one of a list."""

    template: Template
    tenants: frozenset[Tenant]

    def render(self, certificate: x509.Certificate) -> Tenant:
        """Raises Refused (malformed; tenant_mismatch: a name that is not in the list)."""
        name = Tenant(self.template.render(certificate))
        if name not in self.tenants:
            raise Refused(
                Reason.TENANT_MISMATCH, f"the anchor does not serve tenant {printable(name)}"
            )
        return name


def parse_tenant_rule(text: str, tenants: Sequence[Tenant]) -> TenantRule:
    """Parse a tenant template with the list of tenants it may lead to. Raises CertificateError."""
    template = parse_template(text, "tenant template")
    if not tenants:
        raise CertificateError(
            f"the tenant template {text!r} comes without a list of tenants",
            "a certificate must not invent a tenant: name each one that it may lead to",
        )
    return TenantRule(template, frozenset(tenants))


def _value(certificate: x509.Certificate, wanted: Field) -> str:
    """The one value of a field. Raises Refused (malformed) unless it occurs exactly once."""
    values = read(partial(_values, certificate, wanted))
    if len(values) != 1:
        raise Refused(Reason.MALFORMED, f"{len(values)} values of {wanted}, exactly one is wanted")
    if not values[0]:
        raise Refused(Reason.MALFORMED, f"{wanted} is empty")
    return values[0]


def _values(certificate: x509.Certificate, wanted: Field) -> list[str]:
    if wanted is Field.SAN_URI:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return []
        return names.value.get_values_for_type(x509.UniformResourceIdentifier)
    oid: ObjectIdentifier = _ATTRIBUTES[wanted]
    return [str(each.value) for each in certificate.subject.get_attributes_for_oid(oid)]
