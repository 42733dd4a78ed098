"""The gateway's beginning and end: what it needs, what it says, whom it tells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.authentication import BUILT_AT
from coapgate.dtls.client import Credential
from coapgate.errors import (
    Alert,
    CertificateError,
    CoapgateError,
    DeviceRefused,
    KeyFileError,
    StartError,
)
from coapgate.gateway import open_gateway, reasons_not_to_serve
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from coapgate.revocation_lists import RevocationLists
from coapgate.simulated.device import Device
from coapgate.simulated.message import Kind, Message
from tests import gateway_fixtures
from tests.conftest import StartMosquitto
from tests.fakes.broker import FakeBroker
from tests.gateway_fixtures import Install, StartGateway
from tests.gateways import Installation, Running, running, running_process
from tests.peers import Mosquitto, free_tcp_port, free_udp_port
from tests.programs import Program, started
from tests.pumped import changed, post
from tests.rawpeer import connected
from tests.waiting import until

install = gateway_fixtures.install
start_gateway = gateway_fixtures.start_gateway

STOP_TIME = 5.0
"""Seconds in which a gateway that is told to stop has to end."""
NOBODY_LISTENS = "nothing listens where the broker should be"


NOTHING_OUTLIVES_IT: dict[str, dict[str, object]] = {"dtls": {"association_store": ""}}
"""Devices are told that such a gateway leaves."""


async def not_ready(gateway: Running) -> list[str]:
    """What /readyz gives as reasons."""
    answer = await gateway.get("/readyz")
    reasons: list[str] = answer.json()["reasons"]
    assert answer.status_code == (503 if reasons else 200)
    return reasons


@asynccontextmanager
async def starting(installation: Installation) -> AsyncIterator[Running]:
    """Serve, whether there is a broker or not."""
    async with open_gateway(installation.settings) as gateway:
        yield Running(installation, gateway)


# --- ready or not


async def test_a_gateway_is_ready_when_the_broker_has_taken_it(
    start_gateway: StartGateway,
) -> None:
    assert await not_ready(await start_gateway()) == []


@pytest.mark.expects_warnings(NOBODY_LISTENS)
async def test_without_a_broker_it_serves_says_so_once_and_is_ready_later(
    install: Install, mosquitto: StartMosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_tcp_port()
    installation = install(f"mqtt://127.0.0.1:{port}")
    key = installation.add_psk("sensor-1")
    async with starting(installation) as gateway, gateway.device(key) as device:
        connection = gateway.gateway.connection
        await until(lambda: connection.failures >= 3, "it tries again")
        assert await not_ready(gateway) == [f"the broker is not connected: {NOBODY_LISTENS}"]
        (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert vars(line)["hint"] == "is it running? check mqtt.url"

        asking = asyncio.create_task(device.request(Code.POST, "a", b"held"))
        await until(lambda: connection.publications.held == 1, "the message is held")
        mosquitto(port=port)

        assert str(await asking) == "2.04"
        assert await not_ready(gateway) == []


@pytest.mark.expects_warnings("broker does not authorize us")
async def test_a_broker_that_refuses_is_a_reason(install: Install) -> None:
    async with (
        FakeBroker(connack=0x87) as broker,
        starting(install(broker.url)) as gateway,
    ):
        await gateway.gateway.connection.wait_attempted()

        reasons = await not_ready(gateway)

    assert reasons == ["the broker is not connected: broker does not authorize us"]


def test_a_clock_that_cannot_be_right_is_a_reason() -> None:
    def reasons(wall: float) -> list[str]:
        return reasons_not_to_serve(wall, is_accepting=True, is_connected=True, failure=None)

    assert reasons(BUILT_AT) == []
    assert reasons(BUILT_AT - 1) == [
        "the clock is before the day this was built: no certificate can be judged"
    ]


def test_every_reason_is_given() -> None:
    assert reasons_not_to_serve(0.0, is_accepting=False, is_connected=False, failure=None) == [
        "the gateway is stopping",
        "the broker is not connected",
        "the clock is before the day this was built: no certificate can be judged",
    ]


# --- who comes while it starts


@asynccontextmanager
async def slow_start(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, coming: Credential
) -> AsyncIterator[tuple[Running, asyncio.Task[Device]]]:
    """A gateway in whose start a device comes, while revocation lists are read; its handshake."""
    bind = installation.settings.dtls.bind[0]
    look = RevocationLists.look
    trying: list[asyncio.Task[Device]] = []
    device = Device(bind.host, bind.port, coming)

    async def slow(lists: RevocationLists, *, again: bool = False) -> None:
        if not trying:
            trying.append(asyncio.create_task(device.__aenter__()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):  # a handshake takes some milliseconds
                    await asyncio.shield(asyncio.wait(trying))
        await look(lists, again=again)

    monkeypatch.setattr(RevocationLists, "look", slow)
    async with starting(installation) as gateway:
        await asyncio.wait(trying)
        yield gateway, trying[0]
        if trying[0].exception() is None:
            await device.__aexit__(None, None, None)


@pytest.mark.expects_warnings(NOBODY_LISTENS)
async def test_nobody_is_let_in_before_what_is_revoked_is_known(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = {"dtls": {"bind": f"127.0.0.1:{free_udp_port()}"}}
    installation = install(f"mqtt://127.0.0.1:{free_tcp_port()}", **bind)
    stolen = installation.ca.issue_device("stolen-1")
    serial = x509.load_der_x509_certificate(stolen.chain[0]).serial_number
    file = installation.folder / "ca.crl"
    file.write_bytes(installation.ca.sign_list({serial: time.time()}).public_bytes(Encoding.PEM))
    installation.add_anchor(crl_files=(str(file),))
    credential = installation.certificate(stolen)
    async with slow_start(installation, monkeypatch, credential) as (_, handshake):
        with pytest.raises(DeviceRefused) as refused:
            await handshake
    assert refused.value.alert is Alert.CERTIFICATE_REVOKED
    assert list(installation.registry.devices()) == []


@pytest.mark.expects_warnings(NOBODY_LISTENS)
async def test_who_comes_while_it_starts_shares_no_slot_of_the_store_with_anybody(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = {"dtls": {"bind": f"127.0.0.1:{free_udp_port()}"}}
    installation = install(f"mqtt://127.0.0.1:{free_tcp_port()}", **bind)
    keys = [installation.add_psk(f"sensor-{number}") for number in range(3)]
    async with starting(installation) as gateway:
        sleeping = await gateway.device(keys[0]).__aenter__()
        sleeping.sleep()
    async with (
        slow_start(installation, monkeypatch, keys[1]) as (gateway, handshake),
        gateway.device(keys[2]),
    ):
        await handshake
        pump = gateway.gateway.pump
        slots = [each.slot for each in pump.server.traffic.associations.snapshot()]
        assert pump.stored == len(set(slots)) == len(slots) == 3
        await sleeping.resume()
        await sleeping.__aexit__(None, None, None)


# --- what cannot start


Options = dict[str, dict[str, Any]]


def taken_port(kind: socket.SocketKind, stack: contextlib.ExitStack) -> str:
    sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
    sock.bind(("127.0.0.1", 0))
    if kind is socket.SOCK_STREAM:
        sock.listen()
    return f"127.0.0.1:{sock.getsockname()[1]}"


def port_in_use(stack: contextlib.ExitStack) -> Options:
    return {"dtls": {"bind": taken_port(socket.SOCK_DGRAM, stack)}}


def http_port_in_use(stack: contextlib.ExitStack) -> Options:
    return {"http": {"bind": taken_port(socket.SOCK_STREAM, stack)}}


def no_password(stack: contextlib.ExitStack) -> Options:
    return {"mqtt": {"username": "gateway", "password_file": "none"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (port_in_use, "cannot bind 127.0.0.1:"),
        (http_port_in_use, "cannot listen on 127.0.0.1:"),
        (no_password, "mqtt.password_file cannot be read"),
    ],
)
async def test_what_keeps_it_from_starting_is_one_error_with_a_hint(
    install: Install, options: Callable[[contextlib.ExitStack], Options], message: str
) -> None:
    with contextlib.ExitStack() as stack:
        installation = install("mqtt://127.0.0.1:1", **options(stack))
        tasks = asyncio.all_tasks()

        with pytest.raises(StartError, match=message) as refused:
            await open_gateway(installation.settings).__aenter__()

    assert refused.value.hint
    assert asyncio.all_tasks() == tasks


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def open_to_others(folder: Path) -> None:
    (folder / "registry.key").chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (without("gateway.pem"), CertificateError),
        (without("gateway.key"), CertificateError),
        (without("registry.key"), KeyFileError),
        (open_to_others, KeyFileError),
    ],
)
async def test_a_file_that_cannot_be_used_is_one_error_with_a_hint(
    install: Install, spoil: Callable[[Path], None], error: type[CoapgateError]
) -> None:
    installation = install("mqtt://127.0.0.1:1")
    installation.add_psk("sensor-1")
    spoil(installation.folder)

    with pytest.raises(error) as refused:
        await open_gateway(installation.settings).__aenter__()

    assert refused.value.hint


@pytest.mark.expects_warnings("secret is readable by everybody", NOBODY_LISTENS)
async def test_a_secret_that_everybody_may_read_is_pointed_out(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    installation = install("mqtt://127.0.0.1:1")
    (installation.folder / "gateway.key").chmod(0o644)

    async with starting(installation):
        pass

    (warning,) = (each for each in caplog.records if each.message.startswith("secret is"))
    assert vars(warning)["option"] == "dtls.private_key"
    assert "chmod" in vars(warning)["hint"]


async def test_a_second_gateway_on_the_same_port_does_not_disturb_the_first(
    install: Install, start_gateway: StartGateway
) -> None:
    first = await start_gateway()
    second = install(dtls={"bind": first.address}, mqtt={"client_id": first.installation.root})

    with pytest.raises(StartError, match="address already in use"):
        await open_gateway(second.settings).__aenter__()

    # Whatever the broker had been told, it would have said before this answer.
    async with first.device(first.installation.add_psk("sensor-1")) as device:
        assert str(await device.request(Code.POST, "a", b"")) == "2.04"
    assert first.gateway.connection.connects == 1


async def test_what_goes_wrong_later_is_no_error_of_the_start(install: Install) -> None:
    async def crash() -> None:
        async with FakeBroker() as broker, starting(install(broker.url)):
            raise StartError("a mistake in a task")

    with pytest.raises(ExceptionGroup) as raised:
        await crash()

    assert raised.group_contains(StartError)


# --- where it serves


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_one_bind_serves_ipv6_and_ipv4(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls={"bind": "[::]:0"})
    key = gateway.installation.add_psk("sensor-1")

    for host in ("::1", "127.0.0.1"):
        gateway.host = host
        async with gateway.device(key) as device:
            assert str(await device.request(Code.POST, "a", b"")) == "2.04"


async def test_several_binds_are_all_served(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls={"bind": ["127.0.0.1:0", "127.0.0.2:0"]})
    key = gateway.installation.add_psk("sensor-1")
    assert [address.host for address in gateway.gateway.addresses] == ["127.0.0.1", "127.0.0.2"]

    for address in gateway.gateway.addresses:
        gateway.host, gateway.port = address.host, address.port
        async with gateway.device(key) as device:
            assert str(await device.request(Code.POST, "a", b"")) == "2.04"


async def test_a_refusal_after_proof_is_published(install: Install) -> None:
    async with FakeBroker() as broker, starting(install(broker.url)) as gateway:
        installation = gateway.installation
        key = installation.add_psk("sensor-1")
        installation.registry.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=False)

        with pytest.raises(DeviceRefused):
            await gateway.device(key).__aenter__()

        await broker.published_at_least(2)  # the gateway's own status is one
        assert broker.published[-1].topic == f"{installation.root}/default/sensor-1/event/refused"


# --- the end


async def test_a_stop_lets_what_is_under_way_end_and_takes_nothing_new(install: Install) -> None:
    async with FakeBroker(hold_pubacks=True) as broker:
        installation = install(broker.url, **NOTHING_OUTLIVES_IT)
        key, late_key = (installation.add_psk(name) for name in ("sensor-1", "sensor-2"))
        stop = asyncio.Event()
        serving: asyncio.Future[Running] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with running(installation) as gateway:
                serving.set_result(gateway)
                await stop.wait()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve())
            gateway = await serving
            address = (gateway.host, gateway.port)
            async with connected(address, key) as peer:
                peer.send(post(1))
                await broker.published_at_least(2)  # the gateway's own status is one

                stop.set()
                server = gateway.gateway.pump.server
                await until(lambda: not server.is_accepting, "it stops")
                assert await not_ready(gateway) == ["the gateway is stopping"]
                late = gateway.device(late_key)
                connecting = asyncio.create_task(late.__aenter__())
                await until(
                    lambda: server.counters.dropped["not_accepting"] > 0, "it is not let in"
                )
                peer.send(post(2))
                answer = await peer.receive()
                assert (answer.code, answer.message_id) == (Code.SERVICE_UNAVAILABLE, 2)
                broker.release_pubacks()

                assert await peer.receive() == Message.parse(changed(1))
                await peer.closed()
                assert peer.client.alert is Alert.CLOSE_NOTIFY
                connecting.cancel()


async def exit_status(program: Program, *, interrupt: bool = False) -> int:
    """Tell it to stop; fails if that takes longer than it may."""
    loop = asyncio.get_running_loop()
    told_at = loop.time()
    if interrupt:
        program.interrupt()
    else:
        program.terminate()
    status = await program.end()
    assert loop.time() - told_at < STOP_TIME
    return status


@pytest.mark.parametrize("interrupt", [False, True], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_ends_it_and_devices_are_told(
    install: Install, broker: Mosquitto, *, interrupt: bool
) -> None:
    installation = install(**NOTHING_OUTLIVES_IT)
    keys = [installation.add_psk(name) for name in ("sensor-1", "sensor-2")]
    async with running_process(installation) as gateway, contextlib.AsyncExitStack() as stack:
        await gateway.program.until(b"broker connected")
        peers = [await stack.enter_async_context(connected(gateway.address, key)) for key in keys]

        assert await exit_status(gateway.program, interrupt=interrupt) == 0

        for peer in peers:
            await peer.closed()
            assert peer.client.alert is Alert.CLOSE_NOTIFY
    shown = [line.split(" ", 1)[1] for line in gateway.program.output.decode().splitlines()[1:]]
    assert [line.partition(" tenant")[0].partition(" broker=")[0] for line in shown] == [
        "info broker connected",
        "info session opened",
        "info session opened",
        "info stopping",
        "info left the broker",
        "info sessions closed count=2 untold=0 kept=0 cause=shutdown",
        "info stopped",
    ]


async def test_a_broker_that_hangs_does_not_hold_up_the_end(install: Install) -> None:
    async with FakeBroker(hold_pubacks=True) as broker:
        installation = install(broker.url, **NOTHING_OUTLIVES_IT)
        key = installation.add_psk("sensor-1")
        async with (
            running_process(installation) as gateway,
            connected(gateway.address, key) as peer,
        ):
            peer.send(post(1))
            await broker.published_at_least(2)
            broker.silent = True

            assert await exit_status(gateway.program) == 0

            empty = Message(Kind.ACK, Code.EMPTY, 1)
            assert await peer.receive() == empty
            assert (await peer.receive()).code == Code.SERVICE_UNAVAILABLE
            await peer.closed()


async def test_a_locked_registry_does_not_hold_up_the_end(install: Install) -> None:
    """A device with a certificate waits for being provisioned."""
    installation = install()
    credential = installation.credential("x509", "sensor-7")
    async with running_process(installation) as gateway:
        with contextlib.closing(sqlite3.connect(installation.folder / "registry.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            host, port = gateway.address
            connecting = asyncio.create_task(Device(host, port, credential).__aenter__())

            async def waiting() -> float:
                return (await gateway.metrics())["coapgate_decisions_waiting"]

            while not await waiting():
                pass

            assert await exit_status(gateway.program) == 0
            connecting.cancel()
            other.rollback()
    assert list(installation.registry.devices()) == []


async def test_a_name_server_that_is_silent_does_not_hold_up_the_end(install: Install) -> None:
    installation = install("mqtt://broker.example:1883")
    # The C library's resolver cannot be told from here to wait: this one stands in for it.
    script = (
        "import socket, sys, threading\n"
        "def resolve(host, *arguments, known=socket.getaddrinfo, **options):\n"
        "    if host != 'broker.example':\n"
        "        return known(host, *arguments, **options)\n"
        "    print('asked', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait()\n"
        "socket.getaddrinfo = resolve\n"
        "from coapgate.cli import main\n"
        f"sys.exit(main(['run', '--config', {str(installation.config_file)!r}]))\n"
    )
    async with started(sys.executable, "-c", script) as program:
        await program.until(b"asked")

        assert await exit_status(program) == 0

    assert b"info stopped" in program.output


async def test_a_port_in_use_is_two_lines_and_exit_code_1(install: Install) -> None:
    with contextlib.ExitStack() as stack:
        installation = install("mqtt://127.0.0.1:1", **port_in_use(stack))
        command = ("-m", "coapgate", "run", "--config", str(installation.config_file))
        async with started(sys.executable, *command) as program:
            assert await program.end() == 1

    error, hint = program.output.decode().splitlines()
    assert error.startswith("error: cannot bind 127.0.0.1:")
    assert hint.startswith("hint: another process has this port")
