"""The options of blockwise transfers: which block of a body, RFC 7959 section 2.2."""

from __future__ import annotations

from typing import NamedTuple

from coapgate.errors import RequestRefused
from coapgate.model import Code

BLOCK_OPTION_LENGTH = 3
"""Octets of the longest Block1 or Block2."""
MAX_BLOCK_SIZE = 1024
MIN_BLOCK_SIZE = 16
MAX_NUMBER = 0xFFFFF
"""The last block that an option can name."""
_RESERVED = 7


class Block(NamedTuple):
    """Block `number` of blocks of `16 << exponent` octets; `more` are to follow."""

    number: int
    more: bool
    exponent: int

    @property
    def size(self) -> int:
        """Octets of each block but the last."""
        return MIN_BLOCK_SIZE << self.exponent

    @property
    def offset(self) -> int:
        """Octets of the body before this block."""
        return self.number * self.size

    def encode(self) -> bytes:
        """As an option's value."""
        value = self.number << 4 | self.more << 3 | self.exponent
        return value.to_bytes((value.bit_length() + 7) // 8, "big")


def parse_block(value: int | None) -> Block | None:
    """Read an option's value as a number. Raises RequestRefused (4.00) for the reserved size."""
    if value is None:
        return None
    if value & 7 == _RESERVED:
        raise RequestRefused(Code.BAD_REQUEST, "reserved block size")
    return Block(value >> 4, bool(value & 8), value & 7)


def exponent_for(size: int) -> int:
    """The largest block that is no larger than `size`, and at least the smallest one."""
    size = max(MIN_BLOCK_SIZE, min(size, MAX_BLOCK_SIZE))
    return size.bit_length() - MIN_BLOCK_SIZE.bit_length()


class Slice(NamedTuple):
    """One block of a body; `block` is None if it is the whole body and nobody asked for blocks."""

    payload: bytes
    block: Block | None


def cut(body: bytes, wanted: Block | None, most: int) -> Slice:
    """The block of a body that was asked for, none larger than `most` octets.

    Raises RequestRefused (4.00) if the body ends before it.
    """
    if wanted is None:
        if len(body) <= most:
            return Slice(body, None)
        exponent, offset = exponent_for(most), 0
    else:
        # A smaller block than asked for begins at the same octet (section 2.3).
        exponent, offset = min(wanted.exponent, exponent_for(most)), wanted.offset
    if offset and offset >= len(body):
        raise RequestRefused(Code.BAD_REQUEST, "the body ends before this block")
    size = MIN_BLOCK_SIZE << exponent
    end = offset + size
    block = Block(offset // size, end < len(body), exponent)
    if block.number > MAX_NUMBER:
        raise RequestRefused(Code.BAD_REQUEST, "no option can name this block: ask for larger ones")
    return Slice(body[offset:end], block)
