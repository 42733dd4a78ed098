"""What established associations receive and send: records of epoch 1, opened and sealed.

Moves to another path, the store that outlives the process and the end of associations are here;
`server` decides whose a record is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from coapgate.dtls import messages as m
from coapgate.dtls.association import Association
from coapgate.dtls.associations import Associations
from coapgate.dtls.counters import Counters, Drop
from coapgate.dtls.events import AssociationClosed, Event
from coapgate.dtls.paths import AMPLIFICATION, ECHO_LENGTH, UnprovenPath
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import MAX_SEQUENCE, ContentType
from coapgate.dtls.store import LEASE, AssociationStore, Established, Recovered
from coapgate.dtls.suites import SUITES
from coapgate.dtls.warmth import Warmth
from coapgate.errors import Alert, ForgedRecord, MalformedMessage
from coapgate.model import Path

_EPOCH_1 = 1 << 48
_WARNING, _FATAL = 1, 2
_APPLICATION = int(ContentType.APPLICATION_DATA)  # a member of an enum costs a look-up each time


class Traffic:
    """All established associations of one worker.

    `deliver(association, plaintext, now)` is called for each record of application data; datagrams
    to send go to `outgoing`, ends of associations to `events`. At most `max_associations`; one that
    was not heard for `idle_timeout` seconds ends. What `store` holds outlives this process.
    """

    def __init__(
        self,
        deliver: Callable[[Association, bytes, float], None],
        outgoing: list[tuple[bytes, Path]],
        events: deque[Event],
        counters: Counters,
        random: Callable[[int], bytes],
        store: AssociationStore | None,
        *,
        max_associations: int,
        idle_timeout: float,
    ) -> None:
        self.associations = Associations()
        self.outgoing = outgoing
        self.events = events
        self.counters = counters
        self._deliver = deliver
        self._random = random
        self._store = store
        self._max_associations = max_associations
        self._idle_timeout = idle_timeout
        self._warmth = Warmth()

    # --- beginning

    def open(self, association: Association, now: float) -> None:
        """Take in a new association, before anything is sent under its keys."""
        replaced = self.associations.by_path.get(association.path)
        if replaced is not None:
            self._remove(replaced, "replaced")
        self._make_room()
        self._keep(association)
        self.associations.add(association)
        self.associations.keep_final_flight(association, now)

    def _make_room(self) -> None:
        while len(self.associations) >= self._max_associations:
            longest_idle = self.associations.longest_idle
            assert longest_idle is not None
            self.close(longest_idle, "evicted")

    def _keep(self, association: Association) -> None:
        """Put a new association into the store, before anything is sent under its keys."""
        if self._store is not None:
            protection = association.protection
            established = Established(
                association.id,
                association.identity,
                protection.suite.code,
                protection.key_block,
                protection.received_cid,
                protection.sent_cid,
                association.max_plaintext,
            )
            newest = association.window.newest
            association.slot = self._store.add(established, association.path, newest)

    # --- receiving

    def receive(self, association: Association, record: bytes, path: Path, now: float) -> None:
        """Take a record of epoch 1, which has the form that the association has."""
        opened = self._open(association, record, path, now)
        if opened is None:
            return
        content_type, plaintext = opened
        if content_type == _APPLICATION:
            if association.final_flight is not None:
                # The client speaks under the new keys: it has our Finished.
                self.associations.drop_final_flight(association)
            self._deliver(association, plaintext, now)
        elif content_type == ContentType.HANDSHAKE:
            self._receive_handshake(association, plaintext, now)
        elif content_type == ContentType.ALERT:
            self._receive_alert(association, plaintext)
        else:
            self.counters.dropped[Drop.UNEXPECTED_RECORD] += 1

    def _open(
        self, association: Association, record: bytes, path: Path, now: float
    ) -> tuple[int, bytes] | None:
        """Content type and plaintext of a record of epoch 1, None if it is replayed or forged.

        Its number is in the store before anything is done with what it says.
        """
        # Epoch and sequence number are read as one: any other epoch is outside the range.
        sequence = int.from_bytes(record[3:11], "big") - _EPOCH_1
        window = association.window
        if not 0 <= sequence < _EPOCH_1:
            self.counters.dropped[Drop.WRONG_EPOCH] += 1
            return None
        if not window.is_fresh(sequence):
            self.counters.dropped[Drop.REPLAYED] += 1
            return None
        protection = association.protection
        if protection.opener is None:
            self._warmth.warm_up(association, now)
        has_cid = protection.received_cid
        try:
            opened = (
                protection.open_cid(record) if has_cid else (record[0], protection.open(record))
            )
        except ForgedRecord:
            self.counters.dropped[Drop.FORGED] += 1
            return None
        if sequence > window.newest:
            if association.slot >= 0:
                assert self._store is not None
                self._store.seen(association.slot, sequence)
            if has_cid and association.path != path:
                self._move(association, path, len(record))
            elif association.unproven is not None:
                association.unproven.credit += AMPLIFICATION * len(record)
        window.mark(sequence)
        self.associations.touch(association, now)
        self.counters.records_opened += 1
        return opened

    def _move(self, association: Association, path: Path, received: int) -> None:
        """Follow the newest record of a peer to where it came from (RFC 9146 section 6)."""
        self.counters.address_moves += 1
        association.path = path
        association.unproven = UnprovenPath(received, self._random(ECHO_LENGTH))
        if association.slot >= 0:
            assert self._store is not None
            self._store.move(association.slot, path, is_proven=False)

    def prove_path(self, association: Association) -> None:
        """The peer answered what was sent to its present path only: it is there."""
        if association.unproven is not None:
            association.unproven = None
            if association.slot >= 0:
                assert self._store is not None
                self._store.move(association.slot, association.path, is_proven=True)

    def _receive_alert(self, association: Association, plaintext: bytes) -> None:
        if plaintext[1:2] == bytes((Alert.CLOSE_NOTIFY,)):
            self.close(association, "peer")
        elif plaintext[:1] == bytes((_FATAL,)):
            self._remove(association, "peer")

    def _receive_handshake(self, association: Association, plaintext: bytes, now: float) -> None:
        """A repeated Finished wants ours again; a hello would be a renegotiation."""
        try:
            first, *_ = m.parse_fragments(plaintext) or (None,)
        except MalformedMessage:
            first = None
        if first is None:
            self.counters.dropped[Drop.MALFORMED] += 1
        elif first.type == m.HandshakeType.FINISHED:
            flight = association.final_flight
            if flight is not None and flight.repeats.allow(now):
                change = flight.encode_change()
                self._send_sealed(association, ContentType.HANDSHAKE, flight.message, change)
        elif first.type == m.HandshakeType.CLIENT_HELLO and not association.no_renegotiation_sent:
            association.no_renegotiation_sent = True
            self._send_alert(association, _WARNING, Alert.NO_RENEGOTIATION)

    # --- sending

    def send(self, association: Association, plaintext: bytes, now: float) -> None:
        """Send application data; dropped if the association is closed, it is too long, or its path
        has yet to prove itself."""
        if not association.is_open:
            return
        if len(plaintext) > association.max_plaintext:
            self.counters.dropped[Drop.TOO_LONG] += 1
            return
        if association.protection.opener is None:
            self._warmth.warm_up(association, now)
        self._send_sealed(association, _APPLICATION, plaintext)

    def _send_alert(self, association: Association, level: int, alert: Alert) -> None:
        self._send_sealed(association, ContentType.ALERT, bytes((level, alert)))

    def _send_sealed(
        self, association: Association, content_type: int, plaintext: bytes, before: bytes = b""
    ) -> None:
        """Queue one record of epoch 1, behind `before` in its datagram."""
        unproven = association.unproven
        if unproven is not None:
            if not association.can_send(len(before) + len(plaintext)):
                self.counters.dropped[Drop.UNPROVEN_PATH] += 1
                return
            unproven.credit -= len(before) + len(plaintext) + association.protection.overhead
        sequence = association.sequence
        if not sequence % LEASE and association.slot >= 0:
            assert self._store is not None
            self._store.lease(association.slot, sequence)
        self.outgoing.append((before + association.seal(content_type, plaintext), association.path))
        if sequence + 1 >= MAX_SEQUENCE:
            # The last number is for close_notify: none is ever used twice under one key.
            self.close(association, "exhausted")

    # --- the end of associations

    def close(
        self, association: Association, cause: str, alert: Alert = Alert.CLOSE_NOTIFY
    ) -> None:
        """Say goodbye and forget; `alert` is fatal unless it is close_notify."""
        if association.is_open:
            level = _WARNING if alert is Alert.CLOSE_NOTIFY else _FATAL
            # Closed before its last number is used: that must not close it a second time.
            association.is_open = False
            self._send_alert(association, level, alert)
            self._remove(association, cause)

    def _remove(self, association: Association, cause: str) -> None:
        association.is_open = False
        association.protection.cool()
        self.associations.remove(association)
        if association.slot >= 0:
            assert self._store is not None
            self._store.remove(association.slot)
            association.slot = -1
        self.events.append(AssociationClosed(association, cause))

    # --- what outlives the process

    def begin(self, wall: float) -> None:
        """A tick begins: what happens in it happens at `wall` (Unix seconds)."""
        if self._store is not None:
            self._store.begin(wall)

    def remember_answer(
        self, association: Association, message_id: int, octets: bytes, left: float
    ) -> None:
        """Keep the answer to a request, so that its repetition gets the same after a restart, for
        `left` seconds more."""
        if association.slot >= 0:
            assert self._store is not None
            self._store.answered(association.slot, message_id, octets, left)

    def recover(self, recovered: Recovered, idle: float, now: float) -> Association | None:
        """Take up an association of an earlier process, not heard of for `idle` seconds.

        Tell those idle longest first. None if somebody else has its path or Connection ID, its
        suite is no longer ours, or its send numbers are exhausted: it is forgotten then.
        """
        established = recovered.established
        suite = SUITES.get(established.suite)
        if (
            suite is None
            or recovered.sequence >= MAX_SEQUENCE
            or established.received_cid in self.associations.by_cid
        ):
            return None
        protection = Protection(
            suite,
            established.key_block,
            is_client=False,
            received_cid=established.received_cid,
            sent_cid=established.sent_cid,
        )
        association = Association(
            established.id,
            established.identity,
            recovered.path,
            protection,
            established.max_plaintext,
            now - idle,
        )
        if not established.received_cid and recovered.path in self.associations.by_path:
            return None
        # What was not the newest may have been seen or not: all of it counts as seen.
        association.window.restore(recovered.newest)
        association.sequence = recovered.sequence
        association.slot = recovered.slot
        if not recovered.is_proven:
            association.unproven = UnprovenPath(0, self._random(ECHO_LENGTH))
        self._make_room()
        self.associations.add(association)
        return association

    # --- time

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do, None if never."""
        due = [self._warmth.due_at, self.associations.final_flights_due_at]
        if (longest_idle := self.associations.longest_idle) is not None:
            due.append(longest_idle.last_seen_at + self._idle_timeout)
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Close what was idle for too long, drop what is no longer needed."""
        self._warmth.cool_down(now)
        self.associations.forget_final_flights(now)
        while (longest_idle := self.associations.longest_idle) is not None:
            if now < longest_idle.last_seen_at + self._idle_timeout:
                break
            self.close(longest_idle, "idle")
