"""One device's end of an association, for `simulated`: no paths, no server to protect."""

from __future__ import annotations

import os
from collections.abc import Callable

from coapgate.dtls.client_handshake import (
    ClientCertificate,
    ClientHandshake,
    ClientSettings,
    Credential,
    PskKey,
    State,
    is_as_agreed,
    known_alert,
)
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import MAX_SEQUENCE, ContentType, Record, split
from coapgate.dtls.replay import ReplayWindow
from coapgate.errors import Alert, DtlsError, ForgedRecord

__all__ = ["Client", "ClientCertificate", "ClientSettings", "Credential", "PskKey", "State"]

_WARNING, _FATAL = 1, 2


class Client:
    """Connects with one credential, again and again if asked to.

    `connect`, then tell it datagrams and the time; send what is in `outgoing` after each call.
    `receive_datagram` returns the plaintexts that came. `failure` says why it is CLOSED, or what
    was wrong on the way.
    """

    def __init__(
        self,
        credential: Credential,
        settings: ClientSettings | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.state = State.IDLE
        self.outgoing: list[bytes] = []
        self.failure = ""
        self.alert: Alert | None = None
        """The alert the server sent, if it did."""
        self.handshakes = 0
        """How many of them were completed."""
        self._credential = credential
        self._settings = settings or ClientSettings()
        self._random = random
        self._handshake: ClientHandshake | None = None
        self._protection: Protection | None = None

    # --- what the owner does

    @property
    def is_established(self) -> bool:
        return self.state is State.ESTABLISHED

    def connect(self, now: float) -> None:
        """Begin a handshake; an association that there was is forgotten."""
        self._protection = None
        self._handshake = ClientHandshake(self._credential, self._settings, self._random, now)
        self._follow(self._handshake)

    def send(self, plaintext: bytes, *, padding: int = 0) -> None:
        """Queue one record of application data; the association must be established.

        With a Connection ID `padding` octets behind it hide its length (RFC 9146 section 4).
        """
        content_type = ContentType.APPLICATION_DATA
        if padding and self.sent_cid:
            # Zeros follow the content type: the last of them stands in its usual place.
            self._send_sealed(0, plaintext + bytes((content_type,)) + bytes(padding - 1))
        else:
            self._send_sealed(content_type, plaintext)

    def close(self) -> None:
        """Say close_notify, if there is an association, and be done."""
        if self.state is State.ESTABLISHED:
            self._send_sealed(ContentType.ALERT, bytes((_WARNING, Alert.CLOSE_NOTIFY)))
        self._forget(self.failure)

    def cool(self) -> None:
        """Hold as little memory as can be until the next record."""
        if self._protection is not None:
            self._protection.cool()

    @property
    def sent_cid(self) -> bytes:
        """The Connection ID that our records carry: the server's choice; empty: none."""
        return b"" if self._protection is None else self._protection.sent_cid

    @property
    def max_plaintext(self) -> int:
        """Octets of application data that fit one record of one datagram; once established."""
        assert self._protection is not None
        room = self._settings.max_datagram - self._protection.overhead
        return min(room, self._settings.max_fragment_length or room)

    def next_timer(self) -> float | None:
        return None if self._handshake is None else self._handshake.due_at

    def handle_timer(self, now: float) -> None:
        if self._handshake is not None:
            self._handshake.handle_timer(now)
            self._follow(self._handshake)

    # --- records

    def receive_datagram(self, datagram: bytes, now: float) -> list[bytes]:
        """Take one datagram; returns the plaintexts of application data in it."""
        plaintexts: list[bytes] = []
        try:
            for record in split(datagram, len(self._settings.connection_id or b"")):
                if self._handshake is not None:
                    plaintexts += self._advance(self._handshake, record, now)
                elif record.epoch == 1:
                    plaintexts += self._open(record)
        except DtlsError as error:
            self.failure = str(error)
        return plaintexts

    def _advance(self, handshake: ClientHandshake, record: Record, now: float) -> list[bytes]:
        if record.epoch == 0:
            handshake.receive_clear(record, now)
        elif record.epoch == 1:
            handshake.receive_protected(record)
        self._follow(handshake)
        if self.state is not State.ESTABLISHED:
            return []
        return [plaintext for early in handshake.held for plaintext in self._open(early)]

    def _follow(self, handshake: ClientHandshake) -> None:
        """Take over what a handshake has to send, and what became of it."""
        self.outgoing += handshake.outgoing
        handshake.outgoing.clear()
        self.state, self.failure, self.alert = handshake.state, handshake.failure, handshake.alert
        if self.state is State.CLOSED:
            self._forget(self.failure)
        elif self.state is State.ESTABLISHED:
            self._handshake = None
            self._protection, self._sequence = handshake.protection, handshake.sequence
            self._window = ReplayWindow()
            self._window.mark(handshake.finished_sequence)
            self.handshakes += 1

    def _open(self, record: Record) -> list[bytes]:
        protection = self._protection
        if (
            protection is None
            or not is_as_agreed(record, protection)
            or not self._window.is_fresh(record.sequence)
        ):
            return []
        try:
            if protection.received_cid:
                content_type, plaintext = protection.open_cid(record.octets)
            else:
                content_type, plaintext = record.content_type, protection.open(record.octets)
        except ForgedRecord:
            return []
        self._window.mark(record.sequence)
        if content_type == ContentType.APPLICATION_DATA:
            return [plaintext]
        if content_type == ContentType.ALERT and len(plaintext) == 2:
            self._receive_alert(*plaintext)
        return []

    def _receive_alert(self, level: int, description: int) -> None:
        if level != _FATAL and description != Alert.CLOSE_NOTIFY:
            return
        self.alert = known_alert(description)
        if description == Alert.CLOSE_NOTIFY:
            self.close()
        self._forget(f"server sent alert {description}")

    def _forget(self, why: str) -> None:
        self.state, self.failure = State.CLOSED, why
        self._handshake = self._protection = None

    def _send_sealed(self, content_type: int, plaintext: bytes) -> None:
        assert self._protection is not None
        assert self._sequence <= MAX_SEQUENCE
        self.outgoing.append(self._protection.seal(content_type, self._sequence, plaintext))
        self._sequence += 1
