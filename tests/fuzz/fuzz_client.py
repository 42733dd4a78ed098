"""Whatever a server or a stranger sends to a device, our client neither raises nor is deceived.

A real server answers; the wire belongs to the fuzzer. What the client believes was said by the
server was said by it. `python -m tests.fuzz.fuzz_client -max_total_time=60` runs it under atheris.
"""

from __future__ import annotations

from collections import Counter

from coapgate.dtls import messages as m
from coapgate.dtls.client import State
from coapgate.dtls.events import ChainProven, KeyProven, KeysRequested
from coapgate.dtls.records import ContentType, encode
from tests.fuzz.ends import (
    CREDENTIALS,
    IDENTITY,
    KEY,
    MAX_DATAGRAMS,
    PATH,
    Serving,
    client,
    said,
)
from tests.fuzz.script import Script

MAX_STEPS = 100
MAX_OUTGOING = 64
"""Datagrams that one datagram may make the client send: a flight, and again."""
CONTENT_TYPES = (20, 21, 22, 23, 25, 0, 255)
TIMES = (0.0, 0.5, 1.0, 2.0, 60.0, 90.0)


class Wire:
    """One device and its server; `step` does what the script says next."""

    def __init__(self, script: Script) -> None:
        credential = CREDENTIALS[script.octet() % len(CREDENTIALS)]
        choice = script.octet()
        self._script = script
        self._serving = Serving(MAX_DATAGRAMS[choice >> 7])
        self._server = self._serving.server
        self._device = client(credential, choice)
        self._now = 1000.0
        self._seen: list[bytes] = []
        self._sealed: Counter[bytes] = Counter()
        self._accepted = 0
        self._device.connect(self._now)

    def step(self) -> None:
        steps = (
            self._calm,
            self._change,
            self._invent,
            self._seal,
            self._wait,
            self._lose,
            self._repeat,
            self._invent_record,
            self._invent_message,
            self._speak,
            self._part,
        )
        steps[self._script.octet() % len(steps)]()
        self._check()

    # --- what happens

    def _calm(self) -> None:
        """Everything arrives once."""
        self._serve()
        while self._server.outgoing:
            self._tell(self._server.outgoing.pop(0)[0])

    def _change(self) -> None:
        self._serve()
        datagram = self._server.outgoing.pop(0)[0] if self._server.outgoing else b""
        self._tell(self._script.patched(datagram))

    def _invent(self) -> None:
        self._tell(self._script.octets())

    def _seal(self) -> None:
        """The server says what no server should."""
        content_type = CONTENT_TYPES[self._script.octet() % len(CONTENT_TYPES)]
        plaintext = self._script.octets()
        for association in list(self._server.associations):
            heard = said(content_type, plaintext)
            if heard is not None:
                self._sealed[heard] += 1
            self._tell(association.seal(content_type, plaintext))

    def _wait(self) -> None:
        self._now += TIMES[self._script.octet() % len(TIMES)]
        self._device.handle_timer(self._now)
        due = self._device.next_timer()
        assert due is None or due > self._now
        self._server.handle_timer(self._now)

    def _lose(self) -> None:
        how = self._script.octet()
        if how & 1:
            self._device.outgoing.clear()
        if how & 2:
            self._server.outgoing.clear()

    def _repeat(self) -> None:
        index = self._script.octet()
        if self._seen:
            self._tell(self._seen[index % len(self._seen)])

    def _invent_record(self) -> None:
        kind, sequence = self._script.octet(), self._script.number()
        content_type = CONTENT_TYPES[kind % len(CONTENT_TYPES)]
        self._tell(encode(content_type, sequence, self._script.octets()))

    def _invent_message(self) -> None:
        kind, message_seq = self._script.octet(), self._script.octet()
        offset, body, behind = self._script.octet(), self._script.octets(), self._script.octet()
        message = m.encode_fragment(kind, offset + len(body) + behind, message_seq, offset, body)
        self._tell(encode(ContentType.HANDSHAKE, 9, message))

    def _speak(self) -> None:
        if self._device.is_established:
            self._device.send(self._script.octets())

    def _part(self) -> None:
        if self._script.octet() & 1:
            self._device.close()
        else:
            self._device.connect(self._now)

    # --- the wire

    def _serve(self) -> None:
        """The server gets what the device sent, and is answered."""
        while self._device.outgoing:
            self._server.receive_datagram(self._device.outgoing.pop(0), PATH, self._now)
        while self._server.events:
            match self._server.events.popleft():
                case KeysRequested(handshake=number):
                    self._server.offer_keys(number, (KEY,), self._now)
                case KeyProven(handshake=number) | ChainProven(handshake=number):
                    self._accepted += 1
                    self._server.accept(number, IDENTITY, self._now)

    def _tell(self, datagram: bytes) -> None:
        """Hand a datagram to the device: what it takes for the server's must be the server's."""
        before = len(self._device.outgoing)
        for plaintext in self._device.receive_datagram(datagram, self._now):
            assert self._sealed[plaintext] > 0
            self._sealed[plaintext] -= 1
        assert len(self._device.outgoing) <= before + MAX_OUTGOING
        self._seen.append(datagram)
        del self._seen[:-32], self._device.outgoing[:-MAX_OUTGOING]

    def _check(self) -> None:
        """It is never established without the server."""
        assert self._device.handshakes <= self._accepted
        assert isinstance(self._device.state, State)


def test_one_input(data: bytes) -> None:
    """A script."""
    script = Script(data)
    wire = Wire(script)
    for _ in range(MAX_STEPS):
        if script.at_end:
            break
        wire.step()


if __name__ == "__main__":
    from tests.fuzz.running import fuzz

    fuzz(test_one_input, __file__)
