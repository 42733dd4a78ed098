"""The CoAP side of a gateway with everything around it recorded, and the messages of a device."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from aiocoap import Message

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.hotpath import HotPath, Site
from coapgate.coap.messages import MessageLayer, Settings
from coapgate.coap.options import Request, encode_options
from coapgate.coap.rates import DeviceRates
from coapgate.coap.requests import Failure
from coapgate.dtls.paths import AMPLIFICATION, UnprovenPath
from coapgate.errors import RequestRefused
from coapgate.model import Code, Content, DeviceId, Identity, KeptObservation, Method, Tenant
from coapgate.uplink import Source, Uplinks

CON, NON, ACK, RST = range(4)
CONTENT = b"x" * 200
"""More than an unproven path gets for asking."""

URI_PATH, CONTENT_FORMAT, URI_QUERY, ECHO, NO_RESPONSE = 11, 12, 15, 252, 258

OVERHEAD = 38
"""Octets of a record besides its plaintext: AES_128_CCM_8, a Connection ID of 8 octets."""

WALL = 1_700_000_000.25
"""2023-11-14T22:13:20.250Z"""


def message(
    kind: int,
    code: int,
    message_id: int,
    path: str = "",
    *,
    token: bytes = b"\x0a",
    options: tuple[tuple[int, bytes], ...] = (),
    payload: bytes = b"",
) -> bytes:
    """A message of a device; `path` goes before `options`, which are put in order."""
    segments = tuple((URI_PATH, s.encode()) for s in path.split("/") if s)
    ordered = sorted(segments + options, key=lambda option: option[0])
    head = bytes((0x40 | kind << 4 | len(token), code)) + message_id.to_bytes(2, "big")
    return head + token + encode_options(ordered) + (b"\xff" + payload if payload else b"")


def uplink(message_id: int = 1, kind: int = CON) -> bytes:
    return message(kind, Code.POST, message_id, "a", payload=b"21.5")


def get(message_id: int = 1, *options: tuple[int, bytes], kind: int = CON) -> bytes:
    """A request that goes to the Site."""
    return message(kind, Code.GET, message_id, "time", options=options)


def empty(kind: int, message_id: int) -> bytes:
    return message(kind, Code.EMPTY, message_id, token=b"")


def identity(device: str = "sensor-1", tenant: str = "default") -> Identity:
    return Identity(Tenant(tenant), DeviceId(device), Method.PSK, "psk-7")


@dataclass(slots=True)
class FakeAssociation:
    """What the layers below would have."""

    id: bytes
    identity: Identity
    max_plaintext: int = 1024
    unproven: UnprovenPath | None = None

    def can_send(self, length: int) -> bool:
        return self.unproven is None or length + OVERHEAD <= self.unproven.credit

    def move(self, received: int = 1000, echo: bytes = b"\xee" * 8) -> UnprovenPath:
        """A datagram of so many octets came from somewhere else."""
        self.unproven = UnprovenPath(received, echo)
        return self.unproven


@dataclass(frozen=True, slots=True)
class Publication:
    topic: str
    payload: bytes
    qos: int
    content_type: str | None
    user_properties: list[tuple[str, str]]
    ticket: int | None

    @property
    def ticket_number(self) -> int:
        assert self.ticket is not None
        return self.ticket


class RecordingPublisher:
    """A broker that keeps everything and answers nothing, unless somebody listens."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.on_publish: Callable[[Publication], None] = self.published.append

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
    ) -> None:
        self.on_publish(Publication(topic, payload, qos, content_type, user_properties, ticket))


class SilentSite:
    """A Site that never answers."""

    paths = frozenset({(b".well-known", b"core"), (b"time",), (b"hello",)})

    def __init__(self) -> None:
        self.asked: list[tuple[int, Request]] = []

    def request(self, source: Source, ticket: int, request: Request) -> None:
        self.asked.append((ticket, request))


class Contents:
    """States of paths; `is_slow`: whoever tests answers what was `asked`."""

    def __init__(self) -> None:
        self.states: dict[str, Content] = {}
        self.is_slow = False
        self.asked: list[tuple[int, str]] = []
        self.observed_paths: list[str] = []
        self.refusal: RequestRefused | None = None
        self.observe_refusal: RequestRefused | None = None
        self.subscribe_refusal: RequestRefused | None = None

    def connect(self, layer: MessageLayer[FakeAssociation]) -> None:
        self._layer = layer

    def find(self, identity: Identity, path: str, ticket: int, now: float) -> None:
        self.asked.append((ticket, path))
        if self.refusal is not None:
            raise self.refusal
        if not self.is_slow:
            self._layer.respond_content(ticket, self.states.get(path), now)

    def check_observable(self, identity: Identity, path: str) -> None:
        if self.observe_refusal is not None:
            raise self.observe_refusal

    def observed(self, identity: Identity, path: str) -> None:
        self.observed_paths.append(path)
        if self.subscribe_refusal is not None:
            raise self.subscribe_refusal

    def unobserved(self, identity: Identity, path: str) -> None:
        self.observed_paths.remove(path)


class RecordingDownlinks:
    """Everything that is said of requests to devices."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, int, int | None, bytes]] = []
        self.failures: list[tuple[int, Failure]] = []
        self.speakers: list[tuple[str, float]] = []
        self.on_spoke: Callable[[], None] = lambda: None
        self.on_answer: Callable[[], None] = lambda: None

    def answered(
        self, ticket: int, code: int, content_format: int | None, payload: bytes, now: float
    ) -> None:
        self.answers.append((ticket, code, content_format, payload))
        self.on_answer()

    def failed(self, ticket: int, failure: Failure, now: float) -> None:
        self.failures.append((ticket, failure))

    def spoke(self, identity: Identity, association_id: bytes, now: float) -> None:
        self.speakers.append((identity.device, now))
        self.on_spoke()


class MemoryJournal:
    """What outlives the process."""

    def __init__(self) -> None:
        self.kept: dict[tuple[bytes, bytes], KeptObservation] = {}

    def added(self, association_id: bytes, kept: KeptObservation) -> None:
        self.kept.pop((association_id, kept.token), None)
        self.kept[association_id, kept.token] = kept

    def removed(self, association_id: bytes, token: bytes) -> None:
        self.kept.pop((association_id, token), None)


class Gate:
    """Message layer, hot path and uplinks between fakes.

    `sent` is what went to devices, `withheld` what an unproven path had too little credit for,
    `answers` what was to be remembered beyond a restart: message ID and octets; `proven` the paths
    that have proven themselves.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        rate: float = 1000.0,
        burst: int = 1000,
        max_absent: int = 4096,
        site: Site | None = None,
        max_packet_size: int | None = None,
        block_rate: float = 1000.0,
        block_burst: int = 10_000,
    ) -> None:
        self.publisher = RecordingPublisher()
        self.silent_site = SilentSite()
        self.contents = Contents()
        self.downlinks = RecordingDownlinks()
        self.journal = MemoryJournal()
        self.uplinks = Uplinks(
            self.publisher, "coapgate", lambda: max_packet_size, jitter=lambda low, high: low
        )
        self.uplinks.begin(WALL)
        self.rates = DeviceRates(
            rate, burst, max_absent, block_rate=block_rate, block_burst=block_burst
        )
        self.sent: list[tuple[FakeAssociation, bytes]] = []
        self.withheld: list[bytes] = []
        self.answers: list[tuple[int, bytes]] = []
        self.answer_lasts = 0.0
        """For how many seconds the last of them."""
        self.proven: list[UnprovenPath] = []
        self.on_transmit: Callable[[FakeAssociation, bytes], None] = self._keep
        self.layer: MessageLayer[FakeAssociation] = MessageLayer(
            self._transmit,
            HotPath(self.uplinks, site or self.silent_site),
            self.rates,
            settings,
            random.Random(7),
            prove_path=self._prove_path,
            answered=self._answered,
            contents=self.contents,
            downlinks=self.downlinks,
            journal=self.journal,
        )
        self.contents.connect(self.layer)

    def _prove_path(self, association: FakeAssociation) -> None:
        assert association.unproven is not None
        self.proven.append(association.unproven)
        association.unproven = None

    def _answered(
        self, association: FakeAssociation, message_id: int, octets: bytes, left: float
    ) -> None:
        self.answers.append((message_id, octets))
        self.answer_lasts = left

    def _transmit(self, association: FakeAssociation, octets: bytes, now: float) -> None:
        assert len(octets) <= association.max_plaintext
        if not association.can_send(len(octets)):
            self.withheld.append(octets)
            return
        if association.unproven is not None:
            association.unproven.credit -= len(octets) + OVERHEAD
        self.on_transmit(association, octets)

    def _keep(self, association: FakeAssociation, octets: bytes) -> None:
        self.sent.append((association, octets))

    def open(
        self, device: str = "sensor-1", association_id: bytes = b"\1\2\3\4\5\6\7\x08"
    ) -> Endpoint[FakeAssociation]:
        association = FakeAssociation(association_id, identity(device))
        return self.layer.open(association, association.identity, association_id)

    def conclude(self, now: float, outcome: int = 0) -> None:
        """The broker has decided on the last publication."""
        self.layer.acknowledged(self.publisher.published[-1].ticket_number, outcome, now)

    def answer_content(self, now: float) -> None:
        """The Site answers the last request."""
        ticket, _ = self.silent_site.asked[-1]
        self.layer.respond(ticket, Code.CONTENT, b"\xc0", CONTENT, now)

    def receive(self, endpoint: Endpoint[FakeAssociation], octets: bytes, now: float) -> None:
        """A record arrives from where the association is, and gives that path credit."""
        if endpoint.association.unproven is not None:
            endpoint.association.unproven.credit += AMPLIFICATION * (len(octets) + OVERHEAD)
        self.layer.receive(endpoint, octets, now)

    def take(self) -> list[bytes]:
        """What was sent since the last time."""
        octets = [octets for _, octets in self.sent]
        self.sent.clear()
        return octets

    def take_one(self) -> Message:
        """The one message that was sent since the last time, read by aiocoap."""
        (octets,) = self.take()
        return Message.decode(octets)

    def run_timers(self, until: float) -> None:
        """Let time pass, timer by timer."""
        while (due := self.layer.next_timer()) is not None and due <= until:
            self.layer.handle_timer(due)
