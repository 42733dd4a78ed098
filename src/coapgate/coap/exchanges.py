"""What is kept of a request, so that its repetition is not carried out again.

One `bytes` by message ID, which the garbage collector has no reason to visit: a state, when it
expires in seconds of `now`, and in the last state the octets that answer a repetition.

    UNANSWERED    CON, nothing sent yet             a repetition is not answered
    ACKNOWLEDGED  CON, empty ACK sent, response     a repetition gets the empty ACK again
                  to come or under way
    UNRELIABLE    NON, response to come             a repetition is not answered
    FINISHED                                        a repetition gets what is kept, if anything

    UNANSWERED -> response -> FINISHED (piggybacked)
    UNANSWERED -> ack_delay -> ACKNOWLEDGED -> ACK or RST of the response, or none -> FINISHED
    UNRELIABLE -> response -> FINISHED
"""

from __future__ import annotations

import struct

UNANSWERED = 0
ACKNOWLEDGED = 1
UNRELIABLE = 2
FINISHED = 3

EXCHANGE = struct.Struct("!Bd")
"""State, and when the exchange is forgotten. FINISHED: the answer to repetitions follows."""
UNFINISHED = struct.Struct("!BdQB")
"""As above, then ticket and No-Response; the token follows."""


def finished(expires_at: float, answer: bytes) -> bytes:
    """An exchange whose repetitions get `answer`; empty: none."""
    return EXCHANGE.pack(FINISHED, expires_at) + answer


def acknowledged(exchange: bytes) -> bytes:
    """An unanswered exchange after its empty ACK."""
    return bytes((ACKNOWLEDGED,)) + exchange[1:]


def make_room(exchanges: dict[int, bytes]) -> bool:
    """Forget the oldest finished exchange; False if all are unfinished."""
    for message_id, exchange in exchanges.items():
        if exchange[0] == FINISHED:
            del exchanges[message_id]
            return True
    return False
