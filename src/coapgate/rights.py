"""Which paths the devices of a tenant may post to, read and observe.

Patterns are those of MQTT: `+` stands for one segment, a final `#` for everything from there on. A
path never holds either. Whatever a pattern says, a device only ever reaches topics of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from coapgate.model import Tenant

Patterns = Mapping[str, Sequence[str]]
"""Of paths, or what topics begin with, by tenant."""

ANY_TENANT = "*"
"""The name of the table for tenants that have none of their own."""
EVERYTHING = "#"


class Rule:
    """The paths that some patterns cover."""

    __slots__ = ("_match", "concrete")

    def __init__(self, patterns: Sequence[str]) -> None:
        self.concrete = tuple(sorted({p for p in patterns if not set("+#") & set(p)}))
        """Those among the patterns that are paths."""
        self._match = re.compile("|".join(map(_expression, patterns)) or "(?!)").fullmatch

    def allows(self, path: str) -> bool:
        """Whether a path is one of them; its segments are joined by `/`."""
        return self._match(path) is not None


class Rights(NamedTuple):
    """What the devices of one tenant may do; None: everything.

    `replies` are what topics begin with, beside the tenant's own, on which a backend may want the
    answer of one of these devices.
    """

    post: Rule | None = None
    read: Rule | None = None
    observe: Rule | None = None
    replies: tuple[str, ...] = ()


class Offer(NamedTuple):
    """A path that a device may use, and for what."""

    path: str
    post: bool
    read: bool
    observe: bool


class RightsTable:
    """The rights of every tenant, as configured."""

    def __init__(self, tenants: Mapping[str, Rights]) -> None:
        self._tenants = dict(tenants)
        self._others = self._tenants.get(ANY_TENANT, Rights())

    @classmethod
    def of_patterns(
        cls,
        post: Patterns,
        read: Patterns,
        observe: Patterns,
        replies: Patterns,
    ) -> RightsTable:
        """From patterns by tenant; one that a use does not name has that of all others, or all."""

        def rule(use: Patterns, tenant: str) -> Rule | None:
            return make_rule(use.get(tenant, use.get(ANY_TENANT, (EVERYTHING,))))

        def rights(tenant: str) -> Rights:
            prefixes = replies.get(tenant, replies.get(ANY_TENANT, ()))
            return Rights(
                rule(post, tenant), rule(read, tenant), rule(observe, tenant), tuple(prefixes)
            )

        tenants = {tenant for use in (post, read, observe, replies) for tenant in use}
        return cls({tenant: rights(tenant) for tenant in tenants})

    def of(self, tenant: Tenant) -> Rights:
        """What the devices of a tenant may do."""
        return self._tenants.get(tenant, self._others)

    def offers(self, tenant: Tenant) -> Iterator[Offer]:
        """The paths that the table names and devices of a tenant may use, in order."""
        rights = self.of(tenant)
        rules = (rights.post, rights.read, rights.observe)
        named = {path for rule in rules if rule is not None for path in rule.concrete}
        for path in sorted(named):
            post, read, observe = (rule is None or rule.allows(path) for rule in rules)
            yield Offer(path, post, read, read and observe)


def make_rule(patterns: Sequence[str]) -> Rule | None:
    """None if the patterns cover everything: then nothing has to be asked."""
    return None if EVERYTHING in patterns else Rule(patterns)


def _expression(pattern: str) -> str:
    *parents, last = pattern.split("/")
    parts = ["[^/]+" if segment == "+" else re.escape(segment) for segment in parents]
    if last == EVERYTHING:
        # As in MQTT `a/#` covers `a` too.
        return "/".join(parts) + "(?:/.*)?" if parts else ".+"
    return "/".join([*parts, "[^/]+" if last == "+" else re.escape(last)])
