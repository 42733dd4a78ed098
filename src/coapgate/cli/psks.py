"""`coapgate psk`: pre-shared keys."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from coapgate.cli import output
from coapgate.cli.devices import describe_psk, psk_validity
from coapgate.cli.keys import Generate, Key, KeyFile, Source, handed_over
from coapgate.cli.options import (
    LIST_LIMIT,
    AllowWeak,
    AnyTenantName,
    AsJson,
    ConfigFile,
    DeviceName,
    Limit,
    NotAfter,
    NotBefore,
    TenantName,
    exists,
    open_registry,
    parse_device,
    parse_optional_time,
    parse_tenant,
)
from coapgate.errors import Misused
from coapgate.model import DEFAULT_TENANT, DeviceId, PskState, Tenant
from coapgate.registry import refusals
from coapgate.registry.psk import parse_identity, render_identity, render_key

if TYPE_CHECKING:
    from coapgate.registry.base import PskEntry
    from coapgate.registry.sqlite import SqliteRegistry

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Pre-shared keys: which identity proves what."
)

GENERATED_LENGTH = 16
"""Octets: as strong as AES-128, and every DTLS library takes them."""

_NUMBER = re.compile(r"psk-([1-9][0-9]{0,17})")

_NOT_AGAIN = "the key is not shown again: put it on the device now"


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
    key: Key = None,
    key_file: KeyFile = None,
    generate: Generate = False,
    not_before: NotBefore = None,
    not_after: NotAfter = None,
    allow_weak: AllowWeak = False,
    tenant: TenantName = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Give a device a key. A device that does not exist is created.

    An identity that has a key already takes one more, up to 4: the device may prove itself by any
    of them. To replace a key, see `coapgate psk rotate`.
    """
    name = parse_tenant(tenant), parse_device(device)
    octets = parse_identity(identity) if identity is not None else device.encode()
    secret = Source(key, key_file, generate, allow_weak, GENERATED_LENGTH).read()
    with open_registry(config, create=True) as registry:
        is_new = not exists(registry, *name)
        added = registry.add_psk(
            *name,
            octets,
            secret,
            create_device=True,
            not_before=parse_optional_time(not_before),
            not_after=parse_optional_time(not_after),
            allow_weak=allow_weak,
        )
        with _handed_over(registry, added, is_made=generate):
            _say_added(added, secret if generate else None, is_new=is_new, as_json=as_json)


@app.command()
def rotate(
    device: DeviceName,
    config: ConfigFile,
    identity: Annotated[
        str | None,
        typer.Option(
            "--identity",
            metavar="TEXT",
            help="The PSK identity of the next key; if not given, that of the newest active one.",
        ),
    ] = None,
    follows: Annotated[
        str | None,
        typer.Option(
            "--follows",
            metavar="TEXT",
            help="The PSK identity whose keys it replaces, for a device that has several.",
        ),
    ] = None,
    key: Key = None,
    key_file: KeyFile = None,
    generate: Generate = False,
    not_before: NotBefore = None,
    not_after: NotAfter = None,
    allow_weak: AllowWeak = False,
    tenant: TenantName = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Give a device its next key: a backup, until the device uses it.

    From its first handshake by that key on, it is the device's active one. The keys that it follows
    are retiring: good for `psk.grace_time` more, then refused; those of other identities that the
    device has stay. A device that never switches goes on as it is. A key is made unless one is
    given.
    """
    name = parse_tenant(tenant), parse_device(device)
    is_made = generate or (key is None and key_file is None)
    secret = Source(key, key_file, is_made, allow_weak, GENERATED_LENGTH).read()
    octets = None if identity is None else parse_identity(identity)
    with open_registry(config) as registry:
        active = _active(registry, *name)
        added = registry.add_psk(
            *name,
            active[-1].identity if octets is None else octets,
            secret,
            state=PskState.BACKUP,
            follows=None if follows is None else parse_identity(follows),
            not_before=parse_optional_time(not_before),
            not_after=parse_optional_time(not_after),
            allow_weak=allow_weak,
        )
        numbers = [
            f"psk-{entry.number}"
            for entry in active
            if added.follows in (entry.identity, entry.follows)
        ]
        with _handed_over(registry, added, is_made=is_made):
            _say_rotated(added, secret if is_made else None, numbers, as_json=as_json)


@app.command()
def revoke(
    config: ConfigFile,
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="As `psk list` shows it: psk-7.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", metavar="TEXT", help="Every key of this PSK identity."),
    ] = None,
) -> None:
    """Refuse a key from now on; sessions that it opened end within seconds.

    Its identity stays the device's, also one that belongs to a batch: no key is derived for it.
    """
    if (key is None) == (identity is None):
        raise Misused("say which key, or --identity", "`coapgate psk list` shows psk-1, psk-2 ...")
    number = None
    if key is not None:
        match = _NUMBER.fullmatch(key)
        if match is None:
            raise Misused(f"{key!r} is no key", "as `coapgate psk list` shows it: psk-7")
        number = int(match[1])
    octets = None if identity is None else parse_identity(identity)
    with open_registry(config) as registry:
        revoked = registry.revoke_psks(number=number, identity=octets)
        owner = revoked[0].tenant, revoked[0].device
        is_left = any(entry.state != PskState.REVOKED for entry in registry.psks(*owner))
    for entry in revoked:
        output.say(
            f"revoked psk-{entry.number}: identity {render_identity(entry.identity)!r} of device "
            f"{entry.device!r} of tenant {entry.tenant!r}"
        )
    if not is_left:
        tenant = "" if owner[0] == DEFAULT_TENANT else f" --tenant {owner[0]}"
        output.hint(
            f"no key is left to it: `coapgate psk add {owner[1]}{tenant} --generate` gives it one"
        )


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
                psk_validity(entry),
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


def _active(registry: SqliteRegistry, tenant: Tenant, device: DeviceId) -> list[PskEntry]:
    """The active keys of a device, at least one. Raises RegistryError."""
    registry.get_device(tenant, device)
    entries = registry.psks(tenant, device)
    active = [entry for entry in entries if entry.state == PskState.ACTIVE]
    if not active:
        raise refusals.nothing_to_rotate(tenant, device)
    return active


def _handed_over(
    registry: SqliteRegistry, added: PskEntry, *, is_made: bool
) -> AbstractContextManager[None]:
    if not is_made:
        return nullcontext()
    return handed_over(lambda: registry.revoke_psks(number=added.number), f"psk-{added.number}")


def _say_added(added: PskEntry, made: bytes | None, *, is_new: bool, as_json: bool) -> None:
    """With the key that was `made`."""
    if as_json:
        shown = {} if made is None else {"key": render_key(made)}
        output.document(describe_psk(added) | {"device_created": is_new} | shown)
        return
    created = ", which was created" if is_new else ""
    output.say(f"added {_describe(added)}{created}")
    if made is not None:
        output.say(f"key {render_key(made)}")
        output.hint(_NOT_AGAIN)


def _say_rotated(added: PskEntry, made: bytes | None, numbers: list[str], *, as_json: bool) -> None:
    """With the key that was `made`, and the `numbers` of those it follows."""
    if as_json:
        shown = {} if made is None else {"key": render_key(made)}
        output.document(describe_psk(added) | {"follows": numbers} | shown)
        return
    output.say(f"added {_describe(added)}, which follows {', '.join(numbers)}")
    if made is not None:
        output.say(f"key {render_key(made)}")
        output.hint(_NOT_AGAIN)
    output.hint(
        f"{', '.join(numbers)} stays active until the device uses psk-{added.number}, and is good "
        "for `psk.grace_time` from then on"
    )


def _describe(entry: PskEntry) -> str:
    return (
        f"psk-{entry.number}: identity {render_identity(entry.identity)!r} for device "
        f"{entry.device!r} of tenant {entry.tenant!r}"
    )
