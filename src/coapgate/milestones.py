"""What happens once in the life of a credential: counted, logged, and published as an event."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from coapgate.errors import RegistryError
from coapgate.logs import Seldom
from coapgate.model import DeviceId, Identity, Tenant
from coapgate.notices import render_event, render_time

SOON = 30 * 86_400.0
"""Seconds before the end of a credential from which on its device's sessions are announced."""
SOON_INTERVAL = 86_400.0
"""Seconds between two such events of one device."""
MAX_SOON = 65_536
"""Devices remembered for that."""
COMPLAINT_INTERVAL = 60.0
"""Seconds between two lines about promotions that could not be written."""

log = logging.getLogger(__name__)


class Milestones:
    """`authentication.Witness`: tells operators and backends. `publish` takes an event to the bus.

    Mutable: the counters, and whose credential was said to end soon.
    """

    def __init__(
        self,
        publish: Callable[[Tenant, DeviceId, str, bytes], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._publish = publish
        self._wall = wall
        self._soon = Seldom(SOON_INTERVAL, MAX_SOON)
        self._seldom = Seldom(COMPLAINT_INTERVAL)
        self.promotions = 0
        """Backup keys that became active."""
        self.failed_promotions = 0
        """Times that a backup key was used and its promotion could not be written."""
        self.provisioned: Counter[str] = Counter()
        """Devices that came into being by themselves: by `anchor` or `batch`."""

    def promoted(self, identity: Identity) -> None:
        self.promotions += 1
        log.info("credential promoted", extra=_describe(identity))
        self._tell(identity, "credential-promoted")

    def provisioned_by(self, identity: Identity, by: str) -> None:
        self.provisioned[by] += 1
        log.info("device provisioned", extra=_describe(identity) | {"by": by})
        self._tell(identity, "provisioned", by=by)

    def not_promoted(self, identity: Identity, error: RegistryError) -> None:
        self.failed_promotions += 1
        if count := self._seldom.count("promotion", self._wall()):
            fields = {"detail": str(error), "hint": error.hint, "count": count}
            log.warning("promotion not written", extra=_describe(identity) | fields)

    def opened(self, identity: Identity) -> None:
        """A device is attached: if its credential ends soon, somebody should know."""
        not_after = identity.not_after
        if not_after is None:
            return
        wall = self._wall()
        if not_after - wall < SOON and self._soon.count((identity.tenant, identity.device), wall):
            self._tell(identity, "credential-expiring", not_after=render_time(not_after))

    def _tell(self, identity: Identity, name: str, **fields: str) -> None:
        event = render_event(name, self._wall(), credential=identity.credential, **fields)
        self._publish(identity.tenant, identity.device, name, event)


def _describe(identity: Identity) -> dict[str, object]:
    return {
        "tenant": identity.tenant,
        "device": identity.device,
        "method": identity.method.value,
        "credential": identity.credential,
    }
