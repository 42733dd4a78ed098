"""`coapgate anchor`: certificates that are believed without proof."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coapgate.cli import output
from coapgate.cli.options import (
    AsJson,
    ConfigFile,
    open_registry,
    parse_anchor_name,
    parse_tenant,
)
from coapgate.errors import Misused
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, TrustAnchor

if TYPE_CHECKING:
    from cryptography import x509

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Trust anchors: whose certificates are believed.",
)

_MAX_FILE_SIZE = 1 << 20


@app.command()
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.pem", help="The certificate of a root or intermediate.")
    ],
    config: ConfigFile,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What you call it; any name.")
    ],
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="The tenant its devices belong to.")
    ] = DEFAULT_TENANT,
    device_id: Annotated[
        DeviceIdSource,
        typer.Option("--device-id", help="Which value of a certificate names the device."),
    ] = DeviceIdSource.CN,
    auto_provision: Annotated[
        bool,
        typer.Option("--auto-provision", help="Create devices when they first connect."),
    ] = False,
) -> None:
    """Believe the certificates of an authority.

    Those that chain to it speak for devices of one tenant.
    """
    parse_anchor_name(name)
    pem = _read(file)
    from coapgate.pki.anchors import parse_anchor

    anchor = parse_anchor(
        pem,
        name=name,
        tenant=parse_tenant(tenant),
        device_id_source=device_id,
        auto_provision=auto_provision,
        wall=time.time(),
    )
    with open_registry(config, create=True) as registry:
        registry.add_anchor(anchor)
    output.say(
        f"added anchor {name!r} for tenant {tenant!r}: {_subject(anchor)}, "
        f"until {_not_after(anchor)}"
    )
    if not auto_provision:
        output.hint(
            f"its devices are let in once `coapgate device trust DEVICE --anchor {name}` names them"
        )


@app.command("list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List trust anchors."""
    with open_registry(config) as registry:
        anchors = registry.anchors_all()
    if as_json:
        output.documents(
            {
                "name": anchor.name,
                "tenant": anchor.tenant,
                "device_id": str(anchor.device_id_source),
                "auto_provision": anchor.auto_provision,
                "state": anchor.state,
                "subject": _subject(anchor),
                "not_after": _not_after(anchor),
                "key_id": anchor.key_id.hex(),
            }
            for anchor in anchors
        )
        return
    if not anchors:
        output.say("no trust anchors")
        return
    output.table(
        ("NAME", "TENANT", "DEVICE ID", "PROVISIONS", "STATE", "UNTIL", "SUBJECT"),
        [
            (
                anchor.name,
                anchor.tenant,
                str(anchor.device_id_source),
                "yes" if anchor.auto_provision else "no",
                anchor.state,
                _not_after(anchor),
                _subject(anchor),
            )
            for anchor in anchors
        ],
    )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `anchor list` shows it.")],
    config: ConfigFile,
) -> None:
    """Believe an anchor no more.

    Its devices stay, and what speaks for them comes back with it. So do sessions that they have:
    only a restart of the gateway ends them at once.
    """
    parse_anchor_name(name)
    with open_registry(config) as registry:
        registry.remove_anchor(name)
    output.say(
        f"removed anchor {name!r}: certificates below it are refused from the next handshake on"
    )
    output.hint("devices stay; if the anchor is added again, their certificates work as before")


def _read(file: Path) -> bytes:
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


def _subject(anchor: TrustAnchor) -> str:
    return _parsed(anchor).subject.rfc4514_string() or "(no subject)"


def _not_after(anchor: TrustAnchor) -> str:
    return output.time(_parsed(anchor).not_valid_after_utc.timestamp())


def _parsed(anchor: TrustAnchor) -> x509.Certificate:
    from cryptography import x509

    # It parsed when it was added.
    return x509.load_der_x509_certificate(anchor.certificate)
