"""From a datagram to whom it is for: association, pending handshake, or a cookie.

Tell it datagrams (`receive_datagram`), the time (`handle_timer` at `next_timer`) and answers to
its events. After each call send what is in `outgoing`, and act on what is in `events`; plaintext
of application data goes straight to `deliver`, with nothing allocated on its way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

from coapgate.dtls import messages as m
from coapgate.dtls import records
from coapgate.dtls.admission import EcdheBudget, PendingHandshakes
from coapgate.dtls.association import Association
from coapgate.dtls.cookies import Cookies, hello_verify_request
from coapgate.dtls.counters import Counters, Drop
from coapgate.dtls.events import Candidate, Event, HandshakeFailed
from coapgate.dtls.handshake import (
    AcceptedHello,
    HandshakeSettings,
    ProvenEvent,
    ServerHandshake,
    State,
)
from coapgate.dtls.negotiation import ServerCertificate
from coapgate.dtls.records import CID_LENGTH, ContentType, Record
from coapgate.dtls.store import AssociationStore
from coapgate.dtls.traffic import Traffic
from coapgate.errors import MalformedMessage, MalformedRecord, Reason, Refused
from coapgate.model import Identity, Path

ASSOCIATION_ID_LENGTH = 8
MAX_HELLO_SEQ = 15
MAX_HELLO_RECORD_SEQUENCE = 1 << 47
HANDSHAKE_WALK_INTERVAL = 0.1
"""Seconds at least between two walks over all pending handshakes for the sake of their timers."""

_CLIENT_HELLO = int(m.HandshakeType.CLIENT_HELLO)
_APPLICATION_DATA = bytes((ContentType.APPLICATION_DATA,))
_TLS12_CID = bytes((ContentType.TLS12_CID,))
# Where a tls12_cid record has its Connection ID, and where its body begins (RFC 9146 section 4).
_CID_AT = 11
_CID_END = _CID_AT + CID_LENGTH
_CID_BODY = _CID_END + 2


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Every bound of the server; times in seconds."""

    handshake: HandshakeSettings = field(default_factory=HandshakeSettings)
    idle_timeout: float = 86400.0
    max_handshakes: int = 1024
    handshakes_per_address: int = 64
    ecdhe_rate: float = 200.0
    ecdhe_burst: int = 400
    max_associations: int = 200_000
    worker: int = 0
    node: int = 0
    """Our own numbers, 0 to 255 each: the first two octets of every Connection ID of ours."""


class Server:
    """All associations and handshakes of one worker.

    `deliver(association, plaintext, now)` is called for each record of application data. `random`
    makes octets nobody can guess. What `store` holds outlives this process. What can be done with
    an association is done by its `traffic`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        deliver: Callable[[Association, bytes, float], None],
        random: Callable[[int], bytes] = os.urandom,
        store: AssociationStore | None = None,
    ) -> None:
        self.settings = settings
        self.outgoing: list[tuple[bytes, Path]] = []
        self.events: deque[Event] = deque()
        self.counters = Counters()
        self.is_accepting = True
        """False: no new handshakes; those pending and the associations go on."""
        self._random = random
        self._cookies = Cookies(random)
        # One datagram is answered by one cookie: each has IP and UDP headers of its own, and
        # together they would be more than the question.
        self._may_ask = True
        self._pending = PendingHandshakes(settings.max_handshakes, settings.handshakes_per_address)
        self._ecdhe = EcdheBudget(settings.ecdhe_rate, settings.ecdhe_burst)
        self._handshake_number = 0
        self._handshakes_due = inf
        self._next_walk_at = 0.0
        self._padding = 1
        self.traffic = Traffic(
            deliver,
            self.outgoing,
            self.events,
            self.counters,
            random,
            store,
            max_associations=settings.max_associations,
            idle_timeout=settings.idle_timeout,
        )
        self._associations = self.traffic.associations
        self._receive_sealed = self.traffic.receive
        self._by_path = self._associations.by_path
        self._by_cid = self._associations.by_cid

    # --- what there is

    @property
    def associations(self) -> Iterator[Association]:
        """Longest idle first."""
        return iter(self._associations)

    @property
    def association_count(self) -> int:
        return len(self._associations)

    @property
    def handshake_count(self) -> int:
        return len(self._pending)

    def find(self, association_id: bytes) -> Association | None:
        return self._associations.find(association_id)

    @property
    def certificate_chain(self) -> tuple[bytes, ...]:
        """The certificates (DER) that new handshakes show; empty: there are none."""
        certificate = self.settings.handshake.certificate
        return () if certificate is None else certificate.chain

    def exchange_certificate(self, certificate: ServerCertificate | None) -> None:
        """Show another certificate, or none, in handshakes from now on; those under way go on."""
        handshake = replace(self.settings.handshake, certificate=certificate)
        self.settings = replace(self.settings, handshake=handshake)

    # --- datagrams

    def receive_datagram(self, datagram: bytes, path: Path, now: float) -> None:
        """Take one datagram from `path`; whatever its octets are, nothing is raised.

        State grows only for a hello with a valid cookie.
        """
        # The usual case: one record, of an association, and nothing else.
        first = datagram[:1]
        if first == _TLS12_CID:
            association = self._by_cid.get(datagram[_CID_AT:_CID_END])
            if (
                association is not None
                and int.from_bytes(datagram[_CID_END:_CID_BODY], "big") == len(datagram) - _CID_BODY
            ):
                self._receive_sealed(association, datagram, path, now)
                return
        elif first == _APPLICATION_DATA:
            association = self._by_path.get(path)
            if (
                association is not None
                and int.from_bytes(datagram[11:13], "big") == len(datagram) - records.HEADER_LENGTH
            ):
                self._receive_sealed(association, datagram, path, now)
                return
        self._may_ask = True
        try:
            for record in records.split(datagram, CID_LENGTH):
                receive = _RECEIVERS.get((record.epoch, record.content_type), Server._drop)
                receive(self, record, path, now)
        except MalformedRecord:
            self.counters.dropped[Drop.MALFORMED] += 1

    def _drop(self, record: Record, path: Path, now: float) -> None:
        self.counters.dropped[Drop.UNEXPECTED_RECORD] += 1

    # --- epoch 0

    def _receive_clear_alert(self, record: Record, path: Path, now: float) -> None:
        handshake = self._pending.at(path)
        if handshake is not None:
            handshake.receive_alert(record.fragment)

    def _pass_over(self, record: Record, path: Path, now: float) -> None:
        """ChangeCipherSpec says nothing that the epoch of Finished does not."""

    def _receive_clear_handshake(self, record: Record, path: Path, now: float) -> None:
        handshake = self._pending.at(path)
        start = None
        try:
            fragments = m.parse_fragments(record.octets, record.start)
            if not fragments:
                raise MalformedMessage("handshake record without a message")
            first = fragments[0]
            if first.type == _CLIENT_HELLO and first.offset == 0:
                start = m.parse_hello_start(first.body)
        except MalformedMessage as error:
            self.counters.dropped[Drop.MALFORMED] += 1
            if handshake is not None:
                handshake.remember(str(error))
            return
        if start is not None:
            self._receive_hello(record, fragments, start, handshake, path, now)
        elif handshake is not None:
            self._advance(handshake, fragments, now)
        else:
            self.counters.dropped[Drop.NO_HANDSHAKE] += 1

    def _receive_hello(
        self,
        record: Record,
        fragments: list[m.Fragment],
        start: m.HelloStart,
        pending: ServerHandshake | None,
        path: Path,
        now: float,
    ) -> None:
        """Answer a hello without a valid cookie by a cookie, one with it by a handshake."""
        message_seq = fragments[0].message_seq
        if message_seq > MAX_HELLO_SEQ or record.sequence > MAX_HELLO_RECORD_SEQUENCE:
            self.counters.dropped[Drop.HELLO_NUMBER] += 1
            return
        bound = (path, start.version, start.random, start.session_id, now)
        if self._cookies.verify(start.cookie, *bound):
            if pending is not None and pending.hello.random == start.random:
                self._advance(pending, fragments, now)
            elif not self.is_accepting:
                self.counters.dropped[Drop.NOT_ACCEPTING] += 1
            elif self._make_room(pending, path):
                hello = AcceptedHello(start.random, message_seq, record.sequence)
                self._begin(hello, fragments, path, now)
        elif not self.is_accepting:
            self.counters.dropped[Drop.NOT_ACCEPTING] += 1
        elif not self._may_ask:
            self.counters.dropped[Drop.MANY_HELLOS] += 1
        else:
            self._may_ask = False
            cookie = self._cookies.make(*bound)
            answer = hello_verify_request(record.sequence, message_seq, cookie)
            # What holds a whole HelloStart has 61 octets, the answer 60: we amplify nothing.
            assert len(answer) <= len(record.octets)
            self.counters.cookies_sent += 1
            self.outgoing.append((answer, path))

    def _make_room(self, replaced: ServerHandshake | None, path: Path) -> bool:
        """Let others yield to a hello with a valid cookie; False if none of them may."""
        if replaced is not None:
            self._end(replaced, Reason.TIMEOUT)
        victim, admitted = self._pending.must_yield(path)
        if victim is not None:
            self._end(victim, Reason.LIMIT)
        elif not admitted:
            self.counters.dropped[Drop.HANDSHAKE_LIMIT] += 1
        return admitted

    def _begin(
        self, hello: AcceptedHello, fragments: list[m.Fragment], path: Path, now: float
    ) -> None:
        self._handshake_number += 1
        handshake = ServerHandshake(
            self._handshake_number,
            path,
            self.settings.handshake,
            self._random,
            lambda at: self._ecdhe.take(path, at),
            self._draw_connection_id,
            hello,
            now,
        )
        self._pending.add(handshake)
        self.counters.handshakes_started += 1
        self._advance(handshake, fragments, now)

    def _draw_connection_id(self) -> bytes:
        """Worker, node, and random octets: one that no association and no handshake has."""
        settings = self.settings
        while True:
            drawn = bytes((settings.worker, settings.node)) + self._random(CID_LENGTH - 2)
            if drawn not in self._by_cid and self._pending.named(drawn) is None:
                return drawn

    def _advance(self, handshake: ServerHandshake, fragments: list[m.Fragment], now: float) -> None:
        try:
            event = handshake.receive_fragments(fragments, now)
        except Refused as refusal:
            self._flush(handshake)
            self._pending.remove(handshake)
            self.events.append(HandshakeFailed(handshake.path, refusal.reason, refusal.detail))
            return
        if handshake.is_dropped:
            self.counters.dropped[Drop.ECDHE_RATE] += 1
            self._pending.remove(handshake)
            return
        if handshake.connection_id:
            self._pending.name(handshake)
        self._report(handshake, event, now)

    def _report(self, handshake: ServerHandshake, event: ProvenEvent | None, now: float) -> None:
        fact = handshake.fact
        if fact is not None:
            handshake.refuse(fact.reason, now)
            self._fail(handshake, fact.reason, fact.detail)
        elif event is not None:
            self.events.append(event)
        self._flush(handshake)

    def _flush(self, handshake: ServerHandshake) -> None:
        """Send what a handshake has to send, and remember when it wants to be called."""
        if handshake.outgoing:
            self._send(handshake)
        due = handshake.due_at
        if due < self._handshakes_due:
            self._handshakes_due = max(due, self._next_walk_at)

    def _send(self, handshake: ServerHandshake) -> None:
        path = handshake.path
        for datagram in handshake.outgoing:
            self.outgoing.append((datagram, path))
        handshake.outgoing.clear()

    def _end(self, handshake: ServerHandshake, otherwise: Reason) -> None:
        """Forget a handshake that did not get to a decision, and say why."""
        self._pending.remove(handshake)
        if handshake.state is not State.REFUSED:
            self._fail(handshake, *handshake.failure(otherwise))

    def _fail(self, handshake: ServerHandshake, reason: Reason, detail: str) -> None:
        self.events.append(HandshakeFailed(handshake.path, reason, detail, handshake.identity))

    # --- answers to events

    def offer_keys(
        self,
        handshake: int,
        candidates: tuple[Candidate, ...],
        now: float,
        *,
        padding: int | None = None,
        reason: Reason = Reason.UNKNOWN_IDENTITY,
    ) -> None:
        """Answer KeysRequested: the keys of the identity, none if it is unknown (`reason`).

        Padded with random ones to `padding`, the highest number of keys any identity has; as the
        last time if that cannot be told now.
        """
        if padding is not None:
            self._padding = padding
        pending = self._pending.numbered(handshake)
        if pending is not None:
            event = pending.offer_keys(candidates, now, padding=self._padding, reason=reason)
            self._report(pending, event, now)

    def accept(self, handshake: int, identity: Identity, now: float) -> Association | None:
        """Answer KeyProven or ChainProven: let the peer in; None if it is gone by now."""
        pending = self._pending.numbered(handshake)
        if pending is None or pending.state is not State.AWAIT_DECISION:
            return None
        association = pending.accept(self._random(ASSOCIATION_ID_LENGTH), identity, now)
        self.traffic.open(association, now)
        self._send(pending)
        self._pending.remove(pending)
        self.counters.handshakes_completed += 1
        return association

    def refuse(self, handshake: int, reason: Reason, now: float) -> bool:
        """Answer KeyProven or ChainProven: turn the peer away with the alert of `reason`.

        No HandshakeFailed follows: whoever refuses knows. False if it is gone by now, or refused
        because the decision took too long; that was reported.
        """
        pending = self._pending.numbered(handshake)
        if pending is None or pending.state is not State.AWAIT_DECISION:
            return False
        pending.refuse(reason, now)
        self._flush(pending)
        return True

    # --- epoch 1

    def _receive_protected(self, record: Record, path: Path, now: float) -> None:
        """Take a record of the old format.

        Handshake records are for the pending handshake first, the others never are.
        """
        handshake = self._pending.at(path)
        if (
            handshake is not None
            and not handshake.connection_id
            and record.content_type == ContentType.HANDSHAKE
            and self._try(handshake, record, now)
        ):
            return
        association = self._by_path.get(path)
        if association is not None:
            self._receive_sealed(association, record.octets, path, now)
        elif handshake is None:
            self.counters.dropped[Drop.NO_ASSOCIATION] += 1
        elif handshake.connection_id:
            self.counters.dropped[Drop.WITHOUT_CID] += 1

    def _receive_with_cid(self, record: Record, path: Path, now: float) -> None:
        """Take a tls12_cid record: its Connection ID says whose it is, wherever it came from."""
        connection_id = record.connection_id
        association = self._by_cid.get(connection_id)
        if association is not None:
            self._receive_sealed(association, record.octets, path, now)
            return
        handshake = self._pending.named(connection_id)
        if handshake is not None:
            self._try(handshake, record, now)
        else:
            self.counters.dropped[Drop.UNKNOWN_CID] += 1

    def _try(self, handshake: ServerHandshake, record: Record, now: float) -> bool:
        """Let a pending handshake have what may be its Finished; whether it was."""
        event = handshake.receive_protected(record, now)
        is_finished = event is not None or handshake.fact is not None
        self._report(handshake, event, now)
        return is_finished

    # --- time

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, None if never."""
        due = self._handshakes_due
        if (at := self.traffic.next_timer()) is not None and at < due:
            due = at
        return None if due == inf else due

    def handle_timer(self, now: float) -> None:
        """Repeat flights, end what took too long, close what was idle for too long."""
        if now >= self._handshakes_due:
            self._handle_handshakes(now)
        self.traffic.handle_timer(now)

    def _handle_handshakes(self, now: float) -> None:
        for handshake in tuple(self._pending):
            waited = handshake.state is State.AWAIT_DECISION
            if now >= handshake.due_at:
                handshake.handle_timer(now, padding=self._padding)
            if waited and handshake.state is State.REFUSED:
                self._fail(handshake, Reason.UNAVAILABLE, "no decision in time")
            elif now >= handshake.deadline:
                self._end(handshake, Reason.TIMEOUT)
        self._handshakes_due = inf
        self._next_walk_at = now + HANDSHAKE_WALK_INTERVAL
        for handshake in self._pending:
            self._flush(handshake)


_RECEIVERS: dict[tuple[int, int], Callable[[Server, Record, Path, float], None]] = {
    (0, ContentType.HANDSHAKE): Server._receive_clear_handshake,
    (0, ContentType.ALERT): Server._receive_clear_alert,
    (0, ContentType.CHANGE_CIPHER_SPEC): Server._pass_over,
    (1, ContentType.HANDSHAKE): Server._receive_protected,
    (1, ContentType.ALERT): Server._receive_protected,
    (1, ContentType.APPLICATION_DATA): Server._receive_protected,
    (1, ContentType.TLS12_CID): Server._receive_with_cid,
}
"""By epoch and content type; any other record is dropped."""
