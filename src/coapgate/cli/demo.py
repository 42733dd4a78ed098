"""`coapgate demo`: everything embedded, real DTLS, and what arrives on the bus, printed."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
from rich.console import Console
from rich.text import Text

from coapgate import logs
from coapgate.coap.content import JSON, TEXT
from coapgate.config import (
    Address,
    BrokerUrl,
    DtlsSettings,
    HttpSettings,
    MqttSettings,
    RegistrySettings,
    Settings,
)
from coapgate.config.values import parse_broker_url
from coapgate.dtls.client import ClientCertificate, Credential, PskKey
from coapgate.errors import CoapgateError, DeviceError, Failed
from coapgate.gateway import open_gateway
from coapgate.model import DEFAULT_TENANT, Code, DeviceId, DeviceIdSource
from coapgate.mqtt.embedded import embedded_broker
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import FactoryCa
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.simulated.device import Device
from coapgate.simulated.trust import trust_server

INTERVAL = 1.0
"""Seconds between two messages of one device."""
HOST = "127.0.0.1"
PSK_DEVICE = "thermometer-1"
X509_DEVICE = "valve-2"

_INTRODUCTION = f"""\
coapgate demo: two devices, a gateway and an MQTT broker, all on this machine.

  {PSK_DEVICE} proves itself by a pre-shared key, {X509_DEVICE} by an X.509 certificate that a
  factory made for this demo has signed. Both send CoAP over DTLS 1.2. What they send, the
  gateway publishes on MQTT, and a subscriber prints it here. Ctrl-C ends it.
"""
_OUTLOOK = """\
The demo's keys, registry and broker are gone. To let a device of your own in:

  coapgate psk add sensor-1 --identity sensor-1 --generate --config config/minimal.toml
  coapgate run --config config/minimal.toml

README.md says how to connect it, by a key or by a certificate."""


Measurement = tuple[str, bytes, int]
"""Path, payload, Content-Format."""
DemoDevice = tuple[Credential, Callable[[], Measurement]]
"""How it proves itself, and what it sends."""


def demo(count: int | None = None, broker: str | None = None) -> None:
    """Run until `count` messages arrived on the bus, or Ctrl-C.

    `broker` is `mosquitto` or `iotcore`; None: the first if it is installed, else the second.

    Raises CoapgateError if a part does not start or a device is not served.
    """
    logs.configure("warning", "text")
    console = Console(highlight=False, soft_wrap=True)
    console.print(_INTRODUCTION)
    try:
        with tempfile.TemporaryDirectory(prefix="coapgate-demo-") as directory:
            arrived = asyncio.run(_run(Path(directory), console, count, broker))
    except (BaseExceptionGroup, aiomqtt.MqttError) as error:
        explained = _explain(error)
        if explained is error:
            raise
        raise explained from error
    console.print(f"{arrived} {'message' if arrived == 1 else 'messages'} arrived.\n")
    console.print(_OUTLOOK)


async def _run(
    directory: Path, console: Console, count: int | None, broker_name: str | None
) -> int:
    """Start everything, stop everything; returns how many messages arrived."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with embedded_broker(directory, broker_name) as url:
        broker = parse_broker_url(url)
        settings, devices = _install(directory, broker)
        async with (
            _subscribed(broker, f"{settings.mqtt.root}/+/+/up/#") as client,
            open_gateway(settings) as gateway,
            asyncio.TaskGroup() as tasks,
        ):
            (address,) = gateway.addresses
            _show_way(console, address, broker)
            printing = tasks.create_task(_print(client, console, count, stop.set), name="bus")
            sending = [
                tasks.create_task(_send(console, address, credential, measure), name="device")
                for credential, measure in devices
            ]
            await stop.wait()
            for task in (printing, *sending):
                task.cancel()
    return printing.result()


def _install(directory: Path, broker: BrokerUrl) -> tuple[Settings, tuple[DemoDevice, DemoDevice]]:
    """What an operator does once: certificates, configuration, a key, a trust anchor."""
    factory = FactoryCa.create("Demo Factory Root")
    certificate, private_key = factory.issue_server(addresses=(HOST,)).write(directory, "gateway")
    # Not by `config.load`: COAPGATE_... variables are for the operator's gateway, not for this.
    settings = Settings(
        dtls=DtlsSettings(
            bind=(Address(HOST, 0),),
            certificate=certificate,
            private_key=private_key,
            receive_buffer=65536,  # two devices need no more, and every kernel grants it
        ),
        mqtt=MqttSettings(url=broker),
        registry=RegistrySettings(
            url=f"sqlite:///{directory / 'registry.db'}", key_file=directory / "registry.key"
        ),
        http=HttpSettings(bind=Address(HOST, 0)),
    )
    key = PskKey(PSK_DEVICE.encode(), secrets.token_bytes(16))
    anchor = parse_anchor(
        factory.certificate_pem,
        name="demo-factory",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=time.time(),
    )
    with SqliteRegistry.open(
        settings.registry.url, settings.registry.key_file, directory
    ) as registry:
        registry.add_psk(
            DEFAULT_TENANT, DeviceId(PSK_DEVICE), key.identity, key.secret, create_device=True
        )
        registry.add_anchor(anchor)
    issued = factory.issue_device(X509_DEVICE)
    trust = trust_server(factory.certificate, HOST)
    certified = ClientCertificate(issued.chain, issued.key, trust)
    return settings, ((key, _temperature), (certified, _valve))


def _temperature() -> Measurement:
    return "temperature", f"{random.uniform(19, 23):.1f}".encode(), TEXT


def _valve() -> Measurement:
    state = {"open": random.random() < 0.5, "bar": round(random.uniform(1.8, 2.4), 2)}
    return "state", json.dumps(state).encode(), JSON


async def _send(
    console: Console, address: Address, credential: Credential, measure: Callable[[], Measurement]
) -> None:
    """One device's life: it moves on after its first message, as one behind a NAT does."""
    async with Device(address.host, address.port, credential) as device:
        for number in itertools.count(1):
            path, payload, content_format = measure()
            response = await device.request(Code.POST, path, payload, content_format=content_format)
            if response.code != Code.CHANGED:
                raise Failed(f"a device of the demo was answered {response}")
            if number == 1:
                await device.move()
                _show_move(console, device)
            await asyncio.sleep(INTERVAL)


@asynccontextmanager
async def _subscribed(broker: BrokerUrl, topic_filter: str) -> AsyncIterator[aiomqtt.Client]:
    version = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client(broker.host, broker.port, protocol=version) as client:
        await client.subscribe(topic_filter, qos=1)
        yield client


async def _print(
    client: aiomqtt.Client, console: Console, count: int | None, enough: Callable[[], None]
) -> int:
    """Print what arrives; returns how much it was, when `count` is reached or when cancelled."""
    arrived = 0
    try:
        async for message in client.messages:
            arrived += 1
            _show(console, message)
            if arrived == count:
                enough()
                break
    except asyncio.CancelledError:
        pass  # the usual end without a count; there is nothing to close here
    return arrived


def _show_way(console: Console, address: Address, broker: BrokerUrl) -> None:
    way = Text("  devices ")
    way.append(f"-> coaps://{address} ", "cyan")
    way.append("gateway ").append(f"-> {broker} ", "cyan").append("broker\n")
    console.print(way)


def _show_move(console: Console, device: Device) -> None:
    host, port = device.address or (HOST, 0)
    line = f"  a device goes on from {host}:{port}, known by its Connection ID: no new handshake\n"
    console.print(Text(line, "green"))


def _show(console: Console, message: aiomqtt.Message) -> None:
    """One publication: topic and payload, then its properties."""
    payload = message.payload.decode(errors="replace")
    topic = _printable(str(message.topic))
    console.print(Text.assemble((topic, "cyan"), "  ", (_printable(payload), "bold")))
    content_type = getattr(message.properties, "ContentType", None)
    properties = [("Content Type", content_type)] if content_type else []
    properties += getattr(message.properties, "UserProperty", [])
    for name, value in properties:
        console.print(Text(f"    {_printable(name):<13} {_printable(value)}", "dim"))
    console.print()


def _printable(text: str) -> str:
    """Anybody on this machine may publish on the demo's broker: no terminal takes orders here."""
    return text if text.isprintable() else repr(text)


def _explain(error: BaseException) -> BaseException:
    """Of what the tasks failed with, one error that says what happened."""
    match error:
        case BaseExceptionGroup():
            explained = (_explain(each) for each in error.exceptions)
            return next((each for each in explained if isinstance(each, CoapgateError)), error)
        case DeviceError():
            return Failed(f"a device of the demo was not served: {error}")
        case aiomqtt.MqttError():
            return Failed(f"the demo's broker is gone: {error}")
    return error
