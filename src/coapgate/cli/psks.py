"""`coapgate psk`: pre-shared keys."""

from __future__ import annotations

import secrets
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from coapgate.cli import output
from coapgate.cli.devices import describe_psk
from coapgate.cli.options import (
    LIST_LIMIT,
    AnyTenantName,
    AsJson,
    ConfigFile,
    DeviceName,
    Limit,
    TenantName,
    exists,
    open_registry,
    parse_device,
    parse_tenant,
)
from coapgate.errors import Misused
from coapgate.model import DEFAULT_TENANT
from coapgate.registry.psk import (
    KEY_FORMS,
    parse_identity,
    parse_key,
    render_identity,
    render_key,
)

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Pre-shared keys: which identity proves what."
)

GENERATED_LENGTH = 16
"""Octets: as strong as AES-128, and every DTLS library takes them."""

_MAX_KEY_FILE_SIZE = 4096


@app.command()
def add(
    device: DeviceName,
    config: ConfigFile,
    identity: Annotated[
        str | None,
        typer.Option(
            "--identity",
            metavar="TEXT",
            help="The PSK identity; the device's name if not given. hex:... for octets.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="hex:..., base64:... or text:..."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            metavar="FILE",
            help="A file with the key; - reads it from standard input, where no other user of "
            "this machine can see it.",
        ),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a key, and print it this once.")
    ] = False,
    tenant: TenantName = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Give a device a key. A device that does not exist is created.

    An identity that has a key already takes one more, up to 4: the device may prove itself by any
    of them, so that it can be given a new one before the old one goes.
    """
    name = parse_tenant(tenant), parse_device(device)
    octets = parse_identity(identity) if identity is not None else device.encode()
    if [key is not None, key_file is not None, generate].count(True) != 1:
        raise Misused("say one of --key, --key-file and --generate", KEY_FORMS)
    if key is not None:
        secret = parse_key(key)
    elif key_file is not None:
        secret = parse_key(_read_key(key_file))
    else:
        secret = secrets.token_bytes(GENERATED_LENGTH)
    with open_registry(config, create=True) as registry:
        is_new = not exists(registry, *name)
        added = registry.add_psk(*name, octets, secret, create_device=True)
    if as_json:
        shown = {"key": render_key(secret)} if generate else {}
        output.document(describe_psk(added) | {"device_created": is_new} | shown)
        return
    created = ", which was created" if is_new else ""
    output.say(
        f"added psk-{added.number}: identity {render_identity(octets)!r} for device {device!r} "
        f"of tenant {tenant!r}{created}"
    )
    if generate:
        output.say(f"key {render_key(secret)}")
        output.hint("the key is not shown again: put it on the device now")


@app.command("list")
def list_(
    config: ConfigFile,
    device: Annotated[
        str | None, typer.Argument(metavar="DEVICE", help="Only those of this device.")
    ] = None,
    tenant: AnyTenantName = None,
    limit: Limit = LIST_LIMIT,
    as_json: AsJson = False,
) -> None:
    """List keys by their numbers. The keys themselves are never shown."""
    with open_registry(config) as registry:
        entries = registry.psks(
            parse_tenant(tenant) if tenant is not None else None,
            parse_device(device) if device is not None else None,
        )
        if as_json:
            output.documents(describe_psk(entry) for entry in entries)
            return
        rows = [
            (
                f"psk-{entry.number}",
                entry.tenant,
                entry.device,
                render_identity(entry.identity),
                entry.state,
                output.validity(entry.not_before, entry.not_after),
                output.time(entry.added_at),
            )
            for entry in islice(entries, limit or None)
        ]
        is_cut = next(entries, None) is not None
    if not rows:
        output.say("no keys")
        return
    output.table(("KEY", "TENANT", "DEVICE", "IDENTITY", "STATE", "VALID", "ADDED"), rows)
    if is_cut:
        output.hint("there are more: --limit 0 shows all")


def _read_key(file: Path) -> str:
    """The one line of a file, or of standard input. Raises Misused, which shows none of it."""
    try:
        if str(file) == "-":
            octets = sys.stdin.buffer.read(_MAX_KEY_FILE_SIZE + 1)
        else:
            with file.open("rb") as opened:
                octets = opened.read(_MAX_KEY_FILE_SIZE + 1)
    except OSError as error:
        raise Misused(f"cannot read {str(file)!r}: {error.strerror}", KEY_FORMS) from error
    try:
        (line,) = octets.decode().splitlines()
    except ValueError:
        raise Misused(f"{str(file)!r} does not hold one line with a key", KEY_FORMS) from None
    return line
