"""The composition root: builds every part, opens them in order, closes them in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from coapgate import garbage, http, logs
from coapgate.association_file import (
    ObservationJournal,
    open_associations,
    open_observations,
    read_boot_id,
)
from coapgate.authentication import BUILT_AT, Authentication
from coapgate.backends import Backends
from coapgate.coap.aiocoap_bridge import Bridge
from coapgate.coap.hotpath import HotPath
from coapgate.coap.messages import MessageLayer
from coapgate.coap.messages import Settings as CoapSettings
from coapgate.coap.rates import DeviceRates
from coapgate.coap.resources import build_site
from coapgate.config import Address, DtlsSettings, Settings
from coapgate.downlinks import Words, build_backends, build_rights
from coapgate.dtls.association import Association
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.negotiation import ServerCertificate
from coapgate.dtls.server import ServerSettings
from coapgate.dtls.store import AssociationStore
from coapgate.errors import CoapgateError
from coapgate.metering import sources
from coapgate.metrics import Collector
from coapgate.mqtt import topics
from coapgate.mqtt.connection import Connection
from coapgate.mqtt.settings import ConnectionSettings, check_files
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.server import ServerCertificate as OwnCertificate
from coapgate.pki.server import load_server_certificate
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.rights import RightsTable
from coapgate.serving import Pump
from coapgate.sessions import Sessions
from coapgate.udp import Udp
from coapgate.upkeep import Upkeep
from coapgate.uplink import Uplinks

WORKER = 0
"""This worker's number; the first issues build one process."""
IP_AND_UDP_HEADERS = 48
"""Octets of a packet that are not datagram: IPv6 and UDP."""
REFRESH_INTERVAL = 0.5
"""Seconds after which one more key of an identity makes every handshake try as many."""
TAKE_TIME = 1.0
"""Seconds after SIGTERM in which requests that were taken are written down."""
DRAIN_TIME = 2.5
"""Seconds that publications have to end after SIGTERM, of the 5 in which the process ends."""
STOP_TIME = 3.8
"""Seconds after SIGTERM in which devices are told."""
LEAVE_TIME = 0.5
"""Seconds that threads of libraries have to end when everything else has."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that serves: where, and through what."""

    addresses: tuple[Address, ...]
    """Where devices connect, as bound."""
    http_address: Address
    pump: Pump
    connection: Connection
    upkeep: Upkeep
    backends: Backends
    not_ready: Callable[[], list[str]]
    """Why devices cannot be served now; empty when they can."""


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Serve while the context is open; at its end whoever was let in is answered and told.

    Raises StartError, CertificateError or RegistryError if a part cannot be opened. The broker may
    be away: then the gateway is not ready, and goes on trying.
    """
    connection_settings = _connection_settings(settings)
    check_files(connection_settings)
    server_settings = _server_settings(settings.dtls, settings.node)
    _warn_of_open_secrets(settings)
    is_open = False
    try:
        with (
            SqliteRegistry.open(
                settings.registry.url,
                settings.registry.key_file,
                settings.base,
                refresh_interval=REFRESH_INTERVAL,
            ) as registry,
            _associations(settings, registry) as (store, journal),
        ):
            async with asyncio.TaskGroup() as tasks:
                authentication = Authentication(
                    registry,
                    clock_skew=settings.dtls.clock_skew,
                    grace_time=settings.psk.grace_time,
                )
                sessions = Sessions(settings.limits.associations_per_device)
                pump = Pump(server_settings, authentication, sessions, tasks, store=store)
                connection = Connection(connection_settings, pump.acknowledged)
                rights = build_rights(settings)
                backends, words = build_backends(settings, pump, connection, registry, rights)
                parts = _Parts(
                    registry, authentication, pump, connection, backends, words, rights, journal
                )
                async with _serving(settings, parts, tasks) as gateway:
                    is_open = True
                    yield gateway
    except BaseExceptionGroup as group:
        # What fails at the start is one thing to act on, and no task's.
        known = None if is_open else group.subgroup(CoapgateError)
        if known is None:
            raise
        raise _first(known) from None


@contextmanager
def _associations(
    settings: Settings, registry: SqliteRegistry
) -> Iterator[tuple[AssociationStore, ObservationJournal] | tuple[None, None]]:
    """What outlives this process: in files beside the registry, where there is room to write."""
    template = settings.dtls.association_store
    if not template:
        yield None, None
        return
    path = registry.path.parent / template.format(node=settings.node, worker=WORKER)
    with (
        open_associations(
            path,
            settings.dtls.max_associations,
            registry,
            boot_id=read_boot_id(),
            wall=time.time(),
            binds=tuple((bind.host, bind.port) for bind in settings.dtls.bind),
        ) as store,
        open_observations(path) as journal,
    ):
        yield store, journal


class _Parts(NamedTuple):
    """What is built before anything is opened."""

    registry: SqliteRegistry
    authentication: Authentication
    pump: Pump
    connection: Connection
    backends: Backends
    words: Words
    rights: RightsTable
    journal: ObservationJournal | None


@asynccontextmanager
async def _serving(
    settings: Settings, parts: _Parts, tasks: asyncio.TaskGroup
) -> AsyncIterator[Gateway]:
    """Wire the parts together, open the ports, and only then go to the broker.

    In this order a second gateway, started by mistake, fails on its ports before it takes the
    first one's client id from it.
    """
    registry, authentication, pump, connection, backends, words, rights, journal = parts
    publications = connection.publications
    uplinks = Uplinks(
        connection,
        settings.mqtt.root,
        lambda: publications.maximum_packet_size,
        rights=rights,
    )
    bridge = Bridge(
        build_site(time.time, lambda identity: rights.offers(identity.tenant)), pump.respond
    )
    layer: MessageLayer[Association] = MessageLayer(
        pump.server.traffic.send,
        HotPath(uplinks, bridge),
        DeviceRates(
            settings.limits.device_rate,
            settings.limits.device_burst,
            block_rate=settings.limits.block_rate,
            block_burst=settings.limits.block_burst,
        ),
        _coap_settings(settings),
        prove_path=pump.server.traffic.prove_path,
        answered=pump.server.traffic.remember_answer,
        contents=backends,
        downlinks=backends,
        journal=journal,
    )
    udp = Udp(pump, settings.dtls.receive_buffer)
    pump.connect(layer, uplinks, backends.publish_event, udp.flush_soon, backends)
    backends.connect(layer, udp.flush_soon)
    words.connect(layer)
    upkeep = Upkeep(
        registry,
        authentication,
        pump,
        udp.flush_soon,
        lambda: _load_certificate(settings.dtls),
        settings.base,
    )

    def not_ready() -> list[str]:
        failure = None if connection.failure is None else connection.failure.message
        return reasons_not_to_serve(
            time.time(),
            is_accepting=pump.server.is_accepting,
            is_connected=connection.connected,
            failure=failure,
        )

    collectors = CollectorRegistry()
    pauses = garbage.Pauses()
    collectors.register(
        Collector(sources(pump, layer, uplinks, backends, connection, udp, pauses, upkeep))
    )
    application = http.create_app(collectors, not_ready)
    async with (
        bridge,
        http.serving(application, settings.http.bind, tasks) as http_address,
    ):
        # Nobody is heard before it is known what is revoked, and who goes on.
        await upkeep.begin()
        udp.open(tuple((bind.host, bind.port) for bind in settings.dtls.bind))
        backends.recover()
        await pump.recover(udp.can_reach, journal)
        udp.listen()
        from_bus = tasks.create_task(backends.run(), name="backends")
        to_broker = tasks.create_task(connection.run(), name="mqtt")
        keeping_up = tasks.create_task(upkeep.run(), name="upkeep")
        try:
            addresses = tuple(Address(*address) for address in udp.addresses)
            with pauses:
                yield Gateway(
                    addresses, http_address, pump, connection, upkeep, backends, not_ready
                )
        finally:
            # Devices are still heard: what they repeat is answered, what is new gets 5.03.
            deadline = time.monotonic() + STOP_TIME
            keeping_up.cancel()
            pump.stop()
            backends.stop()
            try:
                await asyncio.wait({from_bus}, timeout=TAKE_TIME)
                await connection.drain(DRAIN_TIME)
            finally:
                pump.close_all(udp.flush, deadline)
                udp.close()
                to_broker.cancel()
                from_bus.cancel()
                await backends.close()


def reasons_not_to_serve(
    wall: float, *, is_accepting: bool, is_connected: bool, failure: str | None
) -> list[str]:
    """Why a gateway with open ports cannot serve devices; `failure` is why the broker is away."""
    reasons = []
    if not is_accepting:
        reasons.append("the gateway is stopping")
    if not is_connected:
        because = "" if failure is None else f": {failure}"
        reasons.append(f"the broker is not connected{because}")
    if wall < BUILT_AT:
        reasons.append("the clock is before the day this was built: no certificate can be judged")
    return reasons


def _coap_settings(settings: Settings) -> CoapSettings:
    coap = settings.coap
    return CoapSettings(
        ack_delay=coap.ack_delay,
        dedup_exchanges=coap.dedup_exchanges,
        max_body=coap.max_body,
        block_size=coap.block_size,
        transfers=coap.transfers,
        transfers_per_device=coap.transfers_per_device,
        transfer_timeout=coap.transfer_timeout,
        download_memory=coap.download_memory,
        observations_per_device=coap.observations_per_device,
        confirm_every=coap.confirm_every,
        requests_per_device=coap.requests_per_device,
        response_timeout=coap.response_timeout,
        epoch=time.time() - time.monotonic(),
    )


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises what `open_gateway` raises."""
    logs.configure(settings.log.level, settings.log.format)
    with logs.written_aside():
        asyncio.run(_serve(settings))


def _first(group: BaseExceptionGroup[CoapgateError]) -> CoapgateError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Not the end of a gateway that is about to read everything anyway.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    async with AsyncExitStack() as stack:
        with garbage.put_off():
            gateway = await stack.enter_async_context(open_gateway(settings))
        loop.add_signal_handler(signal.SIGHUP, gateway.upkeep.certificate.reload)
        counters = gateway.pump.server.counters
        collecting = loop.create_task(
            garbage.set_apart_what_stays(lambda: counters.handshakes_completed), name="garbage"
        )
        where = ", ".join(f"coaps://{address}" for address in gateway.addresses)
        print(  # noqa: T201 - said whatever the log level is
            f"coapgate serves {where} and http://{gateway.http_address}, "
            f"publishes to {settings.mqtt.url}",
            file=sys.stderr,
            flush=True,
        )
        await stop.wait()
        collecting.cancel()
        log.info("stopping")
    log.info("stopped")
    threading.Thread(target=_leave, name="leave", daemon=True).start()


def _leave() -> None:
    """End the process although a thread of it waits for a name server: that cannot be cancelled,
    and Python would wait with it. Everything of ours is closed by now."""
    time.sleep(LEAVE_TIME)
    os._exit(0)


def _warn_of_open_secrets(settings: Settings) -> None:
    """Say which secrets everybody on this machine may read; a group may have its reasons."""
    secrets = {
        "dtls.private_key": settings.dtls.private_key,
        "mqtt.private_key": settings.mqtt.private_key,
        "mqtt.password_file": settings.mqtt.password_file,
    }
    for option, file in secrets.items():
        if file is not None and file.stat().st_mode & stat.S_IROTH:
            hint = f"chmod o-rwx {file}"
            log.warning("secret is readable by everybody", extra={"option": option, "hint": hint})


def _load_certificate(dtls: DtlsSettings) -> OwnCertificate | None:
    """What the gateway shows; None: PSK alone is served. Raises CertificateError."""
    if dtls.certificate is None or dtls.private_key is None:
        return None
    return load_server_certificate(dtls.certificate, dtls.private_key)


def _server_settings(dtls: DtlsSettings, node: int) -> ServerSettings:
    loaded = _load_certificate(dtls)
    certificate = None if loaded is None else ServerCertificate(loaded.chain, loaded.key)
    handshake = HandshakeSettings(
        certificate=certificate,
        public_key=leaf_public_key,
        max_datagram=dtls.mtu - IP_AND_UDP_HEADERS,
        retransmission_time=dtls.retransmission_time,
        handshake_timeout=dtls.handshake_timeout,
        auth_timeout=dtls.auth_timeout,
        max_handshake_message=dtls.max_handshake_message,
    )
    return ServerSettings(
        handshake,
        idle_timeout=dtls.idle_timeout,
        max_handshakes=dtls.max_handshakes,
        handshakes_per_address=dtls.handshakes_per_address,
        ecdhe_rate=dtls.ecdhe_rate,
        ecdhe_burst=dtls.ecdhe_burst,
        max_associations=dtls.max_associations,
        worker=WORKER,
        node=node,
    )


def _connection_settings(settings: Settings) -> ConnectionSettings:
    mqtt = settings.mqtt
    return ConnectionSettings(
        host=mqtt.url.host,
        port=mqtt.url.port,
        tls=mqtt.url.tls,
        client_id=mqtt.client_id.format(node=settings.node, worker=WORKER),
        username=mqtt.username,
        password_file=mqtt.password_file,
        ca=mqtt.ca,
        certificate=mqtt.certificate,
        private_key=mqtt.private_key,
        status_topic=topics.gateway_status_topic(mqtt.root, settings.node),
        keep_alive=mqtt.keep_alive,
        session_expiry=mqtt.session_expiry,
        max_received_packet=mqtt.max_received_packet,
        max_in_flight=mqtt.max_in_flight,
        hold_time=mqtt.hold_time,
        hold_messages=mqtt.hold_messages,
    )
