"""Whatever bytes arrive, the server neither raises nor grows unless a valid cookie was presented.

A device that knows its key talks to the server over a wire that belongs to the fuzzer: it loses,
repeats, changes and invents datagrams, of the device and of a stranger, lets time pass, and
answers the server's questions late, wrongly or not at all.
`python -m tests.fuzz.fuzz_datagram -max_total_time=60` runs it under atheris.
"""

from __future__ import annotations

from collections import Counter

from coapgate.dtls import messages as m
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.paths import AMPLIFICATION
from coapgate.dtls.presentation import vector
from coapgate.dtls.records import VERSION, ContentType, encode, split
from coapgate.errors import Reason
from coapgate.model import Path
from tests.fuzz.ends import (
    CERTIFICATE,
    CREDENTIALS,
    IDENTITY,
    KEY,
    MAX_ASSOCIATIONS,
    MAX_DATAGRAMS,
    MOVING,
    PATH,
    PSK,
    STRANGER,
    Serving,
    client,
    said,
    seal,
)
from tests.fuzz.script import Script

OTHER_KEY = Candidate(b"y" * 16, None)
MAX_STEPS = 100
MAX_DROP_REASONS = 40
REASONS = (Reason.DISABLED, Reason.UNKNOWN_IDENTITY, Reason.UNAVAILABLE, Reason.UNTRUSTED)
CONTENT_TYPES = (20, 21, 22, 23, 25, 0, 255)
TIMES = (0.0, 0.5, 1.0, 5.0, 9.0, 60.0, 90.0, 300.0, 90000.0)


class Wire:
    """One device, one stranger and the server; `step` does what the script says next."""

    def __init__(self, script: Script) -> None:
        credential = CREDENTIALS[script.octet() % len(CREDENTIALS)]
        choice = script.octet()
        self._script = script
        self._serving = Serving(MAX_DATAGRAMS[choice >> 7])
        self._server = self._serving.server
        self._credential = credential
        self._device = client(credential, choice)
        self._moves = bool(choice & MOVING)
        self._now = 1000.0
        self._questions: list[KeysRequested | KeyProven | ChainProven] = []
        self._seen: list[bytes] = []
        self._sealed: Counter[bytes] = Counter()
        self._may_have_state = False
        self._device.connect(self._now)

    def step(self) -> None:
        steps = (
            self._calm,
            self._change,
            self._invent,
            self._seal,
            self._wait,
            self._answer_somehow,
            self._hello,
            self._lose,
            self._repeat,
            self._invent_record,
            self._invent_message,
            self._speak,
            self._part,
            self._answer_device,
        )
        steps[self._script.octet() % len(steps)]()
        self._check()

    # --- what happens

    def _calm(self) -> None:
        """Everything arrives once, and every question is answered as it should be."""
        while self._device.outgoing:
            self._tell(self._device.outgoing.pop(0))
        while self._questions:
            match self._questions.pop(0):
                case KeysRequested(handshake=number):
                    self._server.offer_keys(number, (KEY,), self._now)
                case question:
                    self._server.accept(question.handshake, IDENTITY, self._now)
            self._collect()
        self._answer_device()

    def _change(self) -> None:
        datagram = self._device.outgoing.pop(0) if self._device.outgoing else b""
        self._tell(self._script.patched(datagram))

    def _invent(self) -> None:
        path = self._path()
        self._tell(self._script.octets(), path)

    def _seal(self) -> None:
        """The device says what no device should."""
        content_type = CONTENT_TYPES[self._script.octet() % len(CONTENT_TYPES)]
        plaintext = self._script.octets()
        record = seal(self._device, content_type, plaintext)
        if record is not None:
            heard = said(content_type, plaintext)
            if heard is not None:
                self._sealed[heard] += 1
            self._tell(record, self._path() if self._moves else PATH)

    def _wait(self) -> None:
        self._now += TIMES[self._script.octet() % len(TIMES)]
        due = self._server.next_timer()
        if due is not None and due <= self._now:
            self._server.handle_timer(self._now)
            due = self._server.next_timer()
            assert due is None or due > self._now
        self._collect()
        self._device.handle_timer(self._now)

    def _answer_somehow(self) -> None:
        if not self._questions:
            return
        question, how = self._questions.pop(0), self._script.octet()
        if how & 4:
            self._questions.append(question)
        reason = REASONS[how & 3]
        match how >> 3 & 3:
            case 0:
                keys = ((), (KEY,), (OTHER_KEY, KEY), (OTHER_KEY,) * 5)[how & 3]
                padding = how >> 5
                self._server.offer_keys(
                    question.handshake, keys, self._now, padding=padding, reason=reason
                )
            case 1:
                self._server.accept(question.handshake, IDENTITY, self._now)
            case 2:
                self._server.refuse(question.handshake, reason, self._now)
        self._collect()

    def _hello(self) -> None:
        """A hello with a valid cookie, and what the script says behind it."""
        start = VERSION + self._script.octets()[:32].ljust(32, b"\0") + b"\0"
        rest = self._script.octets()
        self._server.outgoing.clear()
        self._tell(_hello_record(0, start + b"\0" + rest.ljust(50, b"\0")))
        for datagram in self._seen_answers:
            (record,) = split(datagram)
            (answer,) = m.parse_fragments(record.fragment)
            if answer.type == m.HandshakeType.HELLO_VERIFY_REQUEST:
                cookie = m.parse_hello_verify_request(answer.body)
                self._may_have_state = True
                self._tell(_hello_record(1, start + vector(1, cookie) + rest))

    def _lose(self) -> None:
        how = self._script.octet()
        if how & 1:
            self._device.outgoing.clear()
        if how & 2:
            self._server.outgoing.clear()

    def _repeat(self) -> None:
        index = self._script.octet()
        if self._seen:
            path = self._path()
            self._tell(self._seen[index % len(self._seen)], path)

    def _invent_record(self) -> None:
        path, kind, sequence = self._path(), self._script.octet(), self._script.number()
        content_type = CONTENT_TYPES[kind % len(CONTENT_TYPES)]
        self._tell(encode(content_type, sequence, self._script.octets()), path)

    def _invent_message(self) -> None:
        path, kind, message_seq = self._path(), self._script.octet(), self._script.octet()
        offset, body, behind = self._script.octet(), self._script.octets(), self._script.octet()
        message = m.encode_fragment(kind, offset + len(body) + behind, message_seq, offset, body)
        self._tell(encode(ContentType.HANDSHAKE, 9, message), path)

    def _speak(self) -> None:
        plaintext = self._script.octets()
        if self._device.is_established:
            self._sealed[plaintext] += 1
            self._device.send(plaintext)
        for association in list(self._server.associations):
            self._server.traffic.send(association, plaintext, self._now)

    def _part(self) -> None:
        how = self._script.octet()
        if how & 1:
            self._device.close()
        if how & 2:
            self._device.connect(self._now)
        if how & 4:
            for association in list(self._server.associations):
                self._server.traffic.close(association, "closed")
        if how & 8:
            self._server.is_accepting = not self._server.is_accepting
        self._collect()

    # --- the wire

    def _path(self) -> Path:
        return STRANGER if self._script.octet() & 1 else PATH

    def _tell(self, datagram: bytes, path: Path = PATH) -> None:
        """Hand a datagram to the server, and check what it says to it."""
        before = len(self._server.outgoing)
        self._server.receive_datagram(datagram, path, self._now)
        answers = self._server.outgoing[before:]
        # What has a Connection ID is answered where its newest record came from.
        assert self._moves or all(to == path for _, to in answers)
        if path == STRANGER or not self._may_have_state:
            most = AMPLIFICATION if self._moves else 1
            assert sum(len(answer) for answer, to in answers if to == path) <= most * len(datagram)
        self._seen_answers = [answer for answer, _ in answers]
        if path == PATH:
            self._seen.append(datagram)
        self._collect()

    def _answer_device(self) -> None:
        answers, self._server.outgoing = self._server.outgoing, []
        for datagram, path in answers:
            if path == PATH:
                # From the first answer on the device knows a cookie.
                self._may_have_state = True
                self._device.receive_datagram(datagram, self._now)

    def _collect(self) -> None:
        while self._server.events:
            event = self._server.events.popleft()
            match event:
                case KeyProven(proves=proves):
                    assert self._credential is PSK
                    assert proves is IDENTITY
                case ChainProven(chain=chain):
                    assert self._credential is CERTIFICATE
                    assert chain == CERTIFICATE.chain
            if isinstance(event, KeysRequested | KeyProven | ChainProven):
                self._questions.append(event)
        del self._questions[:-8], self._seen[:-32]

    # --- what must hold

    def _check(self) -> None:
        server = self._server
        assert server.handshake_count <= 1
        assert server.association_count <= (MAX_ASSOCIATIONS if self._moves else 1)
        assert len(server.counters.dropped) <= MAX_DROP_REASONS
        if not self._may_have_state:
            assert server.handshake_count == server.association_count == 0
            assert server.next_timer() is None
            assert not self._questions
        for association, plaintext in self._serving.delivered:
            # What is delivered was sealed by the device, and is delivered once.
            assert association.identity is IDENTITY
            assert self._sealed[plaintext] > 0
            self._sealed[plaintext] -= 1
        self._serving.delivered.clear()


def _hello_record(sequence: int, body: bytes) -> bytes:
    message = m.encode_message(m.HandshakeType.CLIENT_HELLO, sequence, body)
    return encode(ContentType.HANDSHAKE, sequence, message)


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
