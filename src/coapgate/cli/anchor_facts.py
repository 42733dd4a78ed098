"""What a trust anchor is and accepts, in words and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coapgate.cli import output
from coapgate.model import TrustAnchor

if TYPE_CHECKING:
    from cryptography import x509

DAY = 86_400.0


def advise(used: dict[int, int]) -> None:
    longest = max(used)
    if used[longest]:
        devices = "1 device" if used[longest] == 1 else f"{used[longest]} devices"
        output.hint(f"without it {devices} would be kept out")
    else:
        output.hint(
            f"no session by it is known of for {longest} days: removing it should keep nobody out"
        )


def device_id(anchor: TrustAnchor) -> str:
    return anchor.device_id_template or str(anchor.device_id_source)


def tenants(anchor: TrustAnchor) -> str:
    if not anchor.tenant_template:
        return f"tenant {anchor.tenant!r}"
    names = ", ".join(map(repr, anchor.tenants))
    return f"the tenant that {anchor.tenant_template} names, of {names}"


def accepts(anchor: TrustAnchor) -> str:
    template = anchor.device_id_template or f"{{{anchor.device_id_source}}}"
    limit = "" if anchor.max_validity is None else f", valid for {anchor.max_validity / DAY:g} days"
    whom = "any device" if anchor.auto_provision else "devices that trust it"
    return f"certificates of {whom}, which {template} names{limit}"


def revocation(anchor: TrustAnchor) -> str:
    if not anchor.crl_files:
        return "no lists"
    return f"{', '.join(anchor.crl_files)} ({anchor.crl_mode})"


def describe(anchor: TrustAnchor) -> dict[str, output.Value]:
    return {
        "name": anchor.name,
        "tenant": anchor.tenant,
        "tenant_template": anchor.tenant_template or None,
        "tenants": list(anchor.tenants),
        "device_id": device_id(anchor),
        "auto_provision": anchor.auto_provision,
        "labels": dict(anchor.labels),
        "max_validity": anchor.max_validity,
        "crl_files": list(anchor.crl_files),
        "crl_mode": anchor.crl_mode,
        "state": anchor.state,
        "subject": subject(anchor),
        "not_after": not_after(anchor),
        "key_id": anchor.key_id.hex(),
    }


def subject(anchor: TrustAnchor) -> str:
    return _parsed(anchor).subject.rfc4514_string() or "(no subject)"


def not_after(anchor: TrustAnchor) -> str:
    return output.time(_parsed(anchor).not_valid_after_utc.timestamp())


def _parsed(anchor: TrustAnchor) -> x509.Certificate:
    from cryptography import x509

    # It parsed when it was added.
    return x509.load_der_x509_certificate(anchor.certificate)
