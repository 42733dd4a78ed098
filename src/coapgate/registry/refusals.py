"""What a registry refuses, in the same words whatever it is kept in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coapgate.errors import (
    AlreadyExists,
    BatchFull,
    ImportRefused,
    Misused,
    NotFound,
    RegistryError,
)
from coapgate.model import (
    MAX_KEYS_PER_IDENTITY,
    Batch,
    Device,
    DeviceId,
    Tenant,
    TrustAnchor,
    is_name,
)
from coapgate.registry.base import MAX_REVOKED_CERTIFICATES, BadLine, PskEntry
from coapgate.registry.batches import MAX_ACTIVE_BATCHES, MAX_BATCH_DEVICES, parse_pattern
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
    for tenant in (anchor.tenant, *anchor.tenants):
        check_name(tenant, "tenant")
    check_device(Device(anchor.tenant, DeviceId("any"), labels=anchor.labels))


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
        f"`coapgate psk list {device}` shows them; `coapgate psk revoke psk-N` makes room",
    )


def psk_not_found(number: int | None, identity: bytes | None) -> NotFound:
    what = f"psk-{number}" if identity is None else f"of identity {render_identity(identity)!r}"
    return NotFound(f"there is no key {what}", "`coapgate psk list` shows those there are")


def nothing_to_rotate(tenant: Tenant, device: DeviceId) -> RegistryError:
    return RegistryError(
        f"device {device!r} of tenant {tenant!r} has no active key that another could follow",
        f"`coapgate psk add {device} --tenant {tenant}` gives it one",
    )


def check_batch(batch: Batch) -> None:
    """Raises Misused if a batch's names or bounds cannot be."""
    check_name(batch.name, "batch")
    check_name(batch.tenant, "tenant")
    parse_pattern(batch.pattern)
    if not 1 <= batch.max_devices <= MAX_BATCH_DEVICES:
        raise Misused(
            f"a batch of {batch.max_devices} devices cannot be",
            f"1 to {MAX_BATCH_DEVICES}: as many as will be made, so that a stolen master key "
            "cannot bring more into being",
        )
    if batch.not_before is not None and batch.not_after is not None:
        check_validity(batch.not_before, batch.not_after)


def check_validity(not_before: float | None, not_after: float | None) -> None:
    """Raises Misused if it ends before it begins."""
    if not_before is not None and not_after is not None and not_before > not_after:
        raise Misused("the validity ends before it begins", "see --not-before and --not-after")


def batch_not_found(name: str) -> NotFound:
    return NotFound(f"there is no batch {name!r}", "`coapgate batch list` shows those there are")


def batch_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"there is a batch {name!r} already", "choose another --name")


def batches_overlap(batch: Batch, other: Batch) -> AlreadyExists:
    return AlreadyExists(
        f"an identity could fit {batch.pattern!r} and {other.pattern!r}, of batch {other.name!r}",
        "an identity belongs to one batch: choose a pattern that begins or ends otherwise",
    )


def batch_revoked(name: str) -> NotFound:
    return NotFound(f"batch {name!r} was revoked", "its devices need keys of their own")


def too_many_batches() -> RegistryError:
    return RegistryError(
        f"{MAX_ACTIVE_BATCHES} batches are active; no more may be",
        "`coapgate batch revoke` one whose devices have keys of their own, or are gone",
    )


def identity_removed(identity: bytes) -> NotFound:
    return NotFound(
        f"identity {render_identity(identity)!r} is that of a removed device",
        f"`coapgate batch restore --identity {render_identity(identity)}` lets it come back",
    )


def identity_not_removed(identity: bytes) -> NotFound:
    return NotFound(
        f"no removed device had the identity {render_identity(identity)!r}",
        "`coapgate batch show NAME` says which have been removed",
    )


def check_follows(active: Sequence[bytes], entry: PskEntry) -> bytes:
    """The identity whose keys a backup replaces: as it says, its own, or the only one there is.

    `active` are the identities of its device's active keys. Raises RegistryError.
    """
    if entry.follows is not None:
        if entry.follows not in active:
            raise nothing_to_follow(entry.follows, entry.device)
        return entry.follows
    if entry.identity in active:
        return entry.identity
    if not active:
        raise nothing_to_rotate(entry.tenant, entry.device)
    if len(set(active)) > 1:
        shown = ", ".join(render_identity(each) for each in dict.fromkeys(active))
        raise RegistryError(
            f"device {entry.device!r} has active keys of several identities: {shown}",
            "--follows says which of them the next key replaces; the others stay as they are",
        )
    return active[0]


def nothing_to_follow(identity: bytes, device: DeviceId) -> RegistryError:
    return RegistryError(
        f"device {device!r} has no active key of identity {render_identity(identity)!r}",
        f"`coapgate psk list {device}` shows those it has",
    )


def batch_full(name: str, max_devices: int) -> BatchFull:
    return BatchFull(
        f"batch {name!r} has {max_devices} devices, as many as it may have",
        "a larger number needs another batch: `coapgate batch create`",
    )


def anchor_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"there is an anchor {name!r} already", "choose another --name")


def anchor_key_taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"this public key is anchor {name!r} already",
        f"one public key is one anchor; `coapgate anchor change {name}` changes what it accepts",
    )


def check_anchor_is(anchor: TrustAnchor, was: TrustAnchor | None) -> None:
    """Raises RegistryError if it has another key or state by now than what was decided about."""
    if was is not None and (anchor.key_id, anchor.state) != (was.key_id, was.state):
        raise RegistryError(
            f"anchor {anchor.name!r} was changed just now, by somebody else",
            f"`coapgate anchor show {anchor.name}` shows how it is",
        )


def anchor_not_found(name: str) -> NotFound:
    return NotFound(f"there is no anchor {name!r}", "`coapgate anchor list` shows those there are")


def anchor_serves_another(anchor: TrustAnchor, tenant: Tenant) -> RegistryError:
    served = anchor.tenants if anchor.tenant_template else (anchor.tenant,)
    return RegistryError(
        f"anchor {anchor.name!r} serves tenant {' or '.join(map(repr, served))}, not {tenant!r}",
        f"say --tenant {served[0]}: its certificates speak for that tenant's devices alone",
    )


def too_many_revoked() -> RegistryError:
    return RegistryError(
        f"{MAX_REVOKED_CERTIFICATES} certificates are revoked one by one; no more may be",
        "revoke by a CRL of their authority, or disable devices: `coapgate device disable`",
    )


def value_not_trusted(anchor: str, value: str, device: DeviceId) -> NotFound:
    return NotFound(
        f"certificates of {value!r} below anchor {anchor!r} do not speak for device {device!r}",
        f"`coapgate device show {device}` shows which do",
    )


def value_taken(anchor: str, value: str, tenant: Tenant, device: DeviceId) -> AlreadyExists:
    return AlreadyExists(
        f"certificates of {value!r} below anchor {anchor!r} speak for device {device!r} "
        f"of tenant {tenant!r}",
        f"a certificate speaks for one device: `coapgate device distrust {device} --tenant {tenant}"
        f" --anchor {anchor} --value {value}` first",
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
