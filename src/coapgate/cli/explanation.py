"""The answer of `coapgate explain`, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass

from coapgate.cli import output
from coapgate.cli.rehearsal import Verdict
from coapgate.errors import ALERTS, Reason


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of `subject`; a `reason` is why it would be refused.

    `facts` are (what, value) pairs about what was given, `hints` what else is worth knowing or to
    be done.
    """

    subject: str
    verdict: Verdict
    reason: Reason | None
    detail: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def is_let_in(self) -> bool:
        return self.reason is None

    def say(self) -> None:
        """Facts and a good verdict on standard output, a bad one and hints on standard error."""
        if self.facts:
            output.table((), self.facts)
        identity = self.verdict.identity
        if self.reason is None and identity is not None:
            effects = ", which it would bring into being" if self.verdict.creates else ""
            if self.verdict.promotes:
                effects += "; its backup key would become the active one"
            output.say(
                f"{self.subject} would be let in as device {identity.device!r} of tenant "
                f"{identity.tenant!r}, by {identity.credential}{effects}"
            )
        else:
            detail = f": {self.detail}" if self.detail else ""
            output.error(f"{self.subject} would be refused as {self.reason}{detail}")
            output.hint(self.told)
        for each in self.hints:
            output.hint(each)

    @property
    def told(self) -> str:
        """What the device would see."""
        alert = ALERTS[self.reason] if self.reason is not None else None
        if alert is None:
            return "the device gets no answer, and gives up in time"
        return f"the device is told alert {alert.value} ({alert.name.lower()})"

    def describe(self) -> dict[str, output.Value]:
        """For programs."""
        identity = self.verdict.identity if self.reason is None else None
        return {
            "subject": self.subject,
            "let_in": self.is_let_in,
            "reason": None if self.reason is None else str(self.reason),
            "detail": self.detail,
            "tenant": None if identity is None else identity.tenant,
            "device": None if identity is None else identity.device,
            "credential": None if identity is None else identity.credential,
            "creates_device": self.verdict.creates,
            "promotes_key": self.verdict.promotes,
            "facts": dict(self.facts),
            "hints": list(self.hints),
        }
