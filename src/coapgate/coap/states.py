"""The state of paths as devices read and observe it: RFC 7252 section 5.8.1, RFC 7641, RFC 7959."""

from __future__ import annotations

from typing import Protocol

from coapgate.model import Identity


class Contents(Protocol):
    """Where the state of paths comes from.

    A path is decoded, its segments joined by `/`, and of the kind `topics.uplink_path` lets pass.
    """

    def find(self, identity: Identity, path: str, ticket: int, now: float) -> None:
        """Look up what a device may read at one of its paths.

        `MessageLayer.respond_content(ticket, ...)` or `MessageLayer.refuse(ticket, ...)` follows
        exactly once, perhaps at once. Raises RequestRefused to refuse at once (4.03, 5.03).
        """

    def check_observable(self, identity: Identity, path: str) -> None:
        """Raise RequestRefused (4.03) if the device may not observe that path; `find` follows."""

    def observed(self, identity: Identity, path: str) -> None:
        """A path of this device has its first observer: `MessageLayer.notify` from now on.

        Called before `find` of the registration itself.
        """

    def unobserved(self, identity: Identity, path: str) -> None:
        """The last observer of a path of this device is gone."""
