"""What the bus is told about devices that come and go: a retained status, and events in order.

`status` says whether a device is attached and since when, and is published when that changes, after
the event that says so. A gateway that was killed has left some behind: at its start it hears every
status that is retained, and corrects those of its own that are no longer true.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from coapgate.model import DeviceId, Identity, Tenant
from coapgate.mqtt import topics
from coapgate.notices import render_event, render_time
from coapgate.outbox import Notice, Outbox

LOST = "lost"
"""The cause of a session's end that nobody has seen: the gateway was not there."""


class Lifecycle:
    """Publishes what happens to devices; `node` is this gateway's number among others.

    `is_attached` says whether a device is now, `started_at` is when this process began. It, and
    `wall`, are Unix seconds, `now` monotonic ones.
    """

    def __init__(
        self,
        outbox: Outbox,
        root: str,
        node: int,
        is_attached: Callable[[Tenant, DeviceId], bool],
        started_at: float,
    ) -> None:
        self.corrected = 0
        """Statuses that an earlier process left behind, and that were no longer true."""
        self._outbox = outbox
        self._root = root
        self._node = node
        self._is_attached = is_attached
        self._started_at = render_time(started_at)
        self._unconfirmed: dict[tuple[Tenant, DeviceId], Identity] = {}

    def recovered(self, identity: Identity) -> None:
        """A device has gone on from an earlier process, which may not have been able to say that
        it was attached: `complete` says so unless `heard` hears it.
        """
        self._unconfirmed[identity.tenant, identity.device] = identity

    def attached(self, identity: Identity, now: float, wall: float) -> None:
        """A device that was not attached is."""
        at = render_time(wall)
        method = identity.method.value
        fields = {"method": method, "credential": identity.credential}
        self.event(identity.tenant, identity.device, "connected", now, wall, fields)
        status = {"attached": True, "since": at, "method": method}
        self._publish_status(identity.tenant, identity.device, at, status, now)

    def detached(
        self, tenant: Tenant, device: DeviceId, cause: str, now: float, wall: float
    ) -> None:
        """A device that was attached is no longer; `cause` is that of its association's end."""
        self._unconfirmed.pop((tenant, device), None)
        at = render_time(wall)
        self.event(tenant, device, "disconnected", now, wall, {"cause": cause})
        self._publish_status(
            tenant, device, at, {"attached": False, "since": at, "cause": cause}, now
        )

    def event(
        self,
        tenant: Tenant,
        device: DeviceId,
        name: str,
        now: float,
        wall: float,
        fields: dict[str, str],
    ) -> None:
        """Publish `event/{name}` with these fields."""
        topic = topics.event_topic(self._root, tenant, device, name)
        about = f"{tenant}/{device}"
        self._outbox.put(Notice(topic, render_event(name, wall, **fields), about=about), now)

    def heard(self, topic: str, payload: bytes, now: float, wall: float) -> None:
        """A retained status; one of ours that is not true any more is corrected."""
        found = topics.parse_device_topic(self._root, topic)
        if found is None or found.kind != "status":
            return
        try:
            status = json.loads(payload)
        except ValueError:
            return
        if (
            not isinstance(status, dict)
            or status.get("attached") is not True
            or status.get("node") != self._node
        ):
            return
        if self._is_attached(found.tenant, found.device):
            self._unconfirmed.pop((found.tenant, found.device), None)
        # Our own words come back to us too, and may be out of date by then.
        elif str(status.get("since")) < self._started_at:
            self.corrected += 1
            self.detached(found.tenant, found.device, LOST, now, wall)

    def complete(self, now: float, wall: float) -> None:
        """Every retained status was heard: whoever has gone on and has none gets one."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for identity in unconfirmed.values():
            self.corrected += 1
            self.attached(identity, now, wall)

    def _publish_status(
        self, tenant: Tenant, device: DeviceId, at: str, fields: dict[str, object], now: float
    ) -> None:
        payload = {"at": at} | fields | {"node": self._node}
        topic = topics.status_topic(self._root, tenant, device)
        self._outbox.put(Notice(topic, json.dumps(payload).encode(), retain=True), now)
