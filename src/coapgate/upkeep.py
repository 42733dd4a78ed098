"""What keeps a gateway that serves true to its registry and its files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from coapgate.authentication import Authentication
from coapgate.errors import Refused, RegistryError
from coapgate.following import Following
from coapgate.logs import Seldom
from coapgate.pki.revocation import RevocationList
from coapgate.pki.server import ServerCertificate
from coapgate.registry.base import Registry
from coapgate.reloading import OwnCertificate
from coapgate.revocation_lists import RevocationLists
from coapgate.serving import Pump
from coapgate.uses import LiveUses

USES_INTERVAL = 10.0
"""Seconds between two times that uses of certificates are written."""

log = logging.getLogger(__name__)


class Upkeep:
    """Follows the registry, watches revocation lists, and reads again what SIGHUP is for.

    `load` reads the gateway's own certificate, and files of lists are relative to `base`. Call
    `begin` before the first device is let in, then `run` as a task.
    """

    def __init__(
        self,
        registry: Registry,
        authentication: Authentication,
        pump: Pump,
        wake: Callable[[], None],
        load: Callable[[], ServerCertificate | None],
        base: Path,
    ) -> None:
        self.following = Following(registry, pump.reviews, wake)
        self.lists = RevocationLists(base, registry.anchors, self._use_lists)
        self.certificate = OwnCertificate(pump.server, load, self.lists.read_again)
        self._registry = registry
        self._authentication = authentication
        self._reviews = pump.reviews
        self._seldom = Seldom()
        self._crashes = 0
        self._uses = LiveUses(pump.server.traffic.associations.snapshot)

    async def begin(self) -> None:
        """Know what the registry and the files say now. Raises RegistryError."""
        self.following.begin()
        await self.lists.look()
        with suppress(
            Refused
        ):  # whoever comes will ask again: it is done here since it may be long
            await self._authentication.see_revoked()

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.following.run(), name="following")
            tasks.create_task(self.lists.run(), name="revocation lists")
            tasks.create_task(self._note_uses(), name="uses")

    @property
    def failures(self) -> int:
        """Mistakes of our own."""
        return self.following.failures + self.lists.crashes + self._crashes

    async def _note_uses(self) -> None:
        """Write when certificates were used last: not in the handshake, and many at once."""
        while True:
            await asyncio.sleep(USES_INTERVAL)
            try:
                if identities := self._uses.turn(time.monotonic()):
                    await self._authentication.note_uses(identities)
                await self._registry.write_uses()
            except RegistryError as error:
                # It is known to within a day, and what was noted is written another time.
                log.info("uses of certificates not written", extra={"detail": str(error)})
            except Exception as error:
                self._crashes += 1
                if count := self._seldom.count("uses", time.monotonic()):
                    fields = {"count": count}
                    log.error("uses not looked after", exc_info=error, extra=fields)

    def _use_lists(self, key_id: bytes, lists: Mapping[str, tuple[RevocationList, ...]]) -> None:
        self._authentication.use_lists(key_id, lists)
        self._reviews.concern_revoked(time.monotonic())
