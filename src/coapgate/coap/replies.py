"""What devices answer to messages of ours: RFC 7252 sections 4.2 and 5.3.2."""

from __future__ import annotations

from typing import Generic

from coapgate.coap.counts import Counts
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.header import ACK, CON, HEADER, MAX_TOKEN_LENGTH, RST, TOKEN_LENGTH
from coapgate.coap.observe import Observations
from coapgate.coap.proofs import PathProofs
from coapgate.coap.requests import DeviceRequests
from coapgate.coap.responses import Responses
from coapgate.coap.transmissions import Transmissions
from coapgate.model import Code


class Replies(Generic[A]):
    """Finds what an ACK, a RST or a response is about, and tells whoever waits for it.

    What names no message of ours is counted, and proves nothing.
    """

    def __init__(
        self,
        transmissions: Transmissions[A],
        proofs: PathProofs[A],
        responses: Responses[A],
        observations: Observations[A],
        requests: DeviceRequests[A],
        counts: Counts,
    ) -> None:
        self._transmissions = transmissions
        self._proofs = proofs
        self._responses = responses
        self._observations = observations
        self._requests = requests
        self._counts = counts

    def take(
        self,
        endpoint: Endpoint[A],
        octets: bytes,
        kind: int,
        code: int,
        message_id: int,
        now: float,
    ) -> None:
        """Take an ACK or a RST, with a response in it perhaps."""
        if code == Code.EMPTY and len(octets) == HEADER.size and not octets[0] & TOKEN_LENGTH:
            self._take_empty(endpoint, kind, message_id, now)
        elif kind == RST or not self.take_response(endpoint, octets, kind, code, message_id, now):
            self._miss(endpoint)

    def _take_empty(self, endpoint: Endpoint[A], kind: int, message_id: int, now: float) -> None:
        """An ACK or RST: of a response, a notification, a request or a ping of ours."""
        transmission = self._transmissions.take(endpoint, message_id)
        if transmission is None:
            if kind != RST or not self._observations.reset(endpoint, message_id, now):
                self._miss(endpoint)
            return
        self._proofs.answered(endpoint.association, transmission, kind)
        owner = transmission.owner
        if owner is None:
            if kind == RST and transmission.exchange is not None:
                self._counts.resets += 1
            self._responses.finish_separate(endpoint, transmission)
        elif kind == RST:
            owner.reset(now)
        else:
            owner.acknowledged(now)

    def take_response(
        self,
        endpoint: Endpoint[A],
        octets: bytes,
        kind: int,
        code: int,
        message_id: int,
        now: float,
    ) -> bool:
        """A response to a request of ours; False: there is no such request."""
        length = octets[0] & TOKEN_LENGTH
        start = HEADER.size + length
        if endpoint.requests is None or length > MAX_TOKEN_LENGTH or start > len(octets):
            return False
        asked = None
        if kind == ACK:
            asked = self._requests.find(endpoint, message_id)
            if asked is None:
                return False
            self._transmissions.drop(asked)
            self._proofs.answered(endpoint.association, asked, kind)
        return self._requests.take_response(
            endpoint,
            octets,
            start,
            code,
            octets[HEADER.size : start],
            now,
            acknowledged=asked,
            acknowledge=message_id if kind == CON else None,
        )

    def _miss(self, endpoint: Endpoint[A]) -> None:
        self._counts.ignored += 1
        self._proofs.missed(endpoint.association)
