"""What the message layer remembers of one peer."""

from __future__ import annotations

from secrets import randbelow
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from coapgate.model import Identity

if TYPE_CHECKING:
    from coapgate.coap.rates import Allowance
    from coapgate.coap.requests import RequestsUnderWay
    from coapgate.coap.transmissions import Transmission
    from coapgate.dtls.paths import UnprovenPath
    from coapgate.uplink import Source


class Association(Protocol):
    """What CoAP needs to know of a DTLS association."""

    @property
    def max_plaintext(self) -> int:
        """Octets of the longest message that fits one datagram."""

    @property
    def unproven(self) -> UnprovenPath | None:
        """The path that it has moved to, until that has proven itself; another for each move."""

    def can_send(self, length: int) -> bool:
        """Whether a message of `length` octets would leave now, as far as its path is proven."""


A = TypeVar("A", bound=Association)


class Endpoint(Generic[A]):
    """One association as CoAP sees it (RFC 7252 section 1.2); mutable, the message layer's own.

    `exchanges`, `source` and `allowance` exist only while the endpoint is active: from a request
    until all that it asked is forgotten. An idle endpoint is this object and nothing else.
    `outgoing` holds our confirmable messages by message ID, `requests` what we asked the device and
    it has not answered; each is None if there is none. `is_awaited` is for others to set: something
    waits for the device to speak.
    """

    __slots__ = (
        "allowance",
        "association",
        "association_id",
        "exchanges",
        "identity",
        "is_awaited",
        "next_message_id",
        "number",
        "outgoing",
        "purge_at",
        "requests",
        "source",
    )

    def __init__(
        self,
        number: int,
        association: A,
        identity: Identity,
        association_id: bytes,
        next_message_id: int,
    ) -> None:
        self.number = number
        self.association = association
        self.identity = identity
        self.association_id = association_id
        self.next_message_id = next_message_id
        self.exchanges: dict[int, bytes] | None = None
        self.source: Source | None = None
        self.allowance: Allowance | None = None
        self.outgoing: dict[int, Transmission[A]] | None = None
        self.purge_at = 0.0
        self.is_awaited = False
        self.requests: RequestsUnderWay[A] | None = None

    def __repr__(self) -> str:
        return (
            f"<Endpoint {self.association_id.hex()} {self.identity.tenant}/{self.identity.device}>"
        )

    def take_message_id(self) -> int:
        """A message ID that none of our messages under way has (RFC 7252 section 4.4).

        They are counted, except on an unproven path: there, whoever answers must have seen it.
        """
        if self.association.unproven is not None:
            message_id = randbelow(1 << 16)
            while self.outgoing is not None and message_id in self.outgoing:
                message_id = randbelow(1 << 16)
            return message_id
        message_id = self.next_message_id
        while self.outgoing is not None and message_id in self.outgoing:
            message_id = message_id + 1 & 0xFFFF
        self.next_message_id = message_id + 1 & 0xFFFF
        return message_id
