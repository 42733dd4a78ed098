"""Builds the parts that reach devices, and what speaks between them and the message layer."""

from __future__ import annotations

import time
from collections.abc import Callable

from coapgate.backends import Backends, Policy
from coapgate.coap.content import CONTENT_TYPES
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import MessageLayer
from coapgate.config import Settings
from coapgate.content_files import ContentFiles, check_folder
from coapgate.downlink.deliveries import Deliveries, Key, Limits
from coapgate.downlink.formats import ContentFormats
from coapgate.downlink.outcomes import Answer, Renderer, RequestOutcome
from coapgate.downlink.requests import Origin, Parser, Request
from coapgate.downlink.states import States
from coapgate.dtls.association import Association
from coapgate.dtls.server import Server
from coapgate.intake import Intake
from coapgate.lifecycle import Lifecycle
from coapgate.model import DeviceId, Tenant
from coapgate.mqtt.connection import Connection
from coapgate.outbox import Notice, Outbox
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.rights import RightsTable
from coapgate.serving import Pump
from coapgate.sessions import Sessions


def build_backends(
    settings: Settings,
    pump: Pump,
    connection: Connection,
    registry: SqliteRegistry,
    rights: RightsTable,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> tuple[Backends, Words]:
    """All that reaches devices; connect both to the message layer.

    Raises StartError if the folder of files cannot be read.
    """
    root, downlink = settings.mqtt.root, settings.downlink
    connection.subscriptions.max_feed_payload = settings.coap.max_body
    formats = ContentFormats(CONTENT_TYPES)
    devices = AttachedDevices(pump.sessions, pump.server)
    outbox = Outbox(connection, downlink.events)
    words = Words(outbox, Renderer(root, CONTENT_TYPES), clock, wall)
    deliveries = Deliveries(
        devices,
        words.send,
        words.tell,
        Limits(
            holds=downlink.hold != "none",
            per_device=downlink.held_per_device,
            messages=downlink.held_messages,
            size=downlink.held_size,
            share=downlink.tenant_share,
            attempts=downlink.attempts,
        ),
    )
    parser = Parser(
        root,
        rights,
        formats,
        hold_time=downlink.hold_time,
        max_body=settings.coap.max_body,
        max_hold_time=downlink.max_hold_time,
    )
    store = registry if downlink.hold == "registry" else None
    intake = Intake(parser, deliveries, registry, store, settings.node)
    outbox.settled = intake.settled
    words.concluded = intake.concluded
    states = States(
        connection,
        root,
        rights,
        formats,
        limit=downlink.states,
        size=downlink.states_size,
        linger_time=downlink.linger_time,
        look_up_time=downlink.look_up_time,
    )
    lifecycle = Lifecycle(outbox, root, settings.node, devices.is_attached, wall())
    content, files = settings.content, None
    if content.folder is not None:
        check_folder(content.folder)
        files = ContentFiles(content.folder, content.max_file, content.memory)
    policy = Policy(states, deliveries, intake, lifecycle, outbox, files, f"{content.path}/")
    return Backends(connection, root, policy, clock, wall), words


def build_rights(settings: Settings) -> RightsTable:
    """Which paths the devices of each tenant may use, as configured."""
    configured = settings.rights
    post, read, observe, reply = (
        dict(each or ())
        for each in (configured.post, configured.read, configured.observe, configured.reply)
    )
    return RightsTable.of_patterns(post, read, observe, reply)


class AttachedDevices:
    """Devices by name, as far as they are attached: `downlink.deliveries.Devices`."""

    def __init__(self, sessions: Sessions, server: Server) -> None:
        self._sessions = sessions
        self._server = server

    def find(self, key: Key, association_id: bytes | None = None) -> Endpoint[Association] | None:
        """The endpoint of an association of a device, or of its newest."""
        attached = self._sessions.find(*key)
        if association_id is not None:
            attached = (association_id,) if association_id in attached else ()
        for each in reversed(attached):
            association = self._server.find(each)
            if association is not None and association.is_open:
                # Serving put it there, or has not yet.
                endpoint: Endpoint[Association] | None = association.endpoint  # type: ignore[assignment]
                if endpoint is not None:
                    return endpoint
        return None

    def is_attached(self, tenant: Tenant, device: DeviceId) -> bool:
        """Whether a device has an association."""
        return bool(self._sessions.find(tenant, device))

    def await_word(self, key: Key, *, awaited: bool) -> None:
        """Whether it is to be told when the device speaks next."""
        for each in self._sessions.find(*key):
            association = self._server.find(each)
            if association is not None and association.endpoint is not None:
                association.endpoint.is_awaited = awaited  # type: ignore[attr-defined]


class Words:
    """Speaks for `Deliveries`: requests to devices, outcomes to backends."""

    def __init__(
        self,
        outbox: Outbox,
        renderer: Renderer,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._renderer = renderer
        self._clock = clock
        self._wall = wall
        self.concluded: Callable[[int, Notice, float], None] = _unnoticed
        """Told of the outcome of each request that has a number, and its notice."""

    def connect(self, layer: MessageLayer[Association]) -> None:
        """The devices' side."""
        self._layer = layer

    def send(
        self, endpoint: Endpoint[Association], request: Request, ticket: int, now: float
    ) -> None:
        """Send a request to a device."""
        self._layer.request(
            endpoint,
            request.code,
            request.origin.path,
            request.query,
            request.content_format,
            request.payload,
            ticket,
            now,
        )

    def tell(
        self,
        origin: Origin,
        outcome: RequestOutcome,
        *,
        reason: str = "",
        answer: Answer | None = None,
        settles: int | None = None,
    ) -> None:
        """Publish an outcome."""
        notice = self._renderer.render(
            origin, outcome, self._wall(), reason=reason, answer=answer, settles=settles
        )
        if notice is None:
            return
        now = self._clock()
        if settles is not None:
            self.concluded(settles, notice, now)
        self._outbox.put(notice, now)


def _unnoticed(number: int, notice: Notice, now: float) -> None:
    """Nobody keeps outcomes."""
