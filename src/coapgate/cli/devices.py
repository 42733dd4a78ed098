"""`coapgate device`: which devices there are, and what may speak for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from coapgate.cli import output
from coapgate.cli.options import (
    LIST_LIMIT,
    AllowWeak,
    AnyTenantName,
    AsJson,
    ConfigFile,
    DeviceName,
    Limit,
    TenantName,
    exists,
    open_registry,
    parse_anchor_name,
    parse_device,
    parse_tenant,
)
from coapgate.errors import Misused
from coapgate.model import DEFAULT_TENANT, Device, PskState
from coapgate.registry.base import CertificateEntry, DeviceEntry, PskEntry
from coapgate.registry.psk import render_identity

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Devices: which there are, what speaks for them.",
)

Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A note; may be repeated.")
]

_SESSION_ENDS = "a session that it has ends within seconds"


@app.command()
def add(
    device: DeviceName,
    config: ConfigFile,
    tenant: TenantName = DEFAULT_TENANT,
    label: Labels = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Do not let it in yet.")] = False,
) -> None:
    """Make a device known. It needs a key or a certificate before it can connect."""
    added = Device(
        parse_tenant(tenant), parse_device(device), not disabled, parse_labels(label or [])
    )
    with open_registry(config, create=True) as registry:
        registry.add_device(added)
    output.say(f"added {_name(added)}")
    _hint_at_credentials(added)


@app.command("list")
def list_(
    config: ConfigFile,
    tenant: AnyTenantName = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Only those with this label."),
    ] = None,
    limit: Limit = LIST_LIMIT,
    as_json: AsJson = False,
) -> None:
    """List devices, in order of tenant and name."""
    wanted = set(parse_labels(label or []))
    with open_registry(config) as registry:
        entries = (
            entry
            for entry in registry.devices(parse_tenant(tenant) if tenant is not None else None)
            if wanted <= set(entry.device.labels)
        )
        if as_json:
            output.documents(_describe(entry) for entry in entries)
            return
        rows = [_row(entry) for entry in islice(entries, limit or None)]
        is_cut = next(entries, None) is not None
    if not rows:
        output.say("no devices")
        return
    output.table(("TENANT", "DEVICE", "STATE", "KEYS", "CERTIFICATES", "LABELS"), rows)
    if is_cut:
        output.hint("there are more: --limit 0 shows all")


@app.command()
def show(
    device: DeviceName,
    config: ConfigFile,
    tenant: TenantName = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Show a device and what may speak for it. Keys are never shown."""
    name = parse_tenant(tenant), parse_device(device)
    with open_registry(config) as registry:
        entry = registry.get_device(*name)
        psks = list(registry.psks(*name))
        certificates = registry.certificates(*name)
    if as_json:
        output.document(
            _describe(entry)
            | {
                "psks": [describe_psk(psk) for psk in psks],
                "certificates": [_describe_certificate(pair) for pair in certificates],
            }
        )
        return
    output.table(
        (),
        [
            ("device", entry.device.device),
            ("tenant", entry.device.tenant),
            ("state", _state(entry.device)),
            ("labels", _labels(entry.device) or "none"),
            ("added", output.time(entry.added_at)),
        ],
    )
    if psks:
        output.say("")
        output.table(
            ("KEY", "IDENTITY", "STATE", "VALID", "ADDED"),
            [
                (
                    f"psk-{psk.number}",
                    render_identity(psk.identity),
                    psk.state,
                    psk_validity(psk),
                    output.time(psk.added_at),
                )
                for psk in psks
            ],
        )
    if certificates:
        output.say("")
        output.table(
            ("CERTIFICATES OF", "BELOW ANCHOR", "LAST USED"),
            [
                (
                    pair.value,
                    pair.anchor or f"{_short(pair)}, removed",
                    "not yet" if pair.used_at is None else output.time(pair.used_at),
                )
                for pair in certificates
            ],
        )
    if not psks and not certificates:
        _hint_at_credentials(entry.device)


@app.command()
def enable(device: DeviceName, config: ConfigFile, tenant: TenantName = DEFAULT_TENANT) -> None:
    """Let a device in again."""
    name = parse_tenant(tenant), parse_device(device)
    with open_registry(config) as registry:
        registry.enable_device(*name, enabled=True)
    output.say(f"enabled {_name(Device(*name))}")


@app.command()
def disable(device: DeviceName, config: ConfigFile, tenant: TenantName = DEFAULT_TENANT) -> None:
    """Refuse a device from now on; a session that it has ends within seconds.

    What is known of it stays.
    """
    name = parse_tenant(tenant), parse_device(device)
    with open_registry(config) as registry:
        registry.enable_device(*name, enabled=False)
    output.say(f"disabled {_name(Device(*name))}: refused from now on")
    output.hint(_SESSION_ENDS)


@app.command()
def remove(device: DeviceName, config: ConfigFile, tenant: TenantName = DEFAULT_TENANT) -> None:
    """Forget a device and all that speaks for it; a session that it has ends within seconds."""
    name = parse_tenant(tenant), parse_device(device)
    with open_registry(config) as registry:
        anchors = {pair.anchor for pair in registry.certificates(*name)}
        identities = {psk.identity for psk in registry.psks(*name)}
        registry.remove_device(*name)
        again = [
            f"anchor {anchor.name!r}"
            for anchor in registry.anchors_all()
            if anchor.auto_provision and anchor.name in anchors
        ]
        kept = {each: registry.find_removed(each) for each in sorted(identities)}
    output.say(f"removed {_name(Device(*name))} and its credentials")
    output.hint(_SESSION_ENDS)
    for creator in again:
        output.hint(
            f"{creator} creates it again when it connects; "
            "`coapgate device disable` would have kept it out"
        )
    for identity, batch in kept.items():
        if batch is not None:
            shown = render_identity(identity)
            output.hint(
                f"its identity {shown!r} stays refused: `coapgate batch restore --identity "
                f"{shown}` would let batch {batch!r} create it again"
            )


@app.command()
def trust(
    device: DeviceName,
    config: ConfigFile,
    anchor: Annotated[
        str, typer.Option("--anchor", metavar="NAME", help="The anchor they chain to.")
    ],
    value: Annotated[
        str | None,
        typer.Option(
            "--value",
            metavar="VALUE",
            help="What such a certificate names its device by; the device's name if not given.",
        ),
    ] = None,
    tenant: TenantName = DEFAULT_TENANT,
) -> None:
    """Let certificates speak for a device. One that does not exist is created."""
    name = parse_tenant(tenant), parse_device(device)
    value = device if value is None else value
    with open_registry(config) as registry:
        is_new_device = not exists(registry, *name)
        is_new = registry.trust(*name, parse_anchor_name(anchor), value, create_device=True)
    words = "now speak" if is_new else "speak already"
    created = ", which was created" if is_new_device else ""
    output.say(
        f"certificates of {value!r} below anchor {anchor!r} {words} "
        f"for {_name(Device(*name))}{created}"
    )


@app.command()
def distrust(
    device: DeviceName,
    config: ConfigFile,
    anchor: Annotated[
        str, typer.Option("--anchor", metavar="NAME", help="The anchor they chain to.")
    ],
    value: Annotated[
        str | None,
        typer.Option(
            "--value",
            metavar="VALUE",
            help="What they name the device by, as for `trust`; its name if not given.",
        ),
    ] = None,
    tenant: TenantName = DEFAULT_TENANT,
) -> None:
    """Let certificates speak for a device no more; sessions that they opened end within seconds."""
    name = parse_tenant(tenant), parse_device(device)
    value = device if value is None else value
    with open_registry(config) as registry:
        registry.distrust(*name, parse_anchor_name(anchor), value)
    output.say(
        f"certificates of {value!r} below anchor {anchor!r} speak for {_name(Device(*name))} "
        "no more"
    )
    output.hint("sessions that they opened end within seconds")


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="device,tenant,psk_identity,psk_key")
    ],
    config: ConfigFile,
    allow_weak: AllowWeak = False,
) -> None:
    """Add the devices of a CSV file with a key each.

    All of them or, if a line is bad, none. The first line names the columns: device, tenant,
    psk_identity, psk_key. An empty tenant is "default". An identity is text, or octets as hex:,
    base64: or text:; a key always has such a prefix.
    """
    from coapgate.registry.importing import read_csv

    with (
        _open_file(file) as opened,
        open_registry(config, create=True) as registry,
        _progress(file, opened) as report,
    ):
        count = registry.import_devices(read_csv(opened, allow_weak=allow_weak), report)
    output.say(f"imported {count} {'device' if count == 1 else 'devices'}")


def describe_psk(psk: PskEntry) -> dict[str, output.Value]:
    """As JSON, without the key."""
    return {
        "credential": f"psk-{psk.number}",
        "tenant": psk.tenant,
        "device": psk.device,
        "identity": render_identity(psk.identity),
        "state": psk.state,
        "not_before": output.optional_time(psk.not_before),
        "not_after": output.optional_time(psk.not_after),
        "retiring_until": output.optional_time(psk.retiring_until),
        "batch": psk.batch,
        "added_at": output.time(psk.added_at),
    }


def psk_validity(psk: PskEntry) -> str:
    """When a key is good, for a table: a retiring one until its grace is over."""
    ends = [psk.not_after]
    if psk.state == PskState.RETIRING:
        ends.append(psk.retiring_until)
    return output.validity(psk.not_before, min((e for e in ends if e is not None), default=None))


def _describe(entry: DeviceEntry) -> dict[str, output.Value]:
    return {
        "tenant": entry.device.tenant,
        "device": entry.device.device,
        "enabled": entry.device.enabled,
        "labels": dict(entry.device.labels),
        "psk_count": entry.psk_count,
        "certificate_count": entry.certificate_count,
        "added_at": output.time(entry.added_at),
    }


def _describe_certificate(pair: CertificateEntry) -> dict[str, output.Value]:
    return {
        "anchor": pair.anchor,
        "key_id": pair.key_id.hex(),
        "value": pair.value,
        "used_at": output.optional_time(pair.used_at),
    }


def _row(entry: DeviceEntry) -> tuple[str, ...]:
    device = entry.device
    return (
        device.tenant,
        device.device,
        _state(device),
        str(entry.psk_count),
        str(entry.certificate_count),
        _labels(device),
    )


def _state(device: Device) -> str:
    return "enabled" if device.enabled else "disabled"


def _labels(device: Device) -> str:
    return " ".join(f"{key}={value}" for key, value in device.labels)


def _name(device: Device) -> str:
    return f"device {device.device!r} of tenant {device.tenant!r}"


def _short(pair: CertificateEntry) -> str:
    return f"sha256:{pair.key_id.hex()[:16]}"


def _hint_at_credentials(device: Device) -> None:
    tenant = "" if device.tenant == DEFAULT_TENANT else f" --tenant {device.tenant}"
    output.hint(
        f"nothing speaks for it yet: `coapgate psk add {device.device}{tenant} --generate`, "
        f"or `coapgate device trust {device.device}{tenant} --anchor NAME`"
    )


def parse_labels(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """In order of key. Raises Misused."""
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise Misused(f"label {text!r} has no value", "write --label room=kitchen")
        if key in labels:
            raise Misused(f"label {key!r} is given twice", "a device has one value for each")
        labels[key] = value
    return tuple(sorted(labels.items()))


@contextmanager
def _open_file(file: Path) -> Iterator[BinaryIO]:
    try:
        opened = file.open("rb")
    except OSError as error:
        raise Misused(f"cannot read {str(file)!r}: {error.strerror}", "give a CSV file") from error
    with opened:
        yield opened


@contextmanager
def _progress(file: Path, opened: BinaryIO) -> Iterator[Callable[[int], None]]:
    """What reports how much of a file was read, to a person who waits."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        size = os.fstat(opened.fileno()).st_size
        task = progress.add_task(f"reading {file.name}", total=size, count="")
        yield lambda count: progress.update(task, completed=opened.tell(), count=f"{count} devices")
