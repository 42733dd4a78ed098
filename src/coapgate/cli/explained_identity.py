"""What would become of a PSK identity, and of the key that a device holds."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

from coapgate.cli import near_misses, output
from coapgate.cli.explanation import Explanation
from coapgate.cli.rehearsal import Rehearsal, Verdict
from coapgate.errors import KeyFileError, Reason, Refused
from coapgate.model import PskCredential, PskState
from coapgate.registry.psk import render_identity
from coapgate.registry.sqlite import SqliteRegistry

_NOBODY = Verdict(None)

_TO_DO = {
    Reason.DISABLED: "`coapgate device enable {device} --tenant {tenant}` lets it in again",
    Reason.REVOKED: "`coapgate psk rotate {device} --tenant {tenant}` gives it another key",
    Reason.EXPIRED: "`coapgate psk rotate {device} --tenant {tenant}` gives it another key",
    Reason.NOT_YET_VALID: "is the clock of this machine right? The key is good later on",
    Reason.CREDENTIAL_MISMATCH: "`coapgate device show {device} --tenant {tenant}` says what may "
    "speak for it",
    Reason.LIMIT: "`coapgate batch list` shows how many devices a batch may have",
}


async def explain_identity(
    identity: bytes,
    key: bytes | None,
    rehearsal: Rehearsal,
    registry: SqliteRegistry,
    wall: float,
) -> Explanation:
    """What a gateway would decide; `key` is the device's, if it is known.

    Raises RegistryError if the registry or its key file cannot be read.
    """
    subject = f"identity {render_identity(identity)!r}"
    try:
        found = await rehearsal.find_keys(identity)
    except Refused as refused:
        raise KeyFileError(
            refused.detail, "keys are encrypted: the key file is needed"
        ) from refused
    if not found and (batch := registry.find_removed(identity)) is not None:
        shown = render_identity(identity)
        return Explanation(
            subject,
            _NOBODY,
            Reason.UNKNOWN_IDENTITY,
            f"its device, of batch {batch!r}, was removed",
            hints=(f"`coapgate batch restore --identity {shown}` lets it come back",),
        )
    if not found:
        return Explanation(
            subject,
            _NOBODY,
            Reason.UNKNOWN_IDENTITY,
            "no device and no batch has it",
            hints=tuple(_who_else(identity, registry)),
        )
    verdicts = [(each, await rehearsal.judge_psk(each, wall)) for each in found]
    facts = tuple(_fact(each, verdict) for each, verdict in verdicts)
    odd = tuple(
        f"{_name(each)}: {fault}"
        for each in found
        if (fault := near_misses.of_stored_key(each.secret))
    )
    if key is not None:
        verdicts = [
            (each, verdict) for each, verdict in verdicts if hmac.compare_digest(each.secret, key)
        ]
        if not verdicts:
            hints = tuple(_which_key(identity, key, found)) + odd
            detail = "the device's key is none of those on record"
            return Explanation(subject, _NOBODY, Reason.BAD_KEY, detail, facts, hints)
    good = [verdict for _, verdict in verdicts if verdict.identity is not None]
    if good:
        return Explanation(subject, good[0], None, "", facts, odd)
    credential, verdict = verdicts[0]
    assert verdict.refused is not None
    reason = verdict.refused.reason
    advice = _TO_DO.get(reason, "").format(device=credential.device, tenant=credential.tenant)
    hints = ((advice,) if advice else ()) + odd
    return Explanation(subject, verdict, reason, verdict.refused.detail, facts, hints)


def _name(credential: PskCredential) -> str:
    return f"psk-{credential.number}" if credential.number else "derived key"


def _fact(credential: PskCredential, verdict: Verdict) -> tuple[str, str]:
    """One key of an identity."""
    whose = f"{credential.state}, of device {credential.device!r} of tenant {credential.tenant!r}"
    if credential.number == 0:
        whose = f"derived from a batch, for device {credential.device!r}"
    validity = output.validity(credential.not_before, credential.not_after)
    if credential.state == PskState.RETIRING and credential.retiring_until is not None:
        validity = f"until {output.time(credential.retiring_until)}"
    decided = "good" if verdict.refused is None else f"refused: {verdict.refused.reason}"
    return _name(credential), f"{whose}, valid {validity}: {decided}"


def _who_else(identity: bytes, registry: SqliteRegistry) -> list[str]:
    """Identities like this one, the device of this name, batches that it would fit."""
    namesakes: list[str] = []

    def known() -> Iterator[bytes]:
        for entry in registry.psks():  # a row at a time: there may be a million
            if not namesakes and entry.device.encode() == identity:
                namesakes.append(
                    f"device {entry.device!r} of tenant {entry.tenant!r} is known, by another "
                    f"identity: {render_identity(entry.identity)!r}"
                )
            yield entry.identity

    hints = near_misses.of_identity(identity, known()) + namesakes
    for batch in registry.batches():
        prefix, suffix = batch.prefix.encode(), batch.suffix.encode()
        if identity.startswith(prefix) and identity.endswith(suffix) and batch.state != "active":
            hints.append(f"it fits batch {batch.name!r}, which is {batch.state}")
    if not hints:
        text = render_identity(identity)
        hints.append(
            f"`coapgate psk add DEVICE --identity {text} --generate` makes it known; "
            "an identity is compared octet by octet"
        )
    return hints


def _which_key(identity: bytes, key: bytes, found: tuple[PskCredential, ...]) -> list[str]:
    hints = []
    for each in found:
        near = near_misses.of_key(key, each.secret)
        if near:
            hints.append(f"{_name(each)}: {near}")
    if not hints:
        lengths = " or ".join(sorted({str(len(each.secret)) for each in found}))
        hints.append(
            f"they have nothing in common: the device's has {len(key)} octets, what is on record "
            f"{lengths}; is it another device's, or an older one?"
        )
    device = found[0].device
    hints.append(
        f"`coapgate psk rotate {device} --tenant {found[0].tenant} --key-file FILE` makes the key "
        "that the device has its next one"
        if found[0].number
        else "a derived key is that of `coapgate batch derive` for this very identity"
    )
    return hints
