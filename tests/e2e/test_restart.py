"""Restarts and crashes of the gateway: devices go on without a handshake (acceptance 16)."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import Client, ClientSettings
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from coapgate.simulated.device import Device
from coapgate.simulated.message import Kind, Message, request_options
from coapgate.simulated.radio import Radio
from tests.bus import Bus, listening
from tests.conftest import StartMosquitto
from tests.gateway_fixtures import Install
from tests.gateways import GatewayProcess, Installation, running_process
from tests.peers import Mosquitto
from tests.programs import started
from tests.rawpeer import RawPeer
from tests.waiting import DEADLINE, until

FLEET = {("psk", True): 200, ("psk", False): 125, ("x509", True): 100, ("x509", False): 75}
"""How many devices there are of each kind: method, and whether it offers a Connection ID."""
CONNECTING = 25
"""Handshakes at once."""
LIMITS = {"device_rate": 1000.0, "device_burst": 1000}
HASTY = Reliability(ack_timeout=0.5, max_retransmit=8)


@dataclass(slots=True)
class Sender:
    """A device that asks one thing after the other, and what was acknowledged."""

    device: Device
    name: str
    has_cid: bool
    acknowledged: list[bytes] = field(default_factory=list)
    is_stopped: bool = False

    async def work(self) -> None:
        number = 0
        while not self.is_stopped:
            number += 1
            payload = f"{self.name}:{number}".encode()
            response = await self.device.request(Code.POST, "n", payload)
            assert response.code == Code.CHANGED
            self.acknowledged.append(payload)


def settings(*, has_cid: bool) -> ClientSettings:
    return ClientSettings(handshake_timeout=60.0, connection_id=b"" if has_cid else None)


async def connect(stack: AsyncExitStack, gateway: GatewayProcess, fleet: list[Sender]) -> None:
    """Do all handshakes, a few at a time."""
    turn = asyncio.Semaphore(CONNECTING)

    async def enter(device: Device) -> None:
        async with turn:
            await stack.enter_async_context(device)

    async with asyncio.TaskGroup() as tasks:
        for sender in fleet:
            tasks.create_task(enter(sender.device))


def make_fleet(installation: Installation, address: tuple[str, int]) -> list[Sender]:
    fleet = []
    for (method, has_cid), count in FLEET.items():
        for number in range(count):
            name = f"{method}-{'cid' if has_cid else 'old'}-{number}"
            credential = installation.credential(method, name)
            device = Device(
                *address, credential, settings=settings(has_cid=has_cid), reliability=HASTY
            )
            fleet.append(Sender(device, name, has_cid))
    return fleet


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every datagram that devices send."""
    recorded: list[bytes] = []
    send = Radio.send

    def record(self: Radio, datagrams: list[bytes]) -> None:
        recorded.extend(datagrams)
        send(self, datagrams)

    monkeypatch.setattr(Radio, "send", record)
    return recorded


def completed(metrics: dict[str, float]) -> float:
    return sum(
        value
        for name, value in metrics.items()
        if name.startswith("coapgate_handshakes_completed_total")
    )


async def test_500_devices_go_on_after_kill_9_without_a_handshake_and_nothing_is_taken_twice(
    install: Install, mosquitto: StartMosquitto, sent: list[bytes]
) -> None:
    # Who hears 500 devices in the same process that they are in reads slowly.
    broker = mosquitto("max_queued_messages 0")
    installation = install(
        broker.url, limits=LIMITS, dtls={"handshakes_per_address": 1024, "bind": "127.0.0.1:0"}
    )
    root = f"{installation.root}/{DEFAULT_TENANT}"
    async with listening(broker.host, broker.port, root) as bus, AsyncExitStack() as devices:
        async with running_process(installation) as gateway:
            fleet = make_fleet(installation, gateway.address)
            await connect(devices, gateway, fleet)
            assert completed(await gateway.metrics()) == len(fleet)

            working = [asyncio.create_task(sender.work()) for sender in fleet]
            await until(lambda: all(len(s.acknowledged) >= 2 for s in fleet), "all have sent two")
            gateway.program.kill()
            await gateway.program.end()

        before = [len(sender.acknowledged) for sender in fleet]
        recorded = tuple(sent)
        for sender in fleet[::2]:
            if sender.has_cid:
                await sender.device.move()
        async with running_process(installation, gateway.address) as again:
            await until(
                lambda: all(
                    len(s.acknowledged) >= n + 2 for s, n in zip(fleet, before, strict=True)
                ),
                "all have sent two more",
            )
            for sender in fleet:
                sender.is_stopped = True
            await asyncio.gather(*working)

            metrics = await again.metrics()
            assert completed(metrics) == 0
            assert {sender.device.handshakes for sender in fleet} == {1}
            assert metrics["coapgate_associations_recovered_total"] == len(fleet)
            acknowledged = {payload for sender in fleet for payload in sender.acknowledged}
            await until(
                lambda: acknowledged <= {p.payload for p in bus.published},
                "all of it is on the bus",
            )
            await nothing_is_accepted_again(again, recorded, bus)
            # What was published twice says so: a crash came between PUBACK and answer.
            ids = defaultdict(set)
            for publication in bus.published:
                ids[publication.payload].add(publication["message-id"])
            assert {len(each) for each in ids.values()} == {1}


async def nothing_is_accepted_again(
    gateway: GatewayProcess, recorded: tuple[bytes, ...], bus: Bus
) -> None:
    """Replay datagrams from before the crash from an address of their own."""
    before, published = await gateway.metrics(), len(bus.published)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as third:
        third.setblocking(False)
        third.connect(gateway.address)
        for number, datagram in enumerate(recorded):
            await loop.sock_sendall(third, datagram)
            if number % 50 == 0:
                await gateway.metrics()  # it has had the time to read them

    received = "coapgate_datagrams_received_total"
    async with asyncio.timeout(DEADLINE):
        while (after := await gateway.metrics())[received] < before[received] + len(recorded):
            pass
    for name in (
        "coapgate_uplinks_published_total",
        "coapgate_address_moves_total",
        "coapgate_associations",
    ):
        assert after[name] == before[name], name
    replayed = "coapgate_datagrams_dropped_total,replayed"
    assert after[replayed] - before[replayed] >= FLEET["psk", True] + FLEET["x509", True]
    assert len(bus.published) == published


# --- one device


def post(message_id: int) -> Message:
    return Message(Kind.CON, Code.POST, message_id, b"tk", request_options((b"a",)), b"x")


async def stop(gateway: GatewayProcess, how: str) -> None:
    """End a gateway by `SIGTERM` or `SIGKILL`."""
    if how == "SIGTERM":
        gateway.program.terminate()
    else:
        gateway.program.kill()
    await gateway.program.end()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_a_device_goes_on_from_another_address_after_a_restart(
    install: Install, method: str, how: str
) -> None:
    installation = install()
    credential = installation.credential(method, "sensor-1")
    async with (
        running_process(installation) as gateway,
        Device(*gateway.address, credential) as device,
    ):
        assert (await device.request(Code.POST, "a", b"1")).code == Code.CHANGED
        device.sleep()
        await stop(gateway, how)
        async with running_process(installation, gateway.address) as again:
            await device.resume()
            assert (await device.request(Code.POST, "a", b"2")).code == Code.CHANGED
            metrics = await again.metrics()

    assert device.handshakes == 1
    assert completed(metrics) == 0
    assert metrics["coapgate_associations_recovered_total"] == 1
    assert metrics["coapgate_address_moves_total"] == 1


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_a_repetition_after_a_restart_gets_the_same_answer_and_is_not_published_again(
    install: Install, broker: Mosquitto, how: str
) -> None:
    installation = install()
    key = installation.add_psk("sensor-1")
    root = f"{installation.root}/{DEFAULT_TENANT}"
    async with listening(broker.host, broker.port, root) as bus:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            async with running_process(installation) as gateway:
                sock.connect(gateway.address)
                peer = RawPeer(sock, Client(key, ClientSettings(connection_id=b"")))
                await peer.connect()
                peer.send(post(7))
                answer = await peer.receive()
                await stop(gateway, how)
            async with running_process(installation, gateway.address) as again:
                peer.send(post(7))
                assert await peer.receive() == answer
                peer.send(post(8))
                await peer.receive()
                metrics = await again.metrics()

        assert answer == Message(Kind.ACK, Code.CHANGED, 7, b"tk")
        assert metrics["coapgate_duplicates_total"] == 1
        assert metrics["coapgate_uplinks_published_total"] == 1
        ids = [(await bus.next())["message-id"], (await bus.next())["message-id"]]
        assert [each.split("-")[1] for each in ids] == ["0007", "0008"]
        assert len({each.split("-")[0] for each in ids}) == 1


async def test_a_device_that_was_disabled_meanwhile_does_not_go_on(install: Install) -> None:
    installation = install()
    key = installation.add_psk("sensor-1")
    async with (
        running_process(installation) as gateway,
        Device(*gateway.address, key) as device,
    ):
        await device.request(Code.POST, "a", b"1")
        await stop(gateway, "SIGTERM")
        installation.registry.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=False)
        async with running_process(installation, gateway.address) as again:
            metrics = await again.metrics()

    assert metrics["coapgate_associations"] == 0
    assert metrics["coapgate_associations_closed_total,refused"] == 1


async def test_without_a_store_everybody_is_told_that_the_gateway_leaves(install: Install) -> None:
    installation = install(dtls={"association_store": ""})
    key = installation.add_psk("sensor-1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        async with running_process(installation) as gateway:
            sock.connect(gateway.address)
            peer = RawPeer(sock, Client(key))
            await peer.connect()
            assert (await gateway.metrics())["coapgate_associations_unstored"] == 1
            await stop(gateway, "SIGTERM")
            await peer.closed()


async def test_two_gateways_never_share_a_store(install: Install) -> None:
    installation = install()
    command = ("-m", "coapgate", "run", "--config", str(installation.config_file))
    async with running_process(installation), started(sys.executable, *command) as second:
        assert await second.end() == 1

    assert b"is used by another gateway" in second.output
    assert b"hint: " in second.output
