"""Text of the configuration that stands for something: addresses, the broker's URL, templates.

The parsers take what TOML or the environment gave and raise PydanticCustomError with a message
that follows the option's name, and a hint.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError

from coapgate.model import is_name

MAX_BINDS = 16
MAX_ROOT_LENGTH = 64
"""Octets: a topic has 255, tenant and device need 64 each, and the path wants some."""
MAX_CLIENT_ID_LENGTH = 128

MAX_PATTERNS = 256
"""Patterns of one tenant, for one use."""

ByTenant = tuple[tuple[str, tuple[str, ...]], ...]
"""What is configured for each tenant; `*` stands for all others."""

_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f]+")
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_ROOT = re.compile(r"[A-Za-z0-9._~:@-]+(/[A-Za-z0-9._~:@-]+)*")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._~:@{}-]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a numeric IP address, and a port; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where the broker is; `host` is a name or an address without brackets."""

    tls: bool
    host: str
    port: int

    def __str__(self) -> str:
        scheme = "mqtts" if self.tls else "mqtt"
        return f"{scheme}://{Address(self.host, self.port)}"


def parse_address(value: object) -> Address:
    """`127.0.0.1:9684` or `[::1]:9684`."""
    if isinstance(value, Address):
        return value
    hint = "an IP address and a port, as in 127.0.0.1:9684 or [::]:5684"
    if not isinstance(value, str):
        _refuse(f"must be text, not {value!r}", hint)
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host, version = host[1:-1], 6
    else:
        version = 4
    try:
        numeric = ipaddress.ip_address(host)
    except ValueError:
        _refuse(f"must be an IP address and a port, not {value!r}", hint)
    if numeric.version != version:
        _refuse(f"must have an IPv6 address in brackets, not {value!r}", hint)
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        _refuse(f"must have a port from 0 to 65535, not {value!r}", hint)
    return Address(host, int(port))


def parse_binds(value: object) -> tuple[Address, ...]:
    """One address, or several: a list, or text with commas between them."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list | tuple):
        return (parse_address(value),)
    binds = tuple(parse_address(part) for part in value)
    if not 1 <= len(binds) <= MAX_BINDS:
        _refuse(f"must be 1 to {MAX_BINDS} addresses, not {len(binds)}", "one address is enough")
    for bind in binds:
        if bind.port and binds.count(bind) > 1:
            _refuse(f"lists {str(bind)!r} twice", "name each address once")
    return binds


def parse_broker_url(value: object) -> BrokerUrl:
    """`mqtt://host[:1883]` or `mqtts://host[:8883]`."""
    if isinstance(value, BrokerUrl):
        return value
    hint = "mqtt://HOST[:1883], or mqtts://HOST[:8883] for TLS"
    if not isinstance(value, str):
        _refuse(f"must be text, not {value!r}", hint)
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        _refuse("is not a URL", hint)
    # Before any message that shows the URL: it may hold a password.
    if parts.username is not None or parts.password is not None:
        _refuse(
            "must not hold a user name or password",
            "use mqtt.username and mqtt.password_file: secrets are files, never values",
        )
    if parts.scheme not in _PORTS:
        _refuse(f"must begin with mqtt:// or mqtts://, not {value!r}", hint)
    if not host or not re.fullmatch(r"[A-Za-z0-9.:%_-]{1,255}", host):
        _refuse(f"must name a host, not {value!r}", hint)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        _refuse(f"must end after the port, not {value!r}", hint)
    if port == 0:
        _refuse(f"must have a port from 1 to 65535, not {value!r}", hint)
    return BrokerUrl(parts.scheme == "mqtts", host, port or _PORTS[parts.scheme])


def parse_registry_url(value: object) -> str:
    """`sqlite:///relative.db` or `sqlite:////absolute/registry.db`."""
    if not isinstance(value, str) or not re.fullmatch(r"sqlite:///[^?#\x00-\x1f]+", value):
        _refuse(
            f"must be sqlite:/// and a file, not {value!r}",
            "sqlite:///registry.db lies beside the configuration, sqlite:////var/lib/... anywhere",
        )
    return value


def parse_root(value: object) -> str:
    """What every topic begins with: one or more levels, without wildcards."""
    if not isinstance(value, str) or not _ROOT.fullmatch(value):
        _refuse(
            f"must be topic levels of A-Z a-z 0-9 . _ ~ : @ -, not {value!r}",
            "for example coapgate, or site-4/coapgate",
        )
    if len(value) > MAX_ROOT_LENGTH:
        _refuse(
            f"must have at most {MAX_ROOT_LENGTH} octets, not {len(value)}",
            "topics end at 255 octets, and the devices' paths want room",
        )
    return value


def parse_client_id(value: object) -> str:
    """A template in which `{node}` and `{worker}` stand for the numbers of this process."""
    hint = "for example coapgate-{node}-{worker}"
    if not isinstance(value, str) or not _CLIENT_ID.fullmatch(value):
        _refuse(f"must be made of A-Z a-z 0-9 . _ ~ : @ - and placeholders, not {value!r}", hint)
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        length = len(value.format(node=0, worker=0))
    except (ValueError, KeyError, IndexError, AttributeError):
        _refuse(f"may hold {{node}} and {{worker}} only, not {value!r}", hint)
    if not fields <= {"node", "worker"}:
        _refuse(f"may hold {{node}} and {{worker}} only, not {value!r}", hint)
    if length > MAX_CLIENT_ID_LENGTH:
        _refuse(f"must have at most {MAX_CLIENT_ID_LENGTH} octets, not {length}", hint)
    return value


def parse_store(value: object) -> str:
    """The name of a file in which `{node}` and `{worker}` stand for the numbers of this process."""
    hint = 'for example associations-{node}-{worker}.store, or "" for none'
    if not isinstance(value, str) or "\x00" in value:
        _refuse(f"must be the name of a file, not {value!r}", hint)
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        value.format(node=0, worker=0)
    except (ValueError, KeyError, IndexError, AttributeError):
        _refuse(f"may hold {{node}} and {{worker}} only, not {value!r}", hint)
    if value and "worker" not in fields:
        _refuse(f"must hold {{worker}}, not only {value!r}: every process has its own", hint)
    return value


def parse_patterns(value: object) -> ByTenant:
    """Paths that the devices of a tenant may use, by tenant: `{ acme = ["logs/#"] }`."""
    hint = 'patterns by tenant, as in { acme = ["temperature", "logs/#"], "*" = ["#"] }'
    return _parse_by_tenant(
        value, _is_pattern, "a path, where + is a segment and a last # all", hint
    )


def parse_prefixes(value: object) -> ByTenant:
    """What the topics begin with that backends of a tenant may have answers on, by tenant."""
    hint = 'what topics begin with, by tenant, as in { acme = ["apps/acme/"] }'
    return _parse_by_tenant(value, _is_prefix, "the beginning of a topic, up to a slash", hint)


def parse_content_path(value: object) -> str:
    """The path below which devices find files."""
    if not isinstance(value, str) or not _ROOT.fullmatch(value) or "." in value.split("/")[0]:
        _refuse(f"must be a path, not {value!r}", "for example firmware")
    return value


def _parse_by_tenant(
    value: object, is_good: Callable[[str], bool], what: str, hint: str
) -> ByTenant:
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        _refuse(f"must be a table, not {value!r:.64}", hint)
    tables = []
    for tenant, texts in value.items():
        if tenant != "*" and not is_name(tenant):
            _refuse(f"must name tenants, or * for all others, not {tenant!r:.64}", hint)
        if not isinstance(texts, list):
            _refuse(f"must have a list for {tenant}, not {texts!r:.64}", hint)
        if len(texts) > MAX_PATTERNS:
            _refuse(f"must have at most {MAX_PATTERNS} for {tenant}, not {len(texts)}", hint)
        for text in texts:
            if not isinstance(text, str) or len(text) > 255 or not is_good(text):
                _refuse(f"must hold for {tenant} {what}, not {text!r:.64}", hint)
        tables.append((tenant, tuple(texts)))
    return tuple(tables)


def _is_pattern(text: str) -> bool:
    segments = text.split("/")
    return (
        _PRINTABLE.fullmatch(text) is not None
        and all(segments)
        and all(not set("+#") & set(segment) or segment in ("+", "#") for segment in segments)
        and "#" not in segments[:-1]
    )


def _is_prefix(text: str) -> bool:
    return (
        _PRINTABLE.fullmatch(text) is not None
        and text.endswith("/")
        and not text.startswith(("$", "/"))
        and not set("+#") & set(text)
    )


def parse_file(value: object) -> Path:
    """The name of a file."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\x00" in value:
        _refuse(f"must be the name of a file, not {value!r}", "relative to the configuration file")
    return Path(value)


def _refuse(message: str, hint: str) -> NoReturn:
    # The message is a field, never a template: what the operator wrote may hold braces.
    raise PydanticCustomError("coapgate", "{message}", {"message": message, "hint": hint})
