"""Arguments and options that several commands take, and the registry that they work on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coapgate.errors import Misused, NotFound
from coapgate.model import DeviceId, Tenant
from coapgate.registry import refusals

if TYPE_CHECKING:
    from coapgate.registry.sqlite import SqliteRegistry

LIST_LIMIT = 1000
"""Rows that a table shows unless told otherwise: a terminal scrolls no further."""

_WRITE_TIMEOUT = 10.0  # seconds; a person waits, where a gateway would not


def parse_device(text: str) -> DeviceId:
    """Raises Misused."""
    refusals.check_name(text, "device")
    return DeviceId(text)


def parse_tenant(text: str) -> Tenant:
    """Raises Misused."""
    refusals.check_name(text, "tenant")
    return Tenant(text)


def parse_anchor_name(text: str) -> str:
    """Raises Misused."""
    refusals.check_name(text, "anchor")
    return text


def parse_time(text: str) -> float:
    """Unix seconds of a day or of a time in RFC 3339; without an offset it is UTC.

    Raises Misused.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Misused(
            f"{text!r} is not a time", "write 2027-01-31 or 2027-01-31T12:00:00Z"
        ) from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def parse_optional_time(text: str | None) -> float | None:
    """Raises Misused."""
    return None if text is None else parse_time(text)


def days(count: float | None) -> float | None:
    """Seconds."""
    return None if count is None else count * 86_400.0


ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config", envvar="COAPGATE_CONFIG", metavar="FILE", help="The configuration, in TOML."
    ),
]
DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's name.")]
TenantName = Annotated[
    str, typer.Option("--tenant", metavar="TENANT", help="The tenant it belongs to.")
]
AnyTenantName = Annotated[
    str | None, typer.Option("--tenant", metavar="TENANT", help="Only those of this tenant.")
]
NotBefore = Annotated[
    str | None, typer.Option("--not-before", metavar="TIME", help="Good from then on; RFC 3339.")
]
NotAfter = Annotated[
    str | None, typer.Option("--not-after", metavar="TIME", help="Good until then; RFC 3339.")
]
AllowWeak = Annotated[
    bool,
    typer.Option("--allow-weak", help="Take a key of fewer than 16 octets, which can be guessed."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[
    int,
    typer.Option(
        "--limit", min=0, metavar="N", help="Rows of the table; 0 shows all, as --json does."
    ),
]


@contextmanager
def open_registry(config: Path, *, create: bool = False) -> Iterator[SqliteRegistry]:
    """The registry that a configuration names; `create` makes it if there is none.

    Raises ConfigError, RegistryError.
    """
    # Imported here: --help need not wait for them.
    from coapgate.config import load
    from coapgate.registry.sqlite import SqliteRegistry

    settings = load(config)
    with SqliteRegistry.open(
        settings.registry.url,
        settings.registry.key_file,
        settings.base,
        create=create,
        # Whoever lost the key file must still see what there is, and remove it.
        verify_key_file=False,
        write_timeout=_WRITE_TIMEOUT,
    ) as registry:
        yield registry


def exists(registry: SqliteRegistry, tenant: Tenant, device: DeviceId) -> bool:
    """Whether a device is there, so that a command can say that it has created one."""
    try:
        registry.get_device(tenant, device)
    except NotFound:
        return False
    return True
