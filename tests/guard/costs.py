"""Operations of the whole gateway, and what each of them costs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coapgate.dtls.client import ClientCertificate, ClientSettings, Credential, PskKey
from coapgate.model import DEFAULT_TENANT, DeviceId, DeviceIdSource, Method
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import IssuedCertificate
from tests.dtls.factory import authority, trust
from tests.guard.counting import Calls, Instructions, still
from tests.guard.whole import WALL, Device, Whole, whole
from tests.guard.wire import Peer

DEVICES = 50
WARM_UP = 70
"""Requests of each device before any is counted: more than are remembered of it, and more than it
takes until the interpreter has adapted to what it runs."""
REQUESTS = 1000
HANDSHAKES = 50
MOST = 5
"""Functions that are named."""


@dataclass(frozen=True, slots=True)
class RequestKind:
    """Requests of devices with a Connection ID or without, `batch` of which arrive at once."""

    cid: bool
    batch: int

    def __str__(self) -> str:
        arriving = "alone" if self.batch == 1 else f"among {self.batch}"
        return f"request {arriving}, {_cid(self.cid)}"


@dataclass(frozen=True, slots=True)
class HandshakeKind:
    """Handshakes by one method, that agree on a Connection ID or not."""

    method: Method
    cid: bool

    def __str__(self) -> str:
        return f"{self.method.value} handshake, {_cid(self.cid)}"


Kind = RequestKind | HandshakeKind


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation costs the gateway, on average.

    `python_calls` and `c_calls` are of functions written in Python and in C. `system_calls` are for
    datagrams and the broker. `callbacks`, `timers` and `tasks`, futures among them, are what the
    event loop was asked for. The functions of which there is most are in `where`, by what is
    counted.
    """

    python_calls: float
    c_calls: float
    instructions: float
    datagrams_received: float
    datagrams_sent: float
    system_calls: float
    callbacks: float
    timers: float
    tasks: float
    where: dict[str, dict[str, float]]


def add_devices(
    gateway: Whole, method: Method, count: int, *, cid: bool, first: int = 0
) -> list[Device]:
    """Devices that the registry knows, and that have not said a word yet."""
    settings = ClientSettings(connection_id=b"" if cid else None)
    names = [_name(number) for number in range(first, first + count)]
    return [gateway.add_device(_enroll(gateway, method, name), settings) for name in names]


def _enroll(gateway: Whole, method: Method, name: str) -> Credential:
    registry, device = gateway.registry, DeviceId(name)
    if method is Method.PSK:
        key = PskKey(name.encode(), b"sixteen octets!!")
        registry.add_psk(DEFAULT_TENANT, device, key.identity, key.secret, create_device=True)
        return key
    if not registry.anchors_all():
        registry.add_anchor(
            parse_anchor(
                authority().certificate_pem,
                name="factory",
                tenant=DEFAULT_TENANT,
                device_id_source=DeviceIdSource.CN,
                auto_provision=False,
                wall=WALL,
            )
        )
    registry.trust(DEFAULT_TENANT, device, "factory", name, create_device=True)
    issued = _certificate(name)
    return ClientCertificate(issued.chain, issued.key, trust)


def issue_certificates(count: int) -> None:
    """For the first so many devices: once in a process, since it takes a while."""
    for number in range(count):
        _certificate(_name(number))


def _name(number: int) -> str:
    return f"sensor-{number:06}"


@functools.cache
def _certificate(name: str) -> IssuedCertificate:
    return authority().issue_device(name)


def batches(devices: list[Device], size: int, count: int) -> list[list[tuple[bytes, Peer]]]:
    """So many requests, of one device after the other."""
    numbers = range(0, count, size)
    return [
        [_request(devices[at % len(devices)]) for at in range(first, first + size)]
        for first in numbers
    ]


def _request(device: Device) -> tuple[bytes, Peer]:
    return device.post(), device.peer


def connect_all(gateway: Whole, devices: list[Device]) -> None:
    for device in devices:
        gateway.connect(device)


def warm_up(gateway: Whole, devices: list[Device], requests: int = WARM_UP) -> None:
    """So many requests of each device, and see that it is answered."""
    for batch in batches(devices, DEVICES, requests * len(devices)):
        answers = gateway.serve(batch)
    for device, (answer, peer) in zip(devices, answers[-len(devices) :], strict=True):
        assert peer == device.peer
        assert device.hear(answer, gateway.loop.now), "a request is not answered by 2.04"


def measure(kind: Kind, folder: Path) -> Cost:
    """What one operation costs; `folder` is empty."""
    with whole(folder) as gateway:
        if isinstance(kind, RequestKind):
            return measure_requests(gateway, kind)
        return measure_handshakes(gateway, kind)


def measure_requests(gateway: Whole, kind: RequestKind) -> Cost:
    """Requests of devices that are new to the gateway."""
    first = gateway.pump.server.association_count
    devices = add_devices(gateway, Method.PSK, DEVICES, cid=kind.cid, first=first)
    connect_all(gateway, devices)
    warm_up(gateway, devices)
    assert bool(devices[0].client.sent_cid) == kind.cid

    def run() -> None:
        for batch in batches(devices, kind.batch, REQUESTS):
            answers = gateway.serve(batch)
            assert len(answers) == len(batch)

    return _measured(gateway, run, REQUESTS)


def measure_handshakes(gateway: Whole, kind: HandshakeKind) -> Cost:
    """First handshakes of devices that the registry knows, their log lines included."""
    first = gateway.pump.server.association_count
    devices = add_devices(gateway, kind.method, 3 * HANDSHAKES, cid=kind.cid, first=first)
    waiting = iter(devices)

    def run() -> None:
        for _ in range(HANDSHAKES):
            gateway.connect(next(waiting))

    run()
    assert bool(devices[0].client.sent_cid) == kind.cid
    return _measured(gateway, run, HANDSHAKES)


def _measured(gateway: Whole, run: Callable[[], None], count: int) -> Cost:
    """What `run` costs, which does `count` operations each time it is called."""
    udp = gateway.udp
    before = Counter(
        received=udp.datagrams_received, sent=udp.datagrams_sent, system=gateway.system_calls
    )
    gateway.loop.asked.clear()
    with still(), gateway.counted(Calls()) as calls:
        run()
    asked = gateway.loop.asked.copy()
    received, sent = udp.datagrams_received, udp.datagrams_sent
    after = Counter(received=received, sent=sent, system=gateway.system_calls)
    with still(), gateway.counted(Instructions()) as instructions:
        run()
    done = after - before
    return Cost(
        calls.python.total() / count,
        calls.c.total() / count,
        instructions.by_name.total() / count,
        done["received"] / count,
        done["sent"] / count,
        done["system"] / count,
        asked["callbacks"] / count,
        asked["timers"] / count,
        (asked["tasks"] + asked["futures"]) / count,
        {
            "python_calls": _most(calls.python, count),
            "c_calls": _most(calls.c, count),
            "instructions": _most(instructions.by_name, count),
        },
    )


def _most(counted: Counter[str], count: int) -> dict[str, float]:
    return {name: times / count for name, times in counted.most_common(MOST)}


def _cid(cid: bool) -> str:
    return f"{'with' if cid else 'without'} Connection ID"
