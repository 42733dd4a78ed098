"""`coapgate pki`: a certificate authority in a folder, for laboratories and small fleets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coapgate.cli import output
from coapgate.errors import CertificateError, Misused

if TYPE_CHECKING:
    from coapgate.pki.folder import CaFolder

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A small certificate authority in a folder, which needs no network.",
)

DAY = 86400.0
MAX_DAYS = 36500

_MAX_FILE_SIZE = 65536
_MAX_PASSPHRASE_LENGTH = 1024

CaOption = Annotated[
    Path, typer.Option("--ca", metavar="FOLDER", help="The authority, made by `pki init`.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="A file whose one line opens the authority's key; - is standard input. Without it, "
        "an encrypted key is asked for in a terminal.",
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Where the files are written.")
]

Organization = Annotated[
    str, typer.Option("--organization", metavar="TEXT", help="O of the subject.")
]
Unit = Annotated[str, typer.Option("--unit", metavar="TEXT", help="OU of the subject.")]
SerialNumber = Annotated[
    str, typer.Option("--serial-number", metavar="TEXT", help="serialNumber of the subject.")
]
Uris = Annotated[
    list[str] | None,
    typer.Option("--uri", metavar="URI", help="A URI by which it is known; repeat for more."),
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="What it is called (CN).")],
    parent: Annotated[
        Path | None,
        typer.Option(
            "--parent", metavar="FOLDER", help="Issued by this authority: an intermediate."
        ),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=MAX_DAYS, metavar="N", help="How long it lasts.")
    ] = 10950,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file",
            metavar="FILE",
            help="Encrypt its key with the one line of this file; - is standard input.",
        ),
    ] = None,
    parent_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--parent-passphrase-file", metavar="FILE", help="That of the parent, likewise."
        ),
    ] = None,
) -> None:
    """Create an authority: a root, or an intermediate beneath another one.

    Its key is P-256, in FOLDER/ca.key, readable by nobody else. FOLDER/ca.pem is its certificate.
    """
    from coapgate.pki.folder import create

    wall = time.time()
    passphrase = _read_passphrase(passphrase_file)
    if parent is None:
        ca = create(folder, name, lifetime=days * DAY, wall=wall, passphrase=passphrase)
    else:
        with _opened(parent, parent_passphrase_file, wall) as above:
            ca = create(
                folder,
                name,
                lifetime=days * DAY,
                wall=wall,
                passphrase=passphrase,
                parent=above,
            )
    kind = "authority" if parent is None else "intermediate"
    until = output.time(ca.certificate.not_valid_after_utc.timestamp())
    output.say(f"created {kind} {name!r} in {str(folder)!r}, until {until}")
    if not passphrase:
        output.hint(
            f"its key is not encrypted: whoever reads {folder / 'ca.key'} is this authority"
        )
    output.hint(
        f"`coapgate anchor add {folder / 'ca.pem'} --name NAME` makes a gateway believe what it "
        "issues"
    )


@app.command()
def issue(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The device (CN), and the files' name.")
    ],
    *,
    ca: CaOption,
    server: Annotated[
        bool, typer.Option("--server", help="For a gateway, with --dns and --ip.")
    ] = False,
    dns: Annotated[
        list[str] | None,
        typer.Option("--dns", metavar="NAME", help="A name of the gateway; repeat for more."),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option("--ip", metavar="ADDRESS", help="An address of it; repeat for more."),
    ] = None,
    organization: Organization = "",
    unit: Unit = "",
    serial_number: SerialNumber = "",
    uri: Uris = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=MAX_DAYS, metavar="N", help="How long it lasts.")
    ] = 3650,
    out: OutOption = Path(),
    passphrase_file: PassphraseFile = None,
) -> None:
    """Issue a certificate and its key, NAME.pem and NAME.key: of a device, or of a gateway.

    NAME.pem holds what is sent: the certificate, then those of intermediates. A device's key is
    better made on the device itself: `pki sign-csr`.
    """
    from coapgate.pki.requests import device_of, subject_of

    if server != bool(dns or ip):
        raise Misused(
            "--server goes with --dns or --ip",
            "coapgate pki issue gateway --ca FOLDER --server --dns gateway.example",
        )
    subject = subject_of(name, organization=organization, unit=unit, serial_number=serial_number)
    device_of(subject)
    _check_absent(out / f"{name}.pem", out / f"{name}.key")
    with _opened(ca, passphrase_file, time.time()) as authority:
        issued = (
            authority.issue_server(tuple(dns or ()), tuple(ip or ()), lifetime=days * DAY)
            if server
            else authority.issue_device(subject, lifetime=days * DAY, uris=tuple(uri or ()))
        )
    try:
        certificate, key = issued.write(out, name)
    except OSError as error:
        raise _cannot_write(out, error) from error
    _say_issued("issued", name, issued.chain[0], f"{certificate}, {key}")


@app.command("sign-csr")
def sign_csr(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.csr", help="A certificate request, in PEM.")
    ],
    *,
    ca: CaOption,
    organization: Organization = "",
    unit: Unit = "",
    serial_number: SerialNumber = "",
    uri: Uris = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=MAX_DAYS, metavar="N", help="How long it lasts.")
    ] = 3650,
    out: OutOption = Path(),
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign a device's request, whose key stays where it is; NAME.pem is named after its CN.

    Only the CN is taken over. O, OU, serialNumber and URIs, by which an anchor may name tenants,
    are what the options say; what else the request asks for is not granted.
    """
    from coapgate.pki.factory import encode_chain
    from coapgate.pki.requests import device_of, grant, parse_request

    request, lost = grant(
        parse_request(_read(file, "a certificate request")),
        organization=organization,
        unit=unit,
        serial_number=serial_number,
        uris=tuple(uri or ()),
    )
    name = device_of(request.subject)
    written = out / f"{name}.pem"
    _check_absent(written)
    with _opened(ca, passphrase_file, time.time()) as authority:
        chain = authority.sign_request(request, lifetime=days * DAY)
    try:
        written.write_bytes(encode_chain(chain))
    except OSError as error:
        raise _cannot_write(out, error) from error
    _say_issued("signed", name, chain[0], str(written))
    granted = [request.subject.rfc4514_string(), *(f"URI {each.value}" for each in request.uris)]
    output.say(f"it may call itself {', '.join(granted)}")
    if lost:
        output.hint(
            f"the request asked for {', '.join(lost)} too: --organization, --unit, "
            "--serial-number and --uri grant such names"
        )


@app.command()
def crl(
    *,
    ca: CaOption,
    revoke: Annotated[
        list[Path] | None,
        typer.Option(
            "--revoke",
            metavar="FILE.pem",
            help="A certificate that it has issued, to be revoked; repeat for more.",
        ),
    ] = None,
    serial: Annotated[
        list[str] | None,
        typer.Option(
            "--serial",
            metavar="HEX",
            help="The serial number of one, as FOLDER/issued.csv has it; repeat for more.",
        ),
    ] = None,
    days: Annotated[
        int,
        typer.Option(
            "--days", min=1, max=MAX_DAYS, metavar="N", help="Until the next list must be there."
        ),
    ] = 30,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write the next revocation list, FOLDER/ca.crl, with all that was ever revoked.

    Without --revoke and --serial it names the same certificates as the last one, for longer.
    """
    wall = time.time()
    with _opened(ca, passphrase_file, wall) as authority:
        serials = [_serial_of(each, authority) for each in revoke or ()]
        serials += [_parse_serial(each, authority) for each in serial or ()]
        count = authority.revoke(dict.fromkeys(serials, wall), lifetime=days * DAY)
    noun = "certificate" if count == 1 else "certificates"
    until = output.time(wall + days * DAY)
    output.say(f"{ca / 'ca.crl'} revokes {count} {noun}, until {until}")


def _say_issued(verb: str, name: str, der: bytes, files: str) -> None:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(der)
    until = output.time(certificate.not_valid_after_utc.timestamp())
    output.say(
        f"{verb} {name!r} until {until}, serial number {certificate.serial_number:x}: {files}"
    )


@contextmanager
def _opened(folder: Path, passphrase_file: Path | None, wall: float) -> Iterator[CaFolder]:
    """Raises CertificateError and Misused."""
    from coapgate.pki.folder import PassphraseNeeded, opened

    passphrase = _read_passphrase(passphrase_file)
    if not passphrase and sys.stdin.isatty():
        try:
            with opened(folder, wall=wall):
                pass
        except PassphraseNeeded:
            passphrase = typer.prompt(f"passphrase of {folder}", hide_input=True, err=True).encode()
    with opened(folder, wall=wall, passphrase=passphrase) as authority:
        yield authority


def _read_passphrase(file: Path | None) -> bytes:
    """The one line of a file; empty if none is named. Raises Misused, which shows none of it."""
    if file is None:
        return b""
    if str(file) == "-":
        octets = sys.stdin.buffer.read(_MAX_PASSPHRASE_LENGTH + 1)
    else:
        octets = _read(file, "a passphrase")
    lines = octets.splitlines()
    if len(lines) != 1 or not lines[0] or len(octets) > _MAX_PASSPHRASE_LENGTH:
        raise Misused(
            f"{str(file)!r} does not hold one line with a passphrase",
            f"1 to {_MAX_PASSPHRASE_LENGTH} octets",
        )
    return lines[0]


def _serial_of(file: Path, authority: CaFolder) -> int:
    """The serial number of the first certificate in a file. Raises CertificateError, Misused."""
    from cryptography import x509

    from coapgate.pki.keys import UNREADABLE, is_signed_by

    try:
        certificate = x509.load_pem_x509_certificates(_read(file, "a certificate"))[0]
    except UNREADABLE as error:
        raise CertificateError(
            f"no certificate can be read from {str(file)!r}",
            "a PEM file is wanted; --serial takes its number from issued.csv",
        ) from error
    issuer = authority.ca.certificate
    if certificate.issuer != issuer.subject or not is_signed_by(certificate, issuer):
        raise CertificateError(
            f"{str(file)!r} was not issued by this authority",
            "only its own issuer can revoke a certificate: name that one's folder with --ca",
        )
    return certificate.serial_number


def _parse_serial(text: str, authority: CaFolder) -> int:
    """A serial number of what the authority has issued. Raises CertificateError, Misused."""
    digits = text.replace(":", "").removeprefix("0x")
    if not digits or len(digits) > 40 or set(digits) - set("0123456789abcdefABCDEF"):
        raise Misused(f"{text!r} is no serial number", "hexadecimal digits, as issued.csv has them")
    number = int(digits, 16)
    if not authority.has_issued(number):
        raise CertificateError(
            f"this authority has issued no certificate with serial number {number:x}",
            f"{authority.folder / 'issued.csv'} lists those that it has",
        )
    return number


def _read(file: Path, what: str) -> bytes:
    """Raises Misused."""
    try:
        with file.open("rb") as opened:
            octets = opened.read(_MAX_FILE_SIZE + 1)
    except OSError as error:
        raise Misused(f"cannot read {str(file)!r}: {error.strerror}", f"give {what}") from error
    if len(octets) > _MAX_FILE_SIZE:
        raise Misused(f"{str(file)!r} is too large", f"give {what}")
    return octets


def _check_absent(*files: Path) -> None:
    """Raises CertificateError if there is any of these already, or no folder for them."""
    for file in files:
        if not file.parent.is_dir():
            raise CertificateError(
                f"cannot write into {str(file.parent)!r}: there is no such folder",
                "nothing was issued: make it, or name another one with --out",
            )
        if file.exists():
            raise CertificateError(
                f"{str(file)!r} exists already",
                "nothing is overwritten: name another folder with --out",
            )


def _cannot_write(folder: Path, error: OSError) -> CertificateError:
    return CertificateError(
        f"cannot write into {str(folder)!r}: {error.strerror}",
        "what was issued is in issued.csv, and can be revoked by its serial number",
    )
