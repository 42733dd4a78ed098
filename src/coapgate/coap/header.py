"""The header of a message, and the messages that are nothing but a header: RFC 7252 section 3."""

from __future__ import annotations

import struct

HEADER = struct.Struct("!BBH")
"""Version, type and token length in one octet; code; message ID."""
VERSION = 0x40
TYPE = 0x30
TOKEN_LENGTH = 0x0F
MAX_TOKEN_LENGTH = 8

CON = 0x00
NON = 0x10
ACK = 0x20
RST = 0x30


def empty_ack(message_id: int) -> bytes:
    """The acknowledgement without a response (section 4.2)."""
    return HEADER.pack(VERSION | ACK, 0, message_id)


def reset(message_id: int) -> bytes:
    """The answer to what cannot be processed (section 4.2)."""
    return HEADER.pack(VERSION | RST, 0, message_id)


def ping(message_id: int) -> bytes:
    """What nobody can process, so that a reset comes back (section 4.3)."""
    return HEADER.pack(VERSION | CON, 0, message_id)
