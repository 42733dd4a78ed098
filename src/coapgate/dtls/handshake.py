"""The server's handshake: one table of states (RFC 6347 section 4.2, RFC 5246 section 7.3).

    client                                server                     state of ours then
    ClientHello (cookie)      ------>                                AWAIT_CLIENT_HELLO
                              <------     ServerHello
                                          Certificate*
                                          ServerKeyExchange*
                                          CertificateRequest*
                                          ServerHelloDone            AWAIT_CERTIFICATE*
    Certificate*                                                     AWAIT_CLIENT_KEY_EXCHANGE
    ClientKeyExchange                                                AWAIT_KEYS (PSK)
    CertificateVerify*                                               AWAIT_CERTIFICATE_VERIFY*
    [ChangeCipherSpec]                                               AWAIT_FINISHED
    Finished                  ------>                                AWAIT_DECISION
                              <------     [ChangeCipherSpec]
                                          Finished                   ended, as an association
    (* with ECDHE_ECDSA only)

The last flight waits until authentication has decided. Nothing that a peer says ends a handshake
before its Finished verified: what is wrong is remembered, and the handshake ends at its deadline.
ChangeCipherSpec is not looked at: it says nothing that the epoch of Finished does not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from coapgate.dtls import flight4, flights, keys
from coapgate.dtls import messages as m
from coapgate.dtls.association import Association, FinalFlight
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.finished import Agreement, HandshakeKeys
from coapgate.dtls.flights import Flight, Repeats
from coapgate.dtls.fragments import Reassembly
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.negotiation import Parameters, ServerCertificate, negotiate
from coapgate.dtls.possession import Possession
from coapgate.dtls.records import HEADER_LENGTH, ContentType, Record, encode
from coapgate.dtls.signatures import PublicKey
from coapgate.dtls.suites import KeyExchange, Suite
from coapgate.dtls.trials import Proof, Trials
from coapgate.errors import ALERTS, Alert, MalformedMessage, Reason, Refused
from coapgate.model import MAX_IDENTITY_LENGTH, MAX_KEYS_PER_IDENTITY, Identity, Path

RANDOM_KEY_LENGTH = 16
MAX_ALERTS = 5
"""How often the alert of a refusal is sent, repeats included."""
REFUSAL_TIME = 60.0
"""Seconds during which the alert of a refusal is repeated on demand."""
POINT_INTERVAL = 0.25
"""Seconds after a point that cannot be until another is looked at: each costs as much as an ECDHE
hello, of which an address has only so many."""
MAX_PLAINTEXT = 1 << 14
MIN_PLAINTEXT = 64
"""Octets that a record to a peer must have room for: a client's Connection ID that leaves less is
not agreed on."""

_FATAL = 2

ProvenEvent = KeysRequested | KeyProven | ChainProven


class State(enum.IntEnum):
    """What is awaited; numbers, since the tables below are asked for each message."""

    AWAIT_CLIENT_HELLO = enum.auto()
    AWAIT_CERTIFICATE = enum.auto()
    AWAIT_CLIENT_KEY_EXCHANGE = enum.auto()
    AWAIT_KEYS = enum.auto()
    AWAIT_CERTIFICATE_VERIFY = enum.auto()
    AWAIT_FINISHED = enum.auto()
    AWAIT_DECISION = enum.auto()
    REFUSED = enum.auto()


(
    _AWAIT_CLIENT_HELLO,
    _AWAIT_CERTIFICATE,
    _AWAIT_CLIENT_KEY_EXCHANGE,
    _AWAIT_KEYS,
    _AWAIT_CERTIFICATE_VERIFY,
    _AWAIT_FINISHED,
    _AWAIT_DECISION,
    _REFUSED,
) = State  # a name of its own costs less than a look into an Enum, in each handshake two dozen


@dataclass(frozen=True, slots=True)
class HandshakeSettings:
    """Times in seconds, lengths in octets.

    `max_datagram` is a datagram's payload. `public_key` reads a leaf certificate's key, or raises
    Refused (`malformed`, `weak_key`) before anything is computed with it; whoever has a
    certificate to show needs it.
    """

    certificate: ServerCertificate | None = None
    public_key: Callable[[bytes], PublicKey] | None = None
    max_datagram: int = 1232
    retransmission_time: float = 9.0
    handshake_timeout: float = 90.0
    auth_timeout: float = 5.0
    max_handshake_message: int = 8192

    def __post_init__(self) -> None:
        assert self.certificate is None or self.public_key is not None


class AcceptedHello(NamedTuple):
    """What the first fragment of a hello with a valid cookie says; the rest may be missing yet."""

    random: bytes
    message_seq: int
    record_sequence: int


class ServerHandshake:
    """One handshake, from a hello with a valid cookie until it is accepted, refused or given up.

    `receive_fragments` and `receive_protected` take what came and return an event or None;
    datagrams to send pile up in `outgoing`; call `handle_timer` at `due_at`, and give it up at
    `deadline`. `admit_ecdhe` says whether this peer's address may cost us an ECDHE key exchange
    now; when it may not, `is_dropped` and the client repeats its hello. `draw_connection_id` makes
    one that nobody has; `connection_id` is it from ServerHello on, if the client offered to use
    one, else empty.
    """

    __slots__ = (
        "_admit_ecdhe",
        "_alert",
        "_candidates",
        "_chain",
        "_clear_sequence",
        "_decide_by",
        "_detail",
        "_draw_connection_id",
        "_ephemeral",
        "_flight",
        "_key_refusal",
        "_malformed",
        "_message_seq",
        "_next_point_at",
        "_parameters",
        "_possession",
        "_proof",
        "_random",
        "_reassembly",
        "_repeats",
        "_server_random",
        "_session_hash",
        "_settings",
        "_transcript",
        "_trials",
        "connection_id",
        "deadline",
        "fact",
        "hello",
        "identity",
        "is_dropped",
        "number",
        "outgoing",
        "path",
        "state",
    )

    def __init__(
        self,
        number: int,
        path: Path,
        settings: HandshakeSettings,
        random: Callable[[int], bytes],
        admit_ecdhe: Callable[[float], bool],
        draw_connection_id: Callable[[], bytes],
        hello: AcceptedHello,
        now: float,
    ) -> None:
        self.number = number
        self.path = path
        self.hello = hello
        self.state = _AWAIT_CLIENT_HELLO
        self.outgoing: list[bytes] = []
        self.is_dropped = False
        self.identity: bytes | None = None
        self.fact: Refused | None = None
        """What refuses this peer now that its Finished verified: `refuse` it, do not ask."""
        self.deadline = now + settings.handshake_timeout
        self._settings = settings
        self._random = random
        self._admit_ecdhe = admit_ecdhe
        self._draw_connection_id = draw_connection_id
        self.connection_id = b""
        self._reassembly = Reassembly(hello.message_seq, settings.max_handshake_message)
        # ServerHello takes the numbers of the accepted hello, and both count on from there: a
        # second HelloVerifyRequest to this client then does no harm.
        self._message_seq = hello.message_seq
        self._clear_sequence = hello.record_sequence
        self._flight: Flight | None = None
        self._decide_by: float | None = None
        self._candidates: tuple[tuple[object, HandshakeKeys], ...] = ()
        self._trials = Trials()
        self._possession: Possession | None = None
        self._chain: tuple[bytes, ...] = ()
        self._key_refusal: Reason | None = None
        self._malformed = False
        self._next_point_at = now
        self._detail = ""

    # --- what the owner sees

    @property
    def has_proven(self) -> bool:
        """Whether the peer proved a key and waits for the decision: it yields to nobody.

        A refused one does yield: whoever makes up a certificate gets that far.
        """
        return self.state is _AWAIT_DECISION

    @property
    def due_at(self) -> float:
        """When `handle_timer` has something to do."""
        if self._decide_by is not None:
            due = self._decide_by
        elif self._flight is not None:
            due = self._flight.due_at
        else:
            return self.deadline
        return due if due < self.deadline else self.deadline

    def failure(self, otherwise: Reason) -> tuple[Reason, str]:
        """Why it ended without a decision, and what was remembered on the way."""
        if self.state is _AWAIT_DECISION:
            return otherwise, ""
        detail = self._detail
        if self._trials.has_failed:
            detail = detail or "Finished does not verify"
        reason = otherwise
        if self._key_refusal is not None:
            reason = self._key_refusal
        elif self._trials.has_failed and self.identity is not None:
            reason = Reason.BAD_KEY
        elif self._malformed and otherwise is Reason.TIMEOUT:
            reason = Reason.MALFORMED
        return reason, detail

    def remember(self, detail: str) -> None:
        """Something of the peer was dropped: if nothing better comes, that was why."""
        self._malformed = True
        self._detail = detail

    # --- epoch 0

    def receive_alert(self, fragment: bytes) -> None:
        """Clear text proves nothing: a stranger may have sent it, so it is only remembered."""
        if len(fragment) == 2:
            self._detail = f"peer sent alert {fragment[1]}"

    def receive_fragments(self, fragments: Iterable[m.Fragment], now: float) -> ProvenEvent | None:
        """Take the handshake fragments of one record of epoch 0.

        Raises Refused if the hello asks for what cannot be; the handshake is over then, and has
        put the alert into `outgoing`.
        """
        event = None
        for fragment in fragments:
            if self.state is _REFUSED:
                self._repeat_alert(now)
            elif self.state is _AWAIT_DECISION:
                # After Finished nothing in the clear counts; repeated flights are swallowed.
                break
            elif fragment.message_seq < self._reassembly.expected:
                self._repeat_flight(fragment.message_seq, now)
            elif self._fits(fragment) and self._reassembly.add(fragment):
                event = self._take_messages(now) or event
            else:
                self.remember(f"message {fragment.type} in state {self.state.name}")
        return event

    def _fits(self, fragment: m.Fragment) -> bool:
        """Whether a message of this type and message_seq can come in this state."""
        order = _ORDER.get(self.state, ())
        ahead = fragment.message_seq - self._reassembly.expected
        return ahead < len(order) and fragment.type == order[ahead]

    def _take_messages(self, now: float) -> ProvenEvent | None:
        while (message := self._reassembly.next()) is not None:
            kind, body = message
            take = _TRANSITIONS.get((self.state, kind))
            try:
                if take is None:
                    raise MalformedMessage(f"message {kind} in state {self.state.name}")
                state, event = take(self, body, now)
            except MalformedMessage as error:
                self.remember(str(error))
                self._reassembly.drop()
                break
            if self.is_dropped:
                return None
            self._reassembly.advance()
            self.state = state
            if event is not None:
                return event
        return self._begin_trials(now) if self.state is _AWAIT_FINISHED else None

    def _repeat_flight(self, message_seq: int, now: float) -> None:
        """The peer repeats its hello: our answer got lost. Swallowed while a decision waits."""
        if (
            message_seq == self.hello.message_seq
            and self._flight is not None
            and self._decide_by is None
            and self._flight.is_wanted(now)
        ):
            self._send_flight()

    def handle_timer(self, now: float, *, padding: int = 1) -> None:
        """Repeat what is due; at `auth_timeout` decide in the peer's disfavour.

        `padding` is as for `offer_keys`.
        """
        if self._decide_by is None:
            if self._flight is not None and self._flight.is_due(now):
                self._send_flight()
        elif now >= self._decide_by:
            if self.state is _AWAIT_KEYS:
                self.offer_keys((), now, padding=padding, reason=Reason.UNAVAILABLE)
            else:
                self.refuse(Reason.UNAVAILABLE, now)

    # --- messages of epoch 0, one method each; the tables below say when

    def _on_client_hello(self, body: bytes, now: float) -> _Transition:
        hello = m.ClientHello.parse(body)
        if hello.random != self.hello.random:
            raise MalformedMessage("not the hello that the cookie was for")
        try:
            chosen = negotiate(hello, self._settings.certificate)
        except Refused as refusal:
            self._send_alert(refusal.alert)
            raise
        with_ecdhe = chosen.suite.key_exchange is KeyExchange.ECDHE_ECDSA
        if with_ecdhe and not self._admit_ecdhe(now):
            self.is_dropped = True
            return self.state, None
        self._parameters: Parameters = chosen
        self._transcript = keys.Transcript(chosen.suite.hash_name)
        if not with_ecdhe:
            self._transcript.forget_octets()
        self._record(T.CLIENT_HELLO, body)
        self._server_random = self._random(m.RANDOM_LENGTH)
        if chosen.offer.connection_id is not None:
            if self._has_room_for(chosen.offer.connection_id, chosen.suite):
                self.connection_id = self._draw_connection_id()
            else:
                chosen = chosen._replace(offer=chosen.offer._replace(connection_id=None))
                self._parameters = chosen
        answer = flight4.compose(
            chosen,
            self._settings.certificate,
            self.hello.random,
            self._server_random,
            self.connection_id,
        )
        self._ephemeral = answer.ephemeral
        flight = tuple(self._encode(kind, body) for kind, body in answer.messages)
        self._flight = Flight(flight, self._settings.retransmission_time, now)
        self._send_flight()
        return (_AWAIT_CERTIFICATE if with_ecdhe else _AWAIT_CLIENT_KEY_EXCHANGE), None

    def _has_room_for(self, connection_id: bytes, suite: Suite) -> bool:
        """Whether datagrams to a peer with this one could still carry a message."""
        header = HEADER_LENGTH + len(connection_id) + 1
        return self._settings.max_datagram - header - suite.overhead >= MIN_PLAINTEXT

    def _on_certificate(self, body: bytes, now: float) -> _Transition:
        octets = self._transcript.octets
        assert octets is not None
        assert self._settings.public_key is not None
        start = len(octets) + m.HEADER_LENGTH
        self._possession = Possession(body, start, self._settings.public_key)
        self._record(T.CERTIFICATE, body)
        return _AWAIT_CLIENT_KEY_EXCHANGE, None

    def _on_client_key_exchange(self, body: bytes, now: float) -> _Transition:
        if self._parameters.suite.key_exchange is KeyExchange.PSK:
            self.identity = m.parse_psk_identity(body)
            self._record_key_exchange(body)
            self._decide_by = now + self._settings.auth_timeout
            return _AWAIT_KEYS, KeysRequested(self.number, self.identity)
        assert self._parameters.group is not None
        assert self._ephemeral is not None
        if now < self._next_point_at:
            raise MalformedMessage("a point too soon after one that cannot be")
        self._next_point_at = now + POINT_INTERVAL
        premaster = self._parameters.group.exchange(self._ephemeral, m.parse_point(body))
        self._record_key_exchange(body)
        self._candidates = ((None, self._agreement().derive(premaster, is_client=False)),)
        self._ephemeral = None
        assert self._possession is not None
        if self._possession.is_empty:
            self._transcript.forget_octets()
            return _AWAIT_FINISHED, None
        return _AWAIT_CERTIFICATE_VERIFY, None

    def _on_certificate_verify(self, body: bytes, now: float) -> _Transition:
        octets = self._transcript.octets
        assert octets is not None
        assert self._possession is not None
        self._chain = self._possession.verify(body, octets)
        self._transcript.forget_octets()
        self._record(T.CERTIFICATE_VERIFY, body)
        return _AWAIT_FINISHED, None

    # --- keys and Finished

    def offer_keys(
        self,
        candidates: tuple[Candidate, ...],
        now: float,
        *,
        padding: int = 1,
        reason: Reason = Reason.UNKNOWN_IDENTITY,
    ) -> ProvenEvent | None:
        """The secrets that the claimed identity may have; none at all is answered alike.

        Padded with random keys to `padding`, so that the work tells nothing. `reason` is why there
        are none. May return KeyProven at once, if Finished came early.
        """
        if self.state is not _AWAIT_KEYS:
            return None
        assert self.identity is not None
        if not 1 <= len(self.identity) <= MAX_IDENTITY_LENGTH or b"\0" in self.identity:
            candidates, reason = (), Reason.UNKNOWN_IDENTITY
        if not candidates:
            self._key_refusal = reason
        tried = candidates[:MAX_KEYS_PER_IDENTITY]
        while len(tried) < padding or not tried:
            tried += (Candidate(self._random(RANDOM_KEY_LENGTH), None),)
        agreement = self._agreement()
        derived = []
        for candidate in tried:
            premaster = keys.psk_premaster(candidate.secret)
            derived.append((candidate.proves, agreement.derive(premaster, is_client=False)))
        self._candidates = tuple(derived)
        self._decide_by = None
        # The client has our flight: it answered it.
        self._flight = None
        self.state = _AWAIT_FINISHED
        return self._begin_trials(now)

    def _agreement(self) -> Agreement:
        return Agreement(
            self._parameters.suite,
            self.hello.random,
            self._server_random,
            self._session_hash,
            self._parameters.offer.connection_id or b"",
            self.connection_id,
        )

    def _begin_trials(self, now: float) -> ProvenEvent | None:
        proof = self._trials.begin(self._candidates, self._reassembly.expected, self._transcript)
        return None if proof is None else self._on_finished(proof, now)

    def receive_protected(self, record: Record, now: float) -> ProvenEvent | None:
        """Take a record of epoch 1 that may hold a handshake message: that can only be Finished."""
        if self.state is _REFUSED:
            self._repeat_alert(now)
        elif self.state is not _AWAIT_DECISION:
            proof = self._trials.receive(record, now)
            if proof is not None:
                return self._on_finished(proof, now)
        return None

    def _on_finished(self, proof: Proof, now: float) -> ProvenEvent | None:
        self.state = _AWAIT_DECISION
        self._proof = proof
        proof.protection.cool()
        self._flight = None
        chain, self._chain = self._chain, ()
        possession = self._possession
        # The secrets of the handshake go; what authentication needs goes with the event.
        del self._candidates, self._transcript, self._session_hash, self._reassembly, self._trials
        if possession is not None and possession.refusal is not None:
            self.fact = possession.refusal
            return None
        self._decide_by = now + self._settings.auth_timeout
        # Whoever has proven a key is told the decision, however late it began.
        self.deadline = max(self.deadline, self._decide_by)
        if possession is None:
            return KeyProven(self.number, self.path, proof.proves)
        return ChainProven(self.number, self.path, chain)

    # --- the decision

    def accept(self, association_id: bytes, identity: Identity, now: float) -> Association:
        """Send the last flight; the handshake is over, and this its association."""
        assert self.state is _AWAIT_DECISION
        max_record = self._settings.max_datagram - self._proof.protection.overhead
        association = Association(
            association_id,
            identity,
            self.path,
            self._proof.protection,
            min(max_record, self._max_fragment),
            now,
        )
        association.window.mark(self._proof.sequence)
        finished = m.encode_message(T.FINISHED, self._message_seq, self._proof.verify_data)
        flight = FinalFlight(finished, self._clear_sequence)
        sealed = association.seal(ContentType.HANDSHAKE, finished)
        self.outgoing.append(flight.encode_change() + sealed)
        association.final_flight = flight
        association.protection.cool()
        return association

    def refuse(self, reason: Reason, now: float) -> None:
        """Tell the peer, in the clear, and again for each flight that it repeats."""
        assert self.state is _AWAIT_DECISION
        self.state = _REFUSED
        self.fact = None
        self._decide_by = None
        self.deadline = now + REFUSAL_TIME
        self._alert = ALERTS[reason]
        self._repeats = Repeats(MAX_ALERTS - 1)
        del self._proof
        self._send_alert(self._alert)

    def _repeat_alert(self, now: float) -> None:
        if self._repeats.allow(now):
            self._send_alert(self._alert)

    # --- sending

    @property
    def _max_fragment(self) -> int:
        """Octets of plaintext that a record of ours may carry (RFC 6066 section 4)."""
        return self._parameters.offer.max_fragment_length or MAX_PLAINTEXT

    def _encode(self, kind: int, body: bytes) -> bytes:
        """The next message of ours, entered into the transcript."""
        message = m.encode_message(kind, self._message_seq, body)
        self._message_seq += 1
        self._transcript.add(message)
        return message

    def _record(self, kind: int, body: bytes) -> None:
        """Enter the expected message of the peer into the transcript."""
        self._transcript.add(m.encode_message(kind, self._reassembly.expected, body))

    def _record_key_exchange(self, body: bytes) -> None:
        """With extended master secret the session hash ends here (RFC 7627 section 3)."""
        self._record(T.CLIENT_KEY_EXCHANGE, body)
        extended = self._parameters.offer.extended_master_secret
        self._session_hash = self._transcript.digest() if extended else None

    def _send_flight(self) -> None:
        assert self._flight is not None
        datagrams, self._clear_sequence = flights.encode_flight(
            self._flight.messages,
            self._clear_sequence,
            self._settings.max_datagram,
            self._max_fragment,
        )
        self.outgoing += datagrams

    def _send_alert(self, alert: Alert | None) -> None:
        """A fatal alert in the clear; None is silence."""
        if alert is not None:
            record = encode(ContentType.ALERT, self._clear_sequence, bytes((_FATAL, alert)))
            self._clear_sequence += 1
            self.outgoing.append(record)


_Transition = tuple[State, ProvenEvent | None]

_ORDER: dict[State, tuple[int, ...]] = {
    _AWAIT_CLIENT_HELLO: (T.CLIENT_HELLO,),
    _AWAIT_CERTIFICATE: (T.CERTIFICATE, T.CLIENT_KEY_EXCHANGE, T.CERTIFICATE_VERIFY),
    _AWAIT_CLIENT_KEY_EXCHANGE: (T.CLIENT_KEY_EXCHANGE, T.CERTIFICATE_VERIFY),
    _AWAIT_CERTIFICATE_VERIFY: (T.CERTIFICATE_VERIFY,),
}
"""What may be kept in each state: of the expected message_seq, and of those that come early."""

_TRANSITIONS: dict[tuple[State, int], Callable[[ServerHandshake, bytes, float], _Transition]] = {
    (_AWAIT_CLIENT_HELLO, T.CLIENT_HELLO): ServerHandshake._on_client_hello,
    (_AWAIT_CERTIFICATE, T.CERTIFICATE): ServerHandshake._on_certificate,
    (
        _AWAIT_CLIENT_KEY_EXCHANGE,
        T.CLIENT_KEY_EXCHANGE,
    ): ServerHandshake._on_client_key_exchange,
    (_AWAIT_CERTIFICATE_VERIFY, T.CERTIFICATE_VERIFY): ServerHandshake._on_certificate_verify,
}
"""Which message is taken in which state, and by what; no other is. Finished comes sealed: it is
tried in AWAIT_FINISHED only."""
