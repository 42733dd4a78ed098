"""What follows from a premaster secret: keys, proven by the Finished (RFC 5246 7.4.9, 7627)."""

from __future__ import annotations

import hmac
from typing import NamedTuple

from coapgate.dtls import keys
from coapgate.dtls.keys import Transcript
from coapgate.dtls.messages import HandshakeType, encode_message
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import ContentType
from coapgate.dtls.suites import Suite
from coapgate.errors import ForgedRecord

MAX_FINISHED_RECORD = 256
"""Octets besides the Connection ID; a longer record of epoch 1 holds no Finished, padded or not:
opening it would be work for nothing."""


class Agreement(NamedTuple):
    """What both ends know when the premaster secret comes, all of it public.

    `session_hash` is None without extended master secret (RFC 7627 section 4). `client_cid` is
    what records to the client carry, `server_cid` those to the server.
    """

    suite: Suite
    client_random: bytes
    server_random: bytes
    session_hash: bytes | None
    client_cid: bytes = b""
    server_cid: bytes = b""

    def derive(self, premaster: bytes, *, is_client: bool) -> HandshakeKeys:
        """Master secret, then the keys of epoch 1."""
        suite, randoms = self.suite, (self.client_random, self.server_random)
        if self.session_hash is None:
            secret = keys.master_secret(suite, premaster, *randoms)
        else:
            secret = keys.extended_master_secret(suite, premaster, self.session_hash)
        master = keys.Prf(suite.hash_name, secret)
        block = keys.key_block(suite, master, *randoms)
        received_cid, sent_cid = self.server_cid, self.client_cid
        if is_client:
            received_cid, sent_cid = sent_cid, received_cid
        protection = Protection(
            suite, block, is_client=is_client, received_cid=received_cid, sent_cid=sent_cid
        )
        return HandshakeKeys(master, protection)


class HandshakeKeys:
    """One master secret and its keys, for as long as the handshake lasts."""

    __slots__ = ("_master", "protection")

    def __init__(self, master: keys.Prf, protection: Protection) -> None:
        self._master = master
        self.protection = protection

    def verify_data(self, transcript: Transcript, *, of_client: bool) -> bytes:
        """The body of a Finished that follows `transcript`."""
        return keys.verify_data(
            self._master, of_client=of_client, transcript_hash=transcript.digest()
        )

    def open_finished(
        self, record: bytes, message_seq: int, transcript: Transcript, *, of_client: bool
    ) -> bytes | None:
        """The Finished in a record of epoch 1; None if these keys do not open it, or it is wrong.

        It must be whole, alone in its record, and the message after `transcript`.
        """
        if len(record) > MAX_FINISHED_RECORD + len(self.protection.received_cid):
            return None
        try:
            message = self._open(record)
        except ForgedRecord:
            # One of several candidates, or a forgery: its AEAD object would only be in the way.
            self.protection.cool()
            return None
        expected = encode_message(
            HandshakeType.FINISHED, message_seq, self.verify_data(transcript, of_client=of_client)
        )
        return message if hmac.compare_digest(message, expected) else None

    def _open(self, record: bytes) -> bytes:
        """A handshake message in the only form of record that was agreed on (RFC 9146 section 3).

        Raises ForgedRecord.
        """
        if not self.protection.received_cid:
            return self.protection.open(record)
        content_type, message = self.protection.open_cid(record)
        if content_type != ContentType.HANDSHAKE:
            raise ForgedRecord("not a handshake message")
        return message
