"""What a registry refuses, in the same words whatever it is kept in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coapgate.errors import AlreadyExists, ImportRefused, Misused, NotFound, RegistryError
from coapgate.model import MAX_KEYS_PER_IDENTITY, Device, DeviceId, Tenant, TrustAnchor, is_name
from coapgate.registry.base import BadLine
from coapgate.registry.psk import render_identity

MAX_LABELS = 32
MAX_LABEL_LENGTH = 256
"""Characters of a label's value; its key is a name."""


def check_name(text: str, what: str) -> None:
    """Raises Misused unless `text` may name a tenant, a device, an anchor or a label."""
    if not is_name(text):
        raise Misused(f"{what} {text!r} is not a name", "1 to 64 of A-Z a-z 0-9 . _ ~ : -")


def check_device(device: Device) -> None:
    """Raises Misused if a device's names or labels cannot be."""
    check_name(device.tenant, "tenant")
    check_name(device.device, "device")
    if len(device.labels) > MAX_LABELS:
        raise Misused(f"{len(device.labels)} labels; a device may have {MAX_LABELS}")
    for key, value in device.labels:
        check_name(key, "label")
        if len(value) > MAX_LABEL_LENGTH or not value.isprintable():
            raise Misused(
                f"label {key!r} has a value that is too long or does not print",
                f"at most {MAX_LABEL_LENGTH} characters, no control characters",
            )
    keys = [key for key, _ in device.labels]
    if keys != sorted(set(keys)):
        raise Misused("labels are in order of their keys, each of which occurs once")


def check_anchor(anchor: TrustAnchor) -> None:
    """Raises Misused if a trust anchor's names cannot be."""
    check_name(anchor.name, "anchor")
    check_name(anchor.tenant, "tenant")


def device_exists(tenant: Tenant, device: DeviceId) -> AlreadyExists:
    return AlreadyExists(
        f"device {device!r} of tenant {tenant!r} exists already",
        f"`coapgate device show {device} --tenant {tenant}` shows it",
    )


def device_not_found(tenant: Tenant, device: DeviceId, elsewhere: Sequence[str]) -> NotFound:
    """`elsewhere`: the tenants that have a device of that name."""
    message = f"there is no device {device!r} in tenant {tenant!r}"
    if elsewhere:
        return NotFound(
            f"{message}, but one in tenant {elsewhere[0]!r}",
            f"say --tenant {elsewhere[0]}, or `coapgate device add {device} --tenant {tenant}`",
        )
    return NotFound(message, "`coapgate device list` shows those there are")


def identity_taken(identity: bytes, tenant: Tenant, device: DeviceId) -> AlreadyExists:
    return AlreadyExists(
        f"identity {render_identity(identity)!r} belongs to device {device!r} of tenant {tenant!r}",
        "an identity belongs to one device over all tenants: choose another",
    )


def key_exists(identity: bytes, number: int) -> AlreadyExists:
    return AlreadyExists(
        f"identity {render_identity(identity)!r} has this very key already: psk-{number}",
        "nothing is to be done",
    )


def too_many_keys(identity: bytes, device: DeviceId) -> RegistryError:
    return RegistryError(
        f"identity {render_identity(identity)!r} has {MAX_KEYS_PER_IDENTITY} keys, "
        "the most it may have",
        f"`coapgate psk list {device}` shows them; removing the device removes them all",
    )


def anchor_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"there is an anchor {name!r} already", "choose another --name")


def anchor_key_taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"this public key is anchor {name!r} already",
        f"one public key is one anchor; to change it, `coapgate anchor remove {name}` first: "
        "devices stay",
    )


def anchor_not_found(name: str) -> NotFound:
    return NotFound(f"there is no anchor {name!r}", "`coapgate anchor list` shows those there are")


def anchor_serves_another(anchor: TrustAnchor, tenant: Tenant) -> RegistryError:
    return RegistryError(
        f"anchor {anchor.name!r} serves tenant {anchor.tenant!r}, not {tenant!r}",
        f"say --tenant {anchor.tenant}: its certificates speak for that tenant's devices alone",
    )


def value_taken(anchor: str, value: str, tenant: Tenant, device: DeviceId) -> AlreadyExists:
    return AlreadyExists(
        f"certificates of {value!r} below anchor {anchor!r} speak for device {device!r} "
        f"of tenant {tenant!r}",
        "a certificate speaks for one device: remove that one first",
    )


def device_exists_on(line: int, tenant: Tenant, device: DeviceId) -> BadLine:
    error = device_exists(tenant, device)
    return BadLine(line, str(error), error.hint)


def device_on_earlier_line(line: int, tenant: Tenant, device: DeviceId, first: int) -> BadLine:
    return BadLine(
        line,
        f"device {device!r} of tenant {tenant!r} is on line {first} already",
        "every line is a new device",
    )


def identity_taken_on(line: int, identity: bytes, tenant: Tenant, device: DeviceId) -> BadLine:
    error = identity_taken(identity, tenant, device)
    return BadLine(line, str(error), error.hint)


def identity_on_earlier_line(line: int, identity: bytes, first: int) -> BadLine:
    return BadLine(
        line,
        f"identity {render_identity(identity)!r} is on line {first} already",
        "every device has an identity of its own",
    )


def import_refused(problems: Iterable[BadLine]) -> ImportRefused:
    """All of them, in order of line."""
    ordered = sorted(problems, key=lambda problem: (problem.line, problem.message))
    return ImportRefused(
        tuple((f"line {problem.line}: {problem.message}", problem.hint) for problem in ordered)
    )
