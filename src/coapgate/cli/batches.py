"""`coapgate batch`: devices whose keys are derived from one master key."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from coapgate.cli import output
from coapgate.cli.devices import describe_psk, psk_validity
from coapgate.cli.keys import Generate, Key, KeyFile, Source, handed_over, read_key
from coapgate.cli.options import (
    LIST_LIMIT,
    AllowWeak,
    AsJson,
    ConfigFile,
    Limit,
    NotAfter,
    NotBefore,
    days,
    open_registry,
    parse_optional_time,
    parse_tenant,
)
from coapgate.errors import Misused
from coapgate.model import DEFAULT_TENANT, MAX_IDENTITY_LENGTH, Batch
from coapgate.registry import refusals
from coapgate.registry.batches import MAX_BATCH_DEVICES, derive_key, parse_pattern
from coapgate.registry.psk import parse_identity, render_identity, render_key

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Factory keys: derived from one master key, so that nobody stores them.",
)

GENERATED_LENGTH = 32
"""Octets of a master key that is made here: what HMAC-SHA256 makes full use of."""

_MAX_LINE_LENGTH = 4 * MAX_IDENTITY_LENGTH

BatchName = Annotated[str, typer.Argument(metavar="NAME", help="As `batch list` shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it; any name.")],
    config: ConfigFile,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="TEXT",
            help="Its PSK identities, {device} where the device's name is: acme-{device}.",
        ),
    ],
    max_devices: Annotated[
        int,
        typer.Option(
            "--max-devices",
            min=1,
            max=MAX_BATCH_DEVICES,
            metavar="N",
            help="As many devices as will be made: no more come into being.",
        ),
    ],
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="The tenant its devices belong to.")
    ] = DEFAULT_TENANT,
    key: Key = None,
    key_file: KeyFile = None,
    generate: Generate = False,
    not_before: NotBefore = None,
    not_after: NotAfter = None,
    move_within: Annotated[
        float | None,
        typer.Option(
            "--move-within",
            min=0,
            metavar="DAYS",
            help="A derived key is good for so long after first contact: `psk rotate` in time.",
        ),
    ] = None,
    allow_weak: AllowWeak = False,
    as_json: AsJson = False,
) -> None:
    """Let devices in whose keys a factory derives from one master key.

    A device's key is HMAC-SHA256(master key, PSK identity). It is created when it first connects,
    and its key is stored nowhere. The master key is made unless one is given.
    """
    is_made = generate or (key is None and key_file is None)
    prefix, suffix = parse_pattern(pattern)
    batch = Batch(
        0,
        name,
        parse_tenant(tenant),
        prefix,
        suffix,
        max_devices,
        not_before=parse_optional_time(not_before),
        not_after=parse_optional_time(not_after),
        move_time=days(move_within),
    )
    refusals.check_batch(batch)
    secret = Source(key, key_file, is_made, allow_weak, GENERATED_LENGTH).read()
    with open_registry(config, create=True) as registry:
        added = registry.add_batch(batch, secret, allow_weak=allow_weak)
        handing = (
            handed_over(lambda: registry.revoke_batch(name), f"batch {name!r}")
            if is_made
            else nullcontext()
        )
        with handing:
            _say_created(added, secret if is_made else None, as_json=as_json)


@app.command("list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List batches. Their keys are never shown."""
    with open_registry(config) as registry:
        batches = registry.batches()
    if as_json:
        output.documents(_describe(batch) for batch in batches)
        return
    if not batches:
        output.say("no batches")
        return
    output.table(
        ("NAME", "TENANT", "PATTERN", "STATE", "DEVICES", "VALID"),
        [
            (
                batch.name,
                batch.tenant,
                batch.pattern,
                batch.state,
                f"{batch.device_count} of {batch.max_devices}",
                output.validity(batch.not_before, batch.not_after),
            )
            for batch in batches
        ],
    )


@app.command()
def show(
    name: BatchName, config: ConfigFile, limit: Limit = LIST_LIMIT, as_json: AsJson = False
) -> None:
    """Show a batch and the devices that it brought into being."""
    with open_registry(config) as registry:
        batch = registry.get_batch(name)
        entries = registry.batch_psks(name)
        if as_json:
            lists: dict[str, output.Value] = {
                "psks": [describe_psk(entry) for entry in entries],
                "removed": [render_identity(each) for each in registry.removed_identities(name)],
            }
            output.document(_describe(batch) | lists)
            return
        gone = registry.removed_identities(name)
        removed = [(render_identity(each),) for each in islice(gone, limit or None)]
        rows = [
            (
                f"psk-{entry.number}",
                entry.device,
                render_identity(entry.identity),
                entry.state,
                psk_validity(entry),
                output.time(entry.added_at),
            )
            for entry in islice(entries, limit or None)
        ]
        is_cut = next(entries, None) is not None or next(gone, None) is not None
    move = "as long as the batch"
    if batch.move_time is not None:
        move = f"for {batch.move_time / 86_400:g} days after first contact"
    output.table(
        (),
        [
            ("batch", batch.name),
            ("tenant", batch.tenant),
            ("pattern", batch.pattern),
            ("state", batch.state),
            ("devices", f"{batch.device_count} of {batch.max_devices}"),
            ("valid", output.validity(batch.not_before, batch.not_after)),
            ("keys are good", move),
            ("created", output.time(batch.added_at)),
        ],
    )
    if rows:
        output.say("")
        output.table(("KEY", "DEVICE", "IDENTITY", "STATE", "VALID", "FIRST CONTACT"), rows)
    if removed:
        output.say("")
        output.table(("REMOVED",), removed)
    if is_cut:
        output.hint("there are more: --limit 0 shows all")


@app.command()
def restore(
    config: ConfigFile,
    identity: Annotated[
        str, typer.Option("--identity", metavar="TEXT", help="As `batch show` has it.")
    ],
) -> None:
    """Let a removed device of a batch come back by its derived key.

    Until then its identity is refused, and counts as a device of the batch.
    """
    octets = parse_identity(identity)
    with open_registry(config) as registry:
        name = registry.restore_identity(octets)
    output.say(f"identity {render_identity(octets)!r} of batch {name!r} may come back")


@app.command()
def revoke(name: BatchName, config: ConfigFile) -> None:
    """Refuse every key derived from a batch; sessions by them end within seconds.

    Devices that have moved to a key of their own go on. One device alone is revoked by
    `coapgate psk revoke --identity`.
    """
    with open_registry(config) as registry:
        batch = registry.revoke_batch(name)
    devices = "1 device" if batch.device_count == 1 else f"{batch.device_count} devices"
    output.say(f"revoked batch {name!r}, which {devices} of tenant {batch.tenant!r} came from")


@app.command()
def derive(
    identities: Annotated[
        Path,
        typer.Option(
            "--identities", metavar="FILE", help="A PSK identity a line; - is standard input."
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The batch, of this registry.")
    ] = None,
    master_key_file: Annotated[
        Path | None,
        typer.Option(
            "--master-key-file",
            metavar="FILE",
            help="A file with the master key: then neither registry nor configuration is needed.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="COAPGATE_CONFIG", metavar="FILE", help="The configuration, in TOML."
        ),
    ] = None,
    allow_weak: AllowWeak = False,
) -> None:
    """Print the keys of identities: CSV with identity,key, a line each, as they are read.

    On the machine that makes the devices, which needs no network: --master-key-file. There the
    pattern of the batch is not known: see to it that the identities fit.
    """
    batch, master_key = _master_key(name, master_key_file, config, allow_weak=allow_weak)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    with _open(identities) as file:
        writer.writerow(("identity", "key"))
        for number, identity in _read_identities(file):
            if batch is not None and not _fits(batch, identity):
                raise Misused(
                    f"line {number}: identity {render_identity(identity)!r} does not fit "
                    f"{batch.pattern!r}",
                    "the lines above it were printed; no device could use the key of this one",
                )
            key = render_key(derive_key(master_key, identity))
            writer.writerow((render_identity(identity), key))


def _master_key(
    name: str | None, file: Path | None, config: Path | None, *, allow_weak: bool
) -> tuple[Batch | None, bytes]:
    """The batch if it is known, and its master key. Raises Misused, RegistryError."""
    if (name is None) == (file is None):
        raise Misused("say one of NAME and --master-key-file", "`coapgate batch list` shows names")
    if file is not None:
        return None, read_key(file, allow_weak=allow_weak)
    if config is None:
        raise Misused("--config is missing", "it says where the registry is")
    assert name is not None, "one of the two is given"
    with open_registry(config) as registry:
        return registry.get_batch(name), registry.get_batch_secret(name)


def _read_identities(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, identity) of each line that is not empty. Raises Misused."""
    number = 0
    while line := file.readline(_MAX_LINE_LENGTH + 1):
        number += 1
        if not line.strip():
            continue
        try:
            if len(line) > _MAX_LINE_LENGTH:
                raise Misused("the line is too long", "one identity is one line")
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise Misused("the line is not UTF-8", "write octets as hex:...") from None
            yield number, parse_identity(text)
        except Misused as error:
            raise Misused(f"line {number}: {error}", error.hint) from None


def _fits(batch: Batch, identity: bytes) -> bool:
    from coapgate.registry.batches import BatchBook

    return BatchBook([(batch, b"")]).find(identity) is not None


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise Misused(
            f"cannot read {str(file)!r}: {error.strerror}", "give a file with an identity a line"
        ) from error
    with opened:
        yield opened


def _say_created(batch: Batch, made: bytes | None, *, as_json: bool) -> None:
    """With the master key that was `made`."""
    if as_json:
        shown = {} if made is None else {"key": render_key(made)}
        output.document(_describe(batch) | shown)
        return
    output.say(
        f"created batch {batch.name!r}: identities {batch.pattern!r}, at most "
        f"{batch.max_devices} devices of tenant {batch.tenant!r}"
    )
    if made is not None:
        output.say(f"key {render_key(made)}")
        output.hint(
            "the master key is not shown again: put it on the machine that makes the devices, "
            "and on no device"
        )


def _describe(batch: Batch) -> dict[str, output.Value]:
    return {
        "name": batch.name,
        "tenant": batch.tenant,
        "pattern": batch.pattern,
        "state": batch.state,
        "device_count": batch.device_count,
        "max_devices": batch.max_devices,
        "not_before": output.optional_time(batch.not_before),
        "not_after": output.optional_time(batch.not_after),
        "move_time": batch.move_time,
        "created_at": output.time(batch.added_at),
    }
