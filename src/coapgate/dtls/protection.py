"""Record protection: seal and open (RFC 5246 section 6.2.3.3, RFC 6655, RFC 9146 section 5)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from coapgate.dtls.records import HEADER_LENGTH, MAX_PLAINTEXT, VERSION, ContentType
from coapgate.dtls.suites import EXPLICIT_NONCE_LENGTH, IV_LENGTH, Aead, Suite
from coapgate.errors import ForgedRecord

_EPOCH_1 = 1 << 48
_CID_PREFIX = b"\xff" * 8 + bytes((ContentType.TLS12_CID,))
_CID_TYPE = bytes((ContentType.TLS12_CID,)) + VERSION
_TYPES = tuple(bytes((content_type,)) for content_type in range(256))


class Protection:
    """The keys of epoch 1 at one end, and the Connection IDs its records carry.

    `received_cid` is the one we handed out, `sent_cid` the one the peer asked for; None and an
    empty one both mean records without it. AEAD objects weigh up to 5 kB: they are made on first
    use, or by `warm`, and dropped by `cool`. `opener` is the one for receiving, None while there is
    none.
    """

    __slots__ = (
        "_read_iv",
        "_sealer",
        "_write_iv",
        "is_client",
        "key_block",
        "opener",
        "received_cid",
        "sent_cid",
        "suite",
    )

    def __init__(
        self,
        suite: Suite,
        key_block: bytes,
        *,
        is_client: bool,
        received_cid: bytes = b"",
        sent_cid: bytes = b"",
    ) -> None:
        self.suite = suite
        self.is_client = is_client
        self.received_cid = received_cid
        self.sent_cid = sent_cid
        self.key_block = key_block
        self._read_iv = self._write_iv = b""
        self.opener: Aead | None = None
        self._sealer: Aead | None = None

    def warm(self) -> None:
        """Make the AEAD objects of both directions."""
        self._warm_opener()
        self._warm_sealer()

    def cool(self) -> None:
        """Drop the AEAD objects, and the IVs that go with them, until the next record."""
        self.opener = self._sealer = None
        self._read_iv = self._write_iv = b""

    def _warm_opener(self) -> Aead:
        opener = self.opener = self._aead(of_client=not self.is_client)
        self._read_iv = self._iv(of_client=not self.is_client)
        return opener

    def _warm_sealer(self) -> Aead:
        sealer = self._sealer = self._aead(of_client=self.is_client)
        self._write_iv = self._iv(of_client=self.is_client)
        return sealer

    def _iv(self, *, of_client: bool) -> bytes:
        block = self.key_block
        return block[-2 * IV_LENGTH : -IV_LENGTH] if of_client else block[-IV_LENGTH:]

    def _aead(self, *, of_client: bool) -> Aead:
        length = self.suite.key_length
        key = self.key_block[:length] if of_client else self.key_block[length : 2 * length]
        return self.suite.aead(key)

    def open(self, record: bytes) -> bytes:
        """The plaintext of a record of epoch 1 without Connection ID.

        The explicit nonce is read, never computed: OpenSSL's GCM starts at a random value.
        Raises ForgedRecord if it does not authenticate, or is of a length that cannot be.
        """
        opener = self.opener
        if opener is None:
            opener = self._warm_opener()
        length = len(record) - HEADER_LENGTH - EXPLICIT_NONCE_LENGTH - self.suite.tag_length
        if not 0 <= length <= MAX_PLAINTEXT:
            raise ForgedRecord("record of a length that cannot be")
        try:
            return opener.decrypt(
                self._read_iv + record[13:21],
                record[21:],
                record[3:11] + record[:3] + length.to_bytes(2, "big"),
            )
        except InvalidTag:
            raise ForgedRecord("record does not authenticate") from None

    def open_cid(self, record: bytes) -> tuple[int, bytes]:
        """The content type and plaintext of a tls12_cid record (RFC 9146 section 5.3).

        Raises ForgedRecord if it does not authenticate, has no content type before its padding, or
        is of a length that cannot be.
        """
        opener = self.opener
        if opener is None:
            opener = self._warm_opener()
        cid = self.received_cid
        start = HEADER_LENGTH + len(cid)
        nonce_end = start + EXPLICIT_NONCE_LENGTH
        length = len(record) - nonce_end - self.suite.tag_length
        if length < 1 or not cid or record[11 : start - 2] != cid:
            raise ForgedRecord("record is not for this Connection ID")
        associated = (
            _CID_PREFIX
            + _TYPES[len(cid)]
            + record[:3]
            + record[3:11]
            + cid
            + length.to_bytes(2, "big")
        )
        try:
            inner = opener.decrypt(
                self._read_iv + record[start:nonce_end], record[nonce_end:], associated
            )
        except InvalidTag:
            raise ForgedRecord("record does not authenticate") from None
        inner = inner.rstrip(b"\0")
        if not 1 <= len(inner) <= MAX_PLAINTEXT + 1:
            raise ForgedRecord("record is all padding, or too long")
        return inner[-1], inner[:-1]

    def seal(self, content_type: int, sequence: int, plaintext: bytes) -> bytes:
        """A record of epoch 1; its explicit nonce is epoch and sequence number.

        The owner stops before `sequence` reaches 2**48.
        """
        sealer = self._sealer
        if sealer is None:
            sealer = self._warm_sealer()
        # Added, not or-ed: even a number out of bounds would never repeat a nonce.
        number = (_EPOCH_1 + sequence).to_bytes(8, "big")
        if self.sent_cid:
            return self._seal_cid(sealer, content_type, number, plaintext)
        header = _TYPES[content_type] + VERSION
        sealed = sealer.encrypt(
            self._write_iv + number, plaintext, number + header + len(plaintext).to_bytes(2, "big")
        )
        length = (len(sealed) + EXPLICIT_NONCE_LENGTH).to_bytes(2, "big")
        return header + number + length + number + sealed

    def _seal_cid(self, sealer: Aead, content_type: int, number: bytes, plaintext: bytes) -> bytes:
        cid = self.sent_cid
        inner = plaintext + _TYPES[content_type]
        associated = (
            _CID_PREFIX
            + _TYPES[len(cid)]
            + _CID_TYPE
            + number
            + cid
            + len(inner).to_bytes(2, "big")
        )
        sealed = sealer.encrypt(self._write_iv + number, inner, associated)
        length = (len(sealed) + EXPLICIT_NONCE_LENGTH).to_bytes(2, "big")
        return _CID_TYPE + number + cid + length + number + sealed

    @property
    def overhead(self) -> int:
        """Octets that a sealed record is longer than its plaintext."""
        cid = len(self.sent_cid) + 1 if self.sent_cid else 0
        return HEADER_LENGTH + self.suite.overhead + cid
