"""`coapgate certificate`: certificates of devices and issuers that are believed no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coapgate.cli import output
from coapgate.cli.anchor_rules import read_pem
from coapgate.cli.options import AsJson, ConfigFile, open_registry, parse_anchor_name
from coapgate.errors import CertificateError, Misused
from coapgate.registry.base import RevokedCertificate

if TYPE_CHECKING:
    from cryptography import x509

    from coapgate.model import TrustAnchor

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Certificates: which are revoked, one by one.",
)

_ISSUER_LENGTH = 8
_FINGERPRINT_LENGTHS = (8, 16)
"""Octets: as logs show it, or as much of it as is kept."""
_MAX_SERIAL_LENGTH = 20
_FULL_LENGTH = 32

_Anchor = Annotated[
    str, typer.Option("--anchor", metavar="NAME", help="The anchor that it chains to.")
]
_Serial = Annotated[
    str | None,
    typer.Option("--serial", metavar="HEX", help="Its serial number, as openssl prints it."),
]
_Issuer = Annotated[
    Path | None,
    typer.Option(
        "--issuer",
        metavar="FILE.pem",
        help="Only the one that this authority issued; else whoever below the anchor did.",
    ),
]
_Fingerprint = Annotated[
    str | None,
    typer.Option(
        "--fingerprint", metavar="HEX", help="Its SHA-256, or the part that logs show: sha256:..."
    ),
]
_File = Annotated[
    Path | None, typer.Option("--file", metavar="FILE.pem", help="The certificate itself.")
]


@app.command()
def revoke(
    config: ConfigFile,
    anchor: _Anchor,
    serial: _Serial = None,
    issuer: _Issuer = None,
    fingerprint: _Fingerprint = None,
    file: _File = None,
) -> None:
    """Refuse a certificate from now on; sessions that it opened end within seconds.

    It may be that of a device or of an issuer, whose certificates then all are refused. A CRL that
    the anchor names does the same for many.
    """
    _change(config, anchor, serial, issuer, fingerprint, file, is_revoked=True)


@app.command()
def restore(
    config: ConfigFile,
    anchor: _Anchor,
    serial: _Serial = None,
    issuer: _Issuer = None,
    fingerprint: _Fingerprint = None,
    file: _File = None,
) -> None:
    """Take back a revocation that was a mistake: say what was said to `certificate revoke`."""
    _change(config, anchor, serial, issuer, fingerprint, file, is_revoked=False)


@app.command("list")
def list_(
    config: ConfigFile,
    anchor: Annotated[
        str | None, typer.Option("--anchor", metavar="NAME", help="Only those below it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what `certificate revoke` has revoked; CRLs are not part of it."""
    with open_registry(config) as registry:
        anchors = {each.key_id: each.name for each in registry.anchors_all()}
        if anchor is not None:
            wanted = registry.get_anchor(parse_anchor_name(anchor)).key_id
        revoked = [
            each
            for each in registry.revoked_certificates_all()
            if anchor is None or each.key_id == wanted
        ]
    if as_json:
        output.documents(_describe(each, anchors) for each in revoked)
        return
    if not revoked:
        output.say("no certificates")
        return
    output.table(
        ("BELOW ANCHOR", "CERTIFICATE", "REVOKED"),
        [
            (
                anchors.get(each.key_id, f"sha256:{each.key_id.hex()[:16]}, removed"),
                _render(each),
                output.time(each.added_at),
            )
            for each in revoked
        ],
    )


def _change(
    config: Path,
    anchor: str,
    serial: str | None,
    issuer: Path | None,
    fingerprint: str | None,
    file: Path | None,
    *,
    is_revoked: bool,
) -> None:
    if [serial is not None, fingerprint is not None, file is not None].count(True) != 1:
        raise Misused(
            "say one of --serial, --fingerprint and --file",
            "the log shows a fingerprint, openssl x509 -serial a serial number",
        )
    if issuer is not None and fingerprint is not None:
        raise Misused("a fingerprint has no --issuer", "it is that of one certificate")
    parse_anchor_name(anchor)
    with open_registry(config) as registry:
        trusted = registry.get_anchor(anchor)
        if fingerprint is not None:
            named = RevokedCertificate(trusted.key_id, fingerprint=_parse_fingerprint(fingerprint))
        else:
            named = _by_serial(trusted, serial, issuer, file)
        if is_revoked:
            is_done = registry.revoke_certificate(named)
        else:
            is_done = registry.restore_certificate(named)
    what = f"{_render(named)} below anchor {anchor!r}"
    if is_revoked:
        output.say(f"revoked {what}" if is_done else f"{what} is revoked already")
        if fingerprint is not None:
            output.hint(
                "whoever holds such a certificate can change its signature, and so its "
                "fingerprint: --serial or --file cannot be evaded"
            )
    else:
        output.say(f"restored {what}" if is_done else f"{what} is not revoked: nothing was done")


def _by_serial(
    anchor: TrustAnchor, serial: str | None, issuer: Path | None, file: Path | None
) -> RevokedCertificate:
    """Raises Misused, CertificateError."""
    from cryptography import x509

    from coapgate.pki.keys import is_signed_by
    from coapgate.pki.revocation import key_id_of

    certificate = None if file is None else _load(file)
    if certificate is None:
        assert serial is not None, "one of the two is given"
        number = _parse_serial(serial)
    else:
        number = certificate.serial_number
    octets = number.to_bytes((number.bit_length() + 7) // 8 or 1, "big")
    authority = None if issuer is None else _load(issuer)
    if authority is None and certificate is not None:
        trusted = x509.load_der_x509_certificate(anchor.certificate)
        if certificate.issuer == trusted.subject and is_signed_by(certificate, trusted):
            authority = trusted
    elif (
        authority is not None
        and certificate is not None
        and not (certificate.issuer == authority.subject and is_signed_by(certificate, authority))
    ):
        raise CertificateError(
            f"{str(file)!r} was not issued by {str(issuer)!r}",
            "give the certificate of the authority right above it, or no --issuer",
        )
    key = b"" if authority is None else key_id_of(authority)[:_ISSUER_LENGTH]
    return RevokedCertificate(anchor.key_id, serial=octets, issuer=key)


def _load(file: Path) -> x509.Certificate:
    """Raises Misused, CertificateError."""
    from cryptography import x509

    from coapgate.pki.keys import UNREADABLE

    try:
        return x509.load_pem_x509_certificates(read_pem(file))[0]
    except UNREADABLE as error:
        raise CertificateError(
            f"no certificate can be read from {str(file)!r}",
            "a PEM file is wanted: -----BEGIN CERTIFICATE-----",
        ) from error


def _parse_serial(text: str) -> int:
    """Raises Misused."""
    octets = _parse_hex(text.removeprefix("0x"))
    if octets is None or not 1 <= len(octets) <= _MAX_SERIAL_LENGTH:
        raise Misused(
            f"{text!r} is no serial number",
            f"hexadecimal, {_MAX_SERIAL_LENGTH} octets at most, as openssl x509 -serial prints it",
        )
    return int.from_bytes(octets, "big")


def _parse_fingerprint(text: str) -> bytes:
    """As much of it as is kept. Raises Misused."""
    octets = _parse_hex(text.lower().removeprefix("sha256:"))
    if octets is None or len(octets) not in (*_FINGERPRINT_LENGTHS, _FULL_LENGTH):
        raise Misused(
            f"{text!r} is no fingerprint",
            "64 hexadecimal digits, or the first 16 of them, as the log shows it",
        )
    return octets[: max(_FINGERPRINT_LENGTHS)]


def _parse_hex(text: str) -> bytes | None:
    """With or without colons; an odd first digit stands alone."""
    digits = text.replace(":", "")
    if not re.fullmatch(r"[0-9A-Fa-f]+", digits):
        return None
    return bytes.fromhex(digits.rjust(len(digits) + len(digits) % 2, "0"))


def _render(revoked: RevokedCertificate) -> str:
    if revoked.fingerprint:
        return f"certificate sha256:{revoked.fingerprint.hex()}"
    issuer = f" of issuer sha256:{revoked.issuer.hex()}" if revoked.issuer else ""
    return f"certificate {revoked.serial.hex()}{issuer}"


def _describe(revoked: RevokedCertificate, anchors: dict[bytes, str]) -> dict[str, output.Value]:
    return {
        "anchor": anchors.get(revoked.key_id),
        "key_id": revoked.key_id.hex(),
        "serial": revoked.serial.hex() or None,
        "issuer": revoked.issuer.hex() or None,
        "fingerprint": revoked.fingerprint.hex() or None,
        "revoked_at": output.time(revoked.added_at),
    }
