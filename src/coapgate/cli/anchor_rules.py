"""What an operator says of a trust anchor, read and checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coapgate.cli.options import parse_tenant
from coapgate.errors import CertificateError, Misused
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, Tenant, TrustAnchor

_MAX_FILE_SIZE = 1 << 20
_CRL_MODES = ("soft", "hard")


def parse_device_id(text: str) -> tuple[DeviceIdSource, str]:
    """The one value that names a device, or a template besides. Raises Misused."""
    if text in set(DeviceIdSource):
        return DeviceIdSource(text), ""
    inner = text.removeprefix("{").removesuffix("}")
    if text == f"{{{inner}}}" and inner in set(DeviceIdSource):
        return DeviceIdSource(inner), ""
    if "{" not in text:
        sources = ", ".join(DeviceIdSource)
        raise Misused(
            f"--device-id {text!r} is no part of a certificate that names a device",
            f"one of {sources}, or a template: {{o}}:{{cn}}",
        )
    return DeviceIdSource.CN, text


def parse_tenants(
    tenant: str | None, template: str | None, serves: list[str]
) -> tuple[Tenant, tuple[Tenant, ...]]:
    """The tenant of an anchor, and those that its template may name. Raises Misused."""
    tenants = tuple(dict.fromkeys(parse_tenant(each) for each in serves))
    if template is None and tenants:
        raise Misused(
            "--serves comes without --tenant-template", "or say --tenant for a single one"
        )
    if template is None:
        return parse_tenant(DEFAULT_TENANT if tenant is None else tenant), ()
    if tenant is not None:
        raise Misused(
            "--tenant and --tenant-template are given both",
            "a template names one of the tenants that --serves lists",
        )
    if not tenants:
        raise Misused(
            "--tenant-template comes without --serves",
            "a certificate must not invent a tenant: name each one that it may lead to",
        )
    return tenants[0], tenants


def check_crl_mode(text: str) -> None:
    """Raises Misused."""
    if text not in _CRL_MODES:
        raise Misused(
            f"--crl-mode {text!r} is neither soft nor hard",
            "`coapgate anchor add --help` says which does what",
        )


def absolute(files: list[Path]) -> tuple[str, ...]:
    """As the gateway finds them, wherever it runs."""
    return tuple(str(file.absolute()) for file in files)


def renewed(anchor: TrustAnchor, file: Path, wall: float) -> TrustAnchor:
    """An anchor with a new certificate of its key. Raises CertificateError, Misused."""
    from coapgate.pki.anchors import parse_anchor

    parsed = parse_anchor(
        read_pem(file),
        name=anchor.name,
        tenant=anchor.tenant,
        device_id_source=anchor.device_id_source,
        auto_provision=anchor.auto_provision,
        wall=wall,
    )
    if parsed.key_id != anchor.key_id:
        raise CertificateError(
            f"{str(file)!r} has another public key than anchor {anchor.name!r}",
            "another key is another anchor: `coapgate anchor add` it, and remove this one "
            "when `coapgate anchor show` says that no device uses it any more",
        )
    return replace(anchor, certificate=parsed.certificate)


def check_lists(anchor: TrustAnchor, wall: float) -> None:
    """Raises CertificateError for a list that could not be used."""
    from coapgate.pki.revocation import load_lists

    for file in anchor.crl_files:
        load_lists(Path(file), anchor, wall)


def read_pem(file: Path) -> bytes:
    """The octets of a file. Raises Misused."""
    try:
        with file.open("rb") as opened:
            octets = opened.read(_MAX_FILE_SIZE + 1)
    except OSError as error:
        raise Misused(
            f"cannot read {str(file)!r}: {error.strerror}", "give a certificate, in PEM"
        ) from error
    if len(octets) > _MAX_FILE_SIZE:
        raise Misused(f"{str(file)!r} is too large", "give one certificate, in PEM")
    return octets
