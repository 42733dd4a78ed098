"""Reads the sessions of `tests/vectors/dtls`: records of other DTLS stacks, with their secrets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coapgate.dtls.keys import Prf, key_block
from coapgate.dtls.protection import Protection
from coapgate.dtls.suites import SUITES, Suite

FOLDER = Path(__file__).parents[1] / "vectors" / "dtls"


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """A record as the client sent it; `content_type` is the inner one."""

    octets: bytes
    content_type: int
    plaintext: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """What one client and its server agreed on, and what the client sent in epoch 1."""

    name: str
    suite: Suite
    master_secret: bytes
    client_random: bytes
    server_random: bytes
    server_cid: bytes
    client_cid: bytes
    records: tuple[SealedRecord, ...]

    def server_protection(self) -> Protection:
        master = Prf(self.suite.hash_name, self.master_secret)
        block = key_block(self.suite, master, self.client_random, self.server_random)
        return Protection(
            self.suite,
            block,
            is_client=False,
            received_cid=self.server_cid,
            sent_cid=self.client_cid,
        )


def _parse(path: Path) -> Session:
    """Lines `name: hex`; the three that make a record are repeated, `#` begins a comment."""
    fields: dict[str, list[bytes]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(bytes.fromhex(value))
    records = zip(fields["record"], fields["content_type"], fields["plaintext"], strict=True)
    return Session(
        name=path.stem,
        suite=SUITES[int.from_bytes(fields["suite"][0], "big")],
        master_secret=fields["master_secret"][0],
        client_random=fields["client_random"][0],
        server_random=fields["server_random"][0],
        server_cid=fields["server_cid"][0],
        client_cid=fields["client_cid"][0],
        records=tuple(SealedRecord(octets, kind[0], text) for octets, kind, text in records),
    )


SESSIONS = tuple(_parse(path) for path in sorted(FOLDER.glob("*.hex")))
"""Mbed TLS with Connection ID, OpenSSL and GnuTLS without."""
