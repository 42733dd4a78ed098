"""How a path that an association has moved to proves that its device is there.

That a record came from somewhere proves little (RFC 9146 section 6): somebody may have sent it on,
or a device may forge its address so that what we answer hits others. Until a path has proven itself
it is sent no more than three times what came from it. It proves itself by the answer to something
that was sent nowhere else, and that cannot be guessed:

    ack, reset   to a confirmable message of ours, by a random message ID
    echo         the value that a 4.01 told the device (RFC 9175 section 2.3)

As few devices know Echo, whatever has to be withheld makes us send a ping too (RFC 7252 section
4.3): every device answers that.

A device that forges its own address could guess: one in 65,536 datagrams names the message ID of a
ping. After a few that do not, only an Echo value proves that path.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Generic

from coapgate.coap.counts import Counts
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.header import HEADER, RST, ping
from coapgate.coap.transmissions import Transmission, Transmissions

MAX_MISSES = 8
"""ACKs and RSTs from an unproven path that name no message of ours, until none proves it."""


class PathProofs(Generic[A]):
    """Recognizes proofs and asks for them; `prove` is called for each association that has one."""

    def __init__(
        self, transmissions: Transmissions[A], counts: Counts, prove: Callable[[A], None]
    ) -> None:
        self._transmissions = transmissions
        self._counts = counts
        self._prove = prove

    def answered(self, association: A, transmission: Transmission[A], kind: int) -> None:
        """An ACK or RST, by `kind`, ended a message of ours."""
        # Made for an earlier path, it may have been read there: only this very one counts.
        path = transmission.proves
        if path is not None and path is association.unproven and path.misses < MAX_MISSES:
            self._count("reset" if kind == RST else "ack")
            self._prove(association)

    def missed(self, association: A) -> None:
        """An ACK or RST named no message of ours: it may have been a guess."""
        if association.unproven is not None:
            association.unproven.misses += 1

    def echoed(self, association: A, value: bytes) -> None:
        """A request has an Echo option."""
        path = association.unproven
        if path is not None and hmac.compare_digest(value, path.echo):
            self._count("echo")
            self._prove(association)

    def ask(self, endpoint: Endpoint[A], now: float) -> None:
        """Ping an unproven path, unless something is under way whose answer would prove it, or
        there is no credit.

        The ping is repeated like any other message of ours. One for an earlier path is dropped.
        """
        association = endpoint.association
        path = association.unproven
        if path is None or (endpoint.exchanges is None and endpoint.outgoing is None):
            return  # proven, or closed by what was just sent
        for transmission in tuple((endpoint.outgoing or {}).values()):
            if transmission.proves is path:
                return
            if transmission.is_ping:
                self._transmissions.take(endpoint, transmission.message_id)
        if association.can_send(HEADER.size):
            self._counts.path_pings += 1
            octets = ping(endpoint.take_message_id())
            self._transmissions.send(endpoint, octets, 0, None, now)

    def _count(self, kind: str) -> None:
        proofs = self._counts.path_proofs
        proofs[kind] = proofs.get(kind, 0) + 1
