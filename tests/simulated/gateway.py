"""A gateway of a few lines, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.association import Association
from coapgate.dtls.client import PskKey
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.negotiation import ServerCertificate
from coapgate.dtls.server import Server, ServerSettings
from coapgate.dtls.signatures import PublicKey
from coapgate.errors import Reason
from coapgate.model import Code, DeviceId, Identity, Method, Tenant
from coapgate.pki.factory import IssuedCertificate
from coapgate.simulated.message import Kind, Message

KEY = PskKey(b"sensor-1", b"sixteen octets!!")
SENSOR_1 = Identity(Tenant("default"), DeviceId("sensor-1"), Method.PSK, "psk-1")
QUICK = Reliability(ack_timeout=0.05, ack_random_factor=1.0, max_retransmit=4)

Answer = Callable[[Message], list[Message]]


def changed(request: Message) -> list[Message]:
    return [Message(Kind.ACK, Code.CHANGED, request.message_id, request.token)]


def _read_key(certificate: bytes) -> PublicKey:
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


class FakeGateway(asyncio.DatagramProtocol):
    """Lets KEY in, or refuses it for `reason`; answers what `answer` says.

    It loses the first `lost` datagrams.
    """

    def __init__(
        self,
        answer: Answer = changed,
        *,
        reason: Reason | None = None,
        lost: int = 0,
        certificate: IssuedCertificate | None = None,
    ) -> None:
        settings = HandshakeSettings()
        if certificate is not None:
            assert isinstance(certificate.key, ec.EllipticCurvePrivateKey)
            settings = HandshakeSettings(
                ServerCertificate(certificate.chain, certificate.key), _read_key
            )
        self.server = Server(ServerSettings(settings), self._deliver)
        self.requests: list[Message] = []
        self.replies: list[Message] = []
        """What the devices sent of ACK and RST."""
        self.sources: set[Any] = set()
        self._answer = answer
        self._reason = reason
        self._lost = lost
        self._changed = asyncio.Event()
        self.transport: asyncio.DatagramTransport

    @property
    def port(self) -> int:
        port: int = self.transport.get_extra_info("sockname")[1]
        return port

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until datagrams have brought about a condition."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def datagram_received(self, datagram: bytes, address: Any) -> None:
        self.sources.add(address)
        if self._lost:
            self._lost -= 1
            return
        now = asyncio.get_running_loop().time()
        self.server.receive_datagram(datagram, (0, address), now)
        while self.server.events:
            match self.server.events.popleft():
                case KeysRequested(handshake):
                    self.server.offer_keys(handshake, (Candidate(KEY.secret, None),), now)
                case (KeyProven() | ChainProven()) as proven:
                    if self._reason is not None:
                        self.server.refuse(proven.handshake, self._reason, now)
                    else:
                        self.server.accept(proven.handshake, SENSOR_1, now)
        self.flush()
        self._changed.set()

    def tell(self, message: Message) -> None:
        """Send something to the only device."""
        (association,) = self.server.associations
        now = asyncio.get_running_loop().time()
        self.server.traffic.send(association, message.encode(), now)
        self.flush()

    def flush(self) -> None:
        for datagram, (_, address) in self.server.outgoing:
            self.transport.sendto(datagram, address)
        self.server.outgoing.clear()

    def _deliver(self, association: Association, plaintext: bytes, now: float) -> None:
        message = Message.parse(plaintext)
        if message.kind in (Kind.CON, Kind.NON):
            self.requests.append(message)
            for answer in self._answer(message):
                self.server.traffic.send(association, answer.encode(), now)
        else:
            self.replies.append(message)


@asynccontextmanager
async def serving(gateway: FakeGateway) -> AsyncIterator[FakeGateway]:
    loop = asyncio.get_running_loop()
    local = ("127.0.0.1", 0)
    gateway.transport, _ = await loop.create_datagram_endpoint(lambda: gateway, local)
    try:
        yield gateway
    finally:
        gateway.transport.close()
